"""Sends another copy of a shard what came after its cut, while the shard goes on.

The other copy gets what a standby gets: the contributions, and the records that name them.
"""

import socket
import threading
from collections.abc import Callable

from ps.messages.exchange import Refusal
from ps.messages.pull_push import Contribution
from ps.messages.records import Apply
from ps.net.sockets import receive, send
from ps.server.read_write_lock import ReadWriteLock
from ps.shard.journal import Journal
from ps.shard.shard import Shard

# Records that are sent before the answer to the first of them is read.
AT_ONCE = 16
PAUSE_SECONDS = 0.02
# The other copy hears of its shard so often, be there anything to say or not.
BEAT_SECONDS = 1.0


class CopyError(RuntimeError):
    """The other copy could not be brought to where the shard is."""


class JournalSender:
    """A thread that empties a shard's journal, until that is dropped or the copy fails.

    Args:
        shard: that has a journal which a copy has begun with.
        lock: of the shard.
        connect: opens an authenticated connection to the other copy.
    """

    def __init__(
        self, shard: Shard, lock: ReadWriteLock, connect: Callable[[], socket.socket]
    ) -> None:
        assert shard.journal is not None, "a copy has begun with it"
        self._shard = shard
        self._lock = lock
        self._connect = connect
        self._journal: Journal = shard.journal
        self._epoch = shard.recovery_epoch
        self._news = threading.Condition()
        self._reached = self._journal.begins  # by the other copy
        self._failure: BaseException | None = None
        self._is_connected = False
        self._ended = False
        self._thread = threading.Thread(target=self._run, name="copy", daemon=True)
        self._thread.start()

    def wait_until_near(self) -> int:
        """Wait until the other copy lacks little of what the shard has; return its step.

        Raises:
            CopyError: it failed.
        """
        return self._wait_until(lambda: len(self._journal) <= AT_ONCE, None)

    def wait_until_level(self, *, seconds: float) -> int:
        """Wait until the other copy has all that the shard has, which goes no further.

        Raises:
            CopyError: it failed, or takes longer.
        """
        return self._wait_until(lambda: self._reached >= self._shard.step, seconds)

    def _wait_until(self, there: Callable[[], bool], seconds: float | None) -> int:
        def is_over() -> bool:
            return self._ended or (self._is_connected and there() and not self._journal.is_over)

        with self._news:
            level = self._news.wait_for(is_over, seconds)
            if self._failure is not None:
                raise CopyError(f"a copy could not be made: {self._failure}") from self._failure
            if self._ended or not level:
                raise CopyError(f"a copy is at step {self._reached}, and does not come further")
            return self._reached

    def close(self) -> None:
        """Send no more."""
        with self._news:
            self._ended = True
            self._news.notify_all()

    # The thread -------------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            with self._connect() as sock:
                self._speak(sock)  # for the coordinator, which the other copy has yet to hear
                self._is_connected = True
                while not self._ended and self._shard.journal is self._journal:
                    if not self._send_some(sock):
                        self._beat(sock)
        except Exception as error:
            self._failure = error
        finally:
            self.close()

    def _send_some(self, sock: socket.socket) -> bool:
        """Send the oldest records of the journal; return whether there were any."""
        with self._lock.shared():
            if self._journal.is_over:
                raise CopyError(
                    f"what came since its cut has grown beyond {self._journal.max_bytes} bytes"
                    " (cluster.buffer_bytes)"
                )
            entries = self._journal.first(AT_ONCE)
        messages: list[Contribution | Apply] = []
        for applied in entries:
            messages += applied.contributions
            messages.append(Apply(0, applied.record.recovery_epoch, (applied.record,)))
        for message in messages:
            send(sock, message)
        for _ in messages:
            _check(receive(sock)[0])
        with self._lock.exclusive():
            self._journal.drop(len(entries))
        with self._news:
            if entries:
                self._reached = entries[-1].record.step + 1
            self._news.notify_all()
        return bool(entries)

    def _beat(self, sock: socket.socket) -> None:
        """Say that the shard is there, and wait a moment for something to say."""
        for _ in range(round(BEAT_SECONDS / PAUSE_SECONDS)):
            with self._news:
                self._news.wait_for(lambda: self._ended, PAUSE_SECONDS)
            if self._ended or self._shard.journal is not self._journal or len(self._journal):
                return
        self._speak(sock)

    def _speak(self, sock: socket.socket) -> None:
        assert self._epoch is not None, "it has a state"
        send(sock, Apply(0, self._epoch, ()))
        _check(receive(sock)[0])


def _check(reply: object) -> None:
    if isinstance(reply, Refusal):
        raise CopyError(reply.text)
