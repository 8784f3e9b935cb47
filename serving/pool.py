"""Several sessions: each request goes to the one with the fewest."""

import threading
from collections.abc import Callable, Sequence
from typing import Protocol

from serving.batching import by_load
from serving.calls import Answer, Call
from serving.computing import Done
from serving.errors import OverloadError
from serving.loading import Loaded


class AnySession(Protocol):
    """A session in this process or in one of its own."""

    @property
    def alive(self) -> bool: ...

    def submit(self, call: Call, done: Done) -> None: ...

    def take(self, loaded: Loaded) -> None: ...

    def close(self) -> None: ...


class Pool:
    """Sessions that share nothing but the files of their versions."""

    def __init__(self, sessions: Sequence[AnySession]) -> None:
        self._sessions = list(sessions)
        self._loads = [0] * len(self._sessions)
        self._lock = threading.Lock()

    def submit(self, call: Call, done: Done) -> None:
        """Have a request computed by the session with the fewest that takes it.

        Raises:
            OverloadError: all have as many as may wait.
        """
        if len(self._sessions) == 1:
            self._sessions[0].submit(call, done)
            return
        with self._lock:
            order = by_load(self._loads)
        for last, number in zip([False] * (len(order) - 1) + [True], order, strict=True):
            with self._lock:
                self._loads[number] += 1
            try:
                self._sessions[number].submit(call, self._ended(number, done))
                return
            except OverloadError:
                self._end(number)
                if last:
                    raise

    def _ended(self, number: int, done: Done) -> Callable[[Answer], None]:
        def ended(answer: Answer) -> None:
            self._end(number)
            done(answer)

        return ended

    def _end(self, number: int) -> None:
        with self._lock:
            self._loads[number] -= 1

    def take(self, loaded: Loaded) -> None:
        """Have every session serve a version from its next batch on."""
        for session in self._sessions:
            session.take(loaded)

    @property
    def alive(self) -> bool:
        """Whether there is a session that computes."""
        return any(session.alive for session in self._sessions)

    def close(self) -> None:
        for session in self._sessions:
            session.close()
