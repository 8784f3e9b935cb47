"""The socket shell of a shard: one thread a connection, many readers or one writer at a time.

A connection's thread receives its requests one after another, makes their replies and writes them.
Pulls read side by side; what only buffers (pushes, pulls that have to wait) goes on beside them,
one at a time; records are applied alone. A pull that had to wait is handed back to its connection's
thread once its step is reached. Replies that are made and not yet written take a bounded number of
bytes: the next one is made when one of them has gone out.
"""

import contextlib
import dataclasses
import logging
import math
import os
import select
import signal
import socket
import struct
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator

from ps.messages.exchange import Refusal, Reply, Request
from ps.messages.pull_push import Contribution, Prefetch, Pull
from ps.messages.records import Apply, ApplyReply, DenseNorm, Freeze
from ps.messages.wire import WireError
from ps.net.listener import Listener, Peer
from ps.net.sockets import COORDINATOR, receive, send
from ps.net.wake import Wake
from ps.server.byte_budget import ByteBudget
from ps.server.read_write_lock import ReadWriteLock
from ps.shard.lease import CoordinatorLease
from ps.shard.prefetching import prefetch
from ps.shard.shard import Outgoing, Shard
from runtime.fingerprint import check_float_mode
from runtime.stage_times import StageTimes

logger = logging.getLogger(__name__)

STALLED_SECONDS = 20
_PREFETCHED_AT_ONCE = 1024  # keys: for so long, some milliseconds, a record may have to wait
_STAGES: dict[type[Request], str] = {Pull: "pull", Contribution: "push", Apply: "apply"}


class _Connection:
    """A peer, and its pulls that need wait no longer: any thread adds, its own takes."""

    def __init__(self, peer: Peer) -> None:
        self.peer = peer
        self.since = time.monotonic()
        self.ready: deque[Pull] = deque()
        self.wake = Wake()


class DataPlane:
    """Serves one shard on a local socket, and on a network socket once asked to.

    Args:
        shard: the state machine.
        lock: held exclusively where the shard's state is changed, shared where it is read.
        secret: what a peer must prove to know.
        compress: whether replies are compressed.
        max_reply_bytes: of replies to pulls that are made and not yet written. A peer that takes
            nothing of its reply for `STALLED_SECONDS` while others wait loses its connection.
        on_error: called with an exception that nobody else would see.
        lease_seconds: the coordinator has to be heard within so many, else pulls and pushes are
            refused until it is, see `CoordinatorLease`; None: it need not.
        any_float_mode: whether records are applied in an unusual float mode too.
        dies_at_step: the process kills itself, on purpose, once the shard has reached that step;
            the message that led there is not answered.
    """

    def __init__(
        self,
        shard: Shard,
        *,
        lock: ReadWriteLock,
        secret: bytes,
        compress: bool = False,
        max_reply_bytes: int = 1 << 28,
        on_error: Callable[[BaseException], None] | None = None,
        lease_seconds: float | None = None,
        any_float_mode: bool = False,
        dies_at_step: int | None = None,
    ) -> None:
        self.shard = shard
        self.lock = lock
        self.bytes_sent = 0
        self.bytes_received = 0
        self.replies = ByteBudget(max_reply_bytes)
        self._times = StageTimes(*_STAGES.values(), "prefetch", "other", "send", "idle")
        self._num_handled = 0  # messages in work
        self._changed_ns = time.perf_counter_ns()  # when that became none, or any
        self._compress = compress
        self._on_error = on_error
        self._lease = CoordinatorLease(lease_seconds)
        self._any_float_mode = any_float_mode
        self._dies_at_step = dies_at_step
        self._guard = threading.Lock()  # of figures and connections
        self._buffering = threading.Lock()  # of what changes beside reads; the lock is held too
        self._connections: dict[int, _Connection] = {}
        self.listener = Listener(f"shard {shard.index}", secret=secret, serve=self._serve)

    def stage_seconds(self) -> dict[str, float]:
        """Return the seconds since the start by what the shard did.

        `pull`, `push` (taking a contribution into the buffer), `apply`, `prefetch` and `other`
        messages, each in any number of threads; `idle`: none of them. `send` is the time of
        writing replies, so it overlaps the others.
        """
        with self._guard:
            if self._num_handled == 0:
                self._count_idle()
            return self._times.seconds()

    def close(self) -> None:
        """Stop listening and drop all connections; their threads end by themselves."""
        self.listener.close()

    def hand_back(self) -> None:
        """Let waiting pulls whose step is reached be answered; the lock is held exclusively."""
        for sender, pull in self.shard.take_ready():
            assert isinstance(sender, int)
            with self._guard:
                connection = self._connections.get(sender)
            if connection is not None:
                connection.ready.append(pull)
                connection.wake.set()

    # A connection's thread --------------------------------------------------------------------

    def _serve(self, peer: Peer) -> None:
        try:
            connection = _Connection(peer)
        except OSError as error:  # too many open files; the peer tries again
            logger.warning("shard %d drops a connection: %s", self.shard.index, error)
            return
        with self._guard:
            self._connections[peer.number] = connection
        try:
            with self._failures_told():  # before the peer may come again
                for message in self._requests(connection):
                    self._answer(message, peer)
        finally:
            with self._failures_told():
                self._drop(connection)

    def _requests(self, connection: _Connection) -> Iterator[Request]:
        """Yield what the peer asks, new or after it had to wait, until it is gone."""
        sock, wake = connection.peer.sock, connection.wake
        # A write that the peer takes nothing of returns now and then, see `_write`.
        limit = struct.pack("@ll", STALLED_SECONDS, 0)
        poll = select.poll()
        try:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, limit)
            poll.register(sock, select.POLLIN)
            poll.register(wake.sock, select.POLLIN)
        except (OSError, ValueError):
            return  # closed meanwhile
        own = wake.sock.fileno()
        while True:
            events = poll.poll()
            if any(descriptor == own for descriptor, _ in events):
                wake.clear()
            while connection.ready:
                yield connection.ready.popleft()
            if all(descriptor == own for descriptor, _ in events):
                continue
            message = self._receive(connection.peer)
            if message is None or self._is_late(message, connection):
                return  # the peer resends what it still wants on a new connection
            if isinstance(message, Prefetch):
                self._prefetch(message)
            else:
                yield message

    def _receive(self, peer: Peer) -> Request | Prefetch | None:
        """Return the next message; None where the peer is gone or sends what is none."""
        try:
            message, nbytes = receive(peer.sock)
            if not isinstance(message, Request | Prefetch):
                raise WireError(f"a {type(message).__name__} is no request")
        except WireError as error:
            logger.warning("shard %d drops a connection: %s", self.shard.index, error)
            return None
        except OSError:
            return None
        with self._guard:
            self.bytes_received += nbytes
        return message

    def _prefetch(self, message: Prefetch) -> None:
        """Read what is on disk, a little at a time: a record that comes goes first."""
        for start in range(0, message.keys.size, _PREFETCHED_AT_ONCE):
            with self.lock.shared(), self._measure("prefetch"):
                if not prefetch(self.shard, message, start, start + _PREFETCHED_AT_ONCE):
                    return

    def _answer(self, message: Request, peer: Peer) -> None:
        if isinstance(message, Pull):
            # Held until it is written; asked for before the lock, so that no write waits for it.
            with self.replies.hold(self.shard.reply_bytes(message)):
                self._write(self._handle(message, peer), peer)
        else:
            self._write(self._handle(message, peer), peer)

    def _handle(self, message: Request, peer: Peer) -> Reply | None:
        if isinstance(message, Apply):
            return self._apply(message, peer)
        if isinstance(message, Freeze):
            with self.lock.exclusive(), self._measure("other"):
                return self._of_coordinator(message, peer)
        with self.lock.shared(), self._measure(_STAGES.get(type(message), "other")):
            if isinstance(message, DenseNorm):
                with self._buffering:
                    return self._of_coordinator(message, peer)
            # Under the lock: whoever waited for it, while records were applied, has heard of them.
            unheard = self._unheard(message)
            if unheard is not None:
                return unheard
            if isinstance(message, Pull):
                reply = self.shard.answer(message)
                if reply is not None:
                    return reply
            with self._buffering:
                return _only(self.shard.handle(message, peer.number))

    def _of_coordinator(self, message: Apply | Freeze | DenseNorm, peer: Peer) -> Reply | None:
        """Do what only the coordinator asks: one of this recovery epoch has then been heard."""
        try:
            return _only(self.shard.handle(message, peer.number))
        finally:
            if message.recovery_epoch == self.shard.recovery_epoch:
                self._lease.heard(message.recovery_epoch, time.monotonic())

    def _is_late(self, message: Request | Prefetch, connection: _Connection) -> bool:
        """Whether it is of the coordinator, and may have lain unread for longer than its lease.

        A coordinator that is there connects again, and so proves that it is; one that was replaced
        while this process was frozen does not.
        """
        if (
            isinstance(message, Pull | Contribution | Prefetch)
            or connection.peer.name != COORDINATOR
        ):
            return False
        return self._lease.is_late(message.recovery_epoch, connection.since, time.monotonic())

    def _unheard(self, message: Pull | Contribution) -> Refusal | None:
        """Refuse what comes while the coordinator is silent for too long."""
        epoch = message.recovery_epoch
        if epoch != self.shard.recovery_epoch:
            return None  # the shard has more to say to that
        silent = self._lease.silence(epoch, time.monotonic())
        if silent is None:
            return None
        since = f"for {silent:.0f} s" if silent < math.inf else f"of recovery epoch {epoch} yet"
        text = f"shard {self.shard.index} has heard no coordinator {since}"
        return Refusal(message.request_id, "unheard", text)

    def _apply(self, message: Apply, peer: Peer) -> Reply | None:
        """Apply the records of a message; readers get their turn after each."""
        if not self._any_float_mode:
            check_float_mode()
        reply: Reply | None = None
        for number in range(max(len(message.records), 1)):
            one = dataclasses.replace(message, records=message.records[number : number + 1])
            with self.lock.exclusive(), self._measure("apply"):
                try:
                    reply = self._of_coordinator(one, peer)
                    self._die_if_due()
                finally:
                    self.hand_back()  # of a dead shard, too: who waits is to hear of it
            if not isinstance(reply, ApplyReply):
                break
        return reply

    def _die_if_due(self) -> None:
        if self._dies_at_step is not None and self.shard.step >= self._dies_at_step:
            os.kill(os.getpid(), signal.SIGKILL)

    def _write(self, reply: Reply | None, peer: Peer) -> None:
        """Write a reply, as fast as the peer takes it."""
        if reply is None:
            return
        began = time.perf_counter_ns()
        try:
            sent = send(peer.sock, reply, compress=self._compress, when_stalled=self._stalled)
        except OSError as error:
            if isinstance(error, TimeoutError):
                logger.warning("shard %d drops a connection: %s", self.shard.index, error)
            self.listener.drop(peer)  # so the thread finds that it is gone
        else:
            with self._guard:
                self.bytes_sent += sent
                self._times.add("send", time.perf_counter_ns() - began)

    def _stalled(self) -> None:
        if self.replies.is_short:
            raise TimeoutError(
                f"its peer took nothing of a reply for {STALLED_SECONDS} s while others wait"
            )

    def _drop(self, connection: _Connection) -> None:
        number = connection.peer.number
        self.listener.drop(connection.peer)
        with self._guard:
            self._connections.pop(number, None)
        connection.wake.close()
        with self.lock.shared(), self._buffering:
            self.shard.disconnect(number)

    # Figures ----------------------------------------------------------------------------------

    @contextlib.contextmanager
    def _measure(self, stage: str) -> Iterator[None]:
        """Add the time that the block takes to a stage, and to `idle` what went before it."""
        began = time.perf_counter_ns()
        with self._guard:
            if self._num_handled == 0:
                self._count_idle()
            self._num_handled += 1
        try:
            yield
        finally:
            with self._guard:
                self._num_handled -= 1
                self._changed_ns = time.perf_counter_ns()
                self._times.add(stage, self._changed_ns - began)

    def _count_idle(self) -> None:
        now = time.perf_counter_ns()
        self._times.add("idle", now - self._changed_ns)
        self._changed_ns = now

    @contextlib.contextmanager
    def _failures_told(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            logger.error("shard %d failed at a connection", self.shard.index, exc_info=error)
            if self._on_error is not None:
                self._on_error(error)


def _only(outgoing: list[Outgoing]) -> Reply | None:
    """Return the reply to a message, where it has one yet."""
    return outgoing[0].reply if outgoing else None
