"""A session of the server's own process that computes small requests in the thread of its loop.

To hand a request to another thread and its answer back takes longer than to compute it: each waits
for the other to leave the interpreter. What has come while a batch was computed is the next one, so
requests are computed together here as in a thread of their own.
"""

import asyncio
import time

from serving.batching import Close, Late, Take
from serving.calls import Call
from serving.computing import Computing, Decoded, Done, failed
from serving.errors import OverloadError
from serving.loading import Loaded
from serving.session import TOO_LATE, Session, SessionOptions, batcher_of


class LoopSession:
    """Computes requests; `submit` and `close` are for the thread of one event loop.

    What would keep the loop for long goes to a session with a thread: large requests, and all of a
    model of the user's own.

    Args:
        loaded: the version that it begins with.
        options: how batches are formed.
    """

    def __init__(self, loaded: Loaded, options: SessionOptions) -> None:
        self._most_bytes = 0 if loaded.form.model.spec.is_users else options.loop_bytes
        self._options = options
        self._computing = Computing(loaded, name=options.name, max_rows=options.max_rows)
        self._batcher = batcher_of(options)
        self._thread = Session(loaded, options)
        self._open: list[Decoded] = []
        self._woken: asyncio.Handle | None = None

    def submit(self, call: Call, done: Done) -> None:
        """As `Session.submit`."""
        if len(call.body) > self._most_bytes:
            self._thread.submit(call, done)
            return
        if not self.alive:
            raise OverloadError("the server is stopping")
        self._batcher.offer((call, done), time.monotonic(), call.deadline)
        if self._woken is None:
            self._woken = asyncio.get_running_loop().call_soon(self._run)

    @property
    def alive(self) -> bool:
        """Whether what is submitted is computed."""
        return self._thread.alive

    def take(self, loaded: Loaded) -> None:
        """Serve a version from the next batch on."""
        self._computing.newest = loaded
        self._thread.take(loaded)

    def close(self) -> None:
        """End; the loop has ended before, and nothing waits."""
        self._thread.close()

    def _run(self) -> None:
        """Compute one batch, or look again when it is to be closed."""
        self._woken = None
        loop = asyncio.get_running_loop()
        samples = sum(each.batch.num_samples for each in self._open)
        while True:
            step = self._batcher.next(time.monotonic(), samples)
            if isinstance(step, Take):
                found = self._computing.read(*step.item)
                if found is not None:
                    self._open.append(found)
                    samples += found.batch.num_samples
            elif isinstance(step, Late):
                step.item[1](failed(504, TOO_LATE))
            elif isinstance(step, Close):
                break
            else:
                if step.seconds is not None:
                    self._woken = loop.call_later(step.seconds, self._run)
                return
        decoded, self._open = self._open, []
        if len(self._batcher):
            self._woken = loop.call_soon(self._run)  # what else has come is answered between
        self._computing.compute(decoded)
