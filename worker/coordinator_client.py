"""The coordinator as a worker sees it: a socket on which a report is answered by a grant."""

import socket
import time
from collections.abc import Callable, Sequence

from ps.net.cancellation import Cancellation
from worker.control_wire import receive_grant, send_message
from worker.protocol import Grant, Report

_RETRY_PAUSE_SECONDS = 0.2
_LEAST_WAIT_SECONDS = 1.0  # for an answer
# A relay may take one part of so many of the time for an answer.
_WAYS = 4


class CoordinatorLostError(ConnectionError):
    """The coordinator could not be reached again in time."""


class CoordinatorClient:
    """Exchanges reports for grants; one thread uses it.

    A report whose answer did not come is sent again on a new connection: the coordinator knows it
    by its sequence and answers as before. So it does not matter which way it goes.

    Args:
        connect: opens an authenticated connection to the coordinator.
        retry_seconds: how long the coordinator may be out of reach, or leave a report unanswered.
        relays: open connections to relays, which are tried first, in this order. What fails is left
            for the next, and the coordinator, who comes last, for the first.
        cancellation: once it is set, an exchange ends with CancelledError.
    """

    def __init__(
        self,
        connect: Callable[[], socket.socket],
        *,
        retry_seconds: float,
        relays: Sequence[Callable[[], socket.socket]] = (),
        cancellation: Cancellation | None = None,
    ) -> None:
        self._ways = [*relays, connect]
        self._way = 0
        self._retry_seconds = retry_seconds
        self._cancellation = cancellation or Cancellation()
        self._sock: socket.socket | None = None

    def exchange(self, report: Report) -> Grant:
        """Deliver a report and return the answer; raises CoordinatorLostError."""
        lost_since: float | None = None
        while True:
            try:
                if self._sock is None:
                    self._sock = self._ways[self._way]()
                    self._cancellation.hold(self._sock)
                    self._sock.settimeout(self._patience)
                send_message(self._sock, report)
                return receive_grant(self._sock)
            except OSError as error:
                self.close()
                self._cancellation.check()
                now = time.monotonic()
                lost_since = now if lost_since is None else lost_since
                silent = isinstance(error, TimeoutError) and self._is_direct
                if silent or now - lost_since > self._retry_seconds:
                    raise CoordinatorLostError(
                        "the coordinator could not be reached for"
                        f" {self._retry_seconds:.0f} s: {error}"
                    ) from error
                if self._is_direct:
                    self._cancellation.sleep(_RETRY_PAUSE_SECONDS)
                self._way = (self._way + 1) % len(self._ways)

    def close(self) -> None:
        """Close the connection."""
        if self._sock is not None:
            self._sock.close()
            self._sock = None

    @property
    def _is_direct(self) -> bool:
        """Whether the way leads to the coordinator, and not to a relay."""
        return self._way == len(self._ways) - 1

    @property
    def _patience(self) -> float:
        """How long an answer may take: a relay that hangs is left while others have time."""
        seconds = max(self._retry_seconds, _LEAST_WAIT_SECONDS)
        return seconds if self._is_direct else max(seconds / _WAYS, _LEAST_WAIT_SECONDS)
