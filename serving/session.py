"""A session: one thread that computes requests, batch by batch, with buffers of its own."""

import threading
import time
from dataclasses import dataclass

from serving.batching import Batcher, Close, Late, Take
from serving.calls import Call
from serving.computing import Computing, Decoded, Done, failed
from serving.errors import OverloadError
from serving.loading import Loaded

TOO_LATE = "the request's time was over before it was computed"


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionOptions:
    """How requests become batches.

    Args:
        name: of the model, in answers.
        max_rows: most samples of a request.
        max_batch: samples from which on no further request is added to a batch.
        max_delay: seconds that a request may wait for others.
        max_waiting: requests that may wait for a session.
        loop_bytes: up to which a request is computed by the thread that answers, where the server's
            own process computes.
    """

    name: str
    max_rows: int = 16384
    max_batch: int = 1024
    max_delay: float = 0.0
    max_waiting: int = 256
    loop_bytes: int = 128 << 10


class Session:
    """Computes requests in a thread of its own.

    Args:
        loaded: the version that it begins with.
        options: how batches are formed.
    """

    def __init__(self, loaded: Loaded, options: SessionOptions) -> None:
        self._computing = Computing(loaded, name=options.name, max_rows=options.max_rows)
        self._batcher = batcher_of(options)
        self._changed = threading.Condition()
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="session", daemon=True)
        self._thread.start()

    def submit(self, call: Call, done: Done) -> None:
        """Have a request computed; `done` is called once with its answer, by any thread.

        Raises:
            OverloadError: as many wait as may, or the session is closed.
        """
        with self._changed:
            if self._closed:
                raise OverloadError("the server is stopping")
            self._batcher.offer((call, done), time.monotonic(), call.deadline)
            self._changed.notify()

    @property
    def alive(self) -> bool:
        """Whether its thread computes what is submitted."""
        return self._thread.is_alive()

    def take(self, loaded: Loaded) -> None:
        """Serve a version from the next batch on."""
        self._computing.newest = loaded
        with self._changed:
            self._changed.notify()

    def close(self) -> None:
        """Compute what waits, then end."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._thread.join()

    def _run(self) -> None:
        while (decoded := self._next_batch()) is not None:
            if decoded:
                self._compute(decoded)

    def _next_batch(self) -> list[Decoded] | None:
        """Form a batch; None: the session is closed and nothing waits."""
        decoded: list[Decoded] = []
        samples = 0
        while True:
            if not decoded:
                self._computing.go_over()
            with self._changed:
                step = self._batcher.next(time.monotonic(), samples)
                if not isinstance(step, Take | Late | Close):
                    if self._closed:
                        return decoded or None
                    self._changed.wait(step.seconds)
                    continue
            if isinstance(step, Close):
                return decoded
            call, done = step.item
            if isinstance(step, Late):
                done(failed(504, TOO_LATE))
                continue
            found = self._computing.read(call, done)
            if found is not None:
                decoded.append(found)
                samples += found.batch.num_samples

    def _compute(self, decoded: list[Decoded]) -> None:
        self._computing.compute(decoded)


def batcher_of(options: SessionOptions) -> Batcher[tuple[Call, Done]]:
    """Return a queue of requests."""
    return Batcher(
        max_batch=options.max_batch,
        max_delay=options.max_delay,
        max_waiting=options.max_waiting,
    )
