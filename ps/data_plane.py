"""The socket shell of a shard: one thread a connection, one lock around the state machine."""

import logging
import os
import signal
import threading
import time
from collections.abc import Callable

from ps.listener import Listener, Peer
from ps.messages import Apply, Contribution, Pull, Reply, Request
from ps.shard import Outgoing, Shard
from ps.sockets import receive, send
from ps.stage_times import StageTimes
from ps.wire import WireError

logger = logging.getLogger(__name__)

_STAGES: dict[type[Request], str] = {Pull: "pull", Contribution: "push", Apply: "apply"}


class DataPlane:
    """Serves one shard on a local socket, and on a network socket once asked to.

    Args:
        shard: the state machine.
        lock: held around every use of the shard, by others too.
        secret: what a peer must prove to know.
        compress: whether replies are compressed.
        on_error: called with an exception that nobody else would see.
        dies_at_step: the process kills itself, on purpose, once the shard has reached that step;
            the message that led there is not answered.
    """

    def __init__(
        self,
        shard: Shard,
        *,
        lock: threading.Lock,
        secret: bytes,
        compress: bool = False,
        on_error: Callable[[BaseException], None] | None = None,
        dies_at_step: int | None = None,
    ) -> None:
        self.shard = shard
        self.lock = lock
        self.bytes_sent = 0
        self.bytes_received = 0
        self._times = StageTimes(*_STAGES.values(), "other", "send")
        self._begun_ns = time.perf_counter_ns()
        self._compress = compress
        self._on_error = on_error
        self._dies_at_step = dies_at_step
        self._guard = threading.Lock()  # of what was sent
        self.listener = Listener(f"shard {shard.index}", secret=secret, serve=self._serve)

    def stage_seconds(self) -> dict[str, float]:
        """Return the seconds since the start by what the shard did; the lock is held.

        `pull`, `push` (taking a contribution into the buffer), `apply` and `other` messages;
        `idle`: none of them. `send` is the time of writing replies, in any thread, so it overlaps
        the others.
        """
        seconds = self._times.seconds()
        handling = sum(seconds.values()) - seconds["send"]
        elapsed = (time.perf_counter_ns() - self._begun_ns) / 1e9
        return {**seconds, "idle": elapsed - handling}

    def close(self) -> None:
        """Stop listening and drop all connections; their threads end by themselves."""
        self.listener.close()

    def _serve(self, peer: Peer) -> None:
        try:
            while (received := self._receive(peer)) is not None:
                message, nbytes = received
                with self.lock:
                    self.bytes_received += nbytes
                    with self._times.measure(_STAGES.get(type(message), "other")):
                        outgoing = self.shard.handle(message, peer.number)
                    self._die_if_due()
                self._deliver(outgoing, peer)
        except Exception as error:
            self._fail(error)
        finally:
            self._drop(peer)

    def _die_if_due(self) -> None:
        if self._dies_at_step is not None and self.shard.step >= self._dies_at_step:
            os.kill(os.getpid(), signal.SIGKILL)

    def _receive(self, peer: Peer) -> tuple[Request, int] | None:
        """Return the next request; None where the peer is gone or sends what is none."""
        try:
            message, nbytes = receive(peer.sock)
            if not isinstance(message, Request):
                raise WireError(f"a {type(message).__name__} is no request")
        except WireError as error:
            logger.warning("shard %d drops a connection: %s", self.shard.index, error)
            return None
        except OSError:
            return None  # the peer resends what it still wants on a new connection
        return message, nbytes

    def _deliver(self, outgoing: list[Outgoing], own: Peer) -> None:
        """Send replies; one for another peer gets a thread: that peer may not read for long."""
        for out in outgoing:
            assert isinstance(out.to, int)
            peer = self.listener.peer(out.to)
            if peer is own:
                self._send(peer, out.reply)
            elif peer is not None:
                threading.Thread(target=self._send, args=(peer, out.reply), daemon=True).start()

    def _send(self, peer: Peer, reply: Reply) -> None:
        began = time.perf_counter_ns()
        try:
            with peer.sending:
                sent = send(peer.sock, reply, compress=self._compress)
        except OSError:
            self._drop(peer)
        except Exception as error:
            self._drop(peer)
            self._fail(error)
        else:
            with self._guard:
                self.bytes_sent += sent
                self._times.add("send", time.perf_counter_ns() - began)

    def _fail(self, error: Exception) -> None:
        logger.error("shard %d failed at a message", self.shard.index, exc_info=error)
        if self._on_error is not None:
            self._on_error(error)

    def _drop(self, peer: Peer) -> None:
        self.listener.drop(peer)
        with self.lock:
            self.shard.disconnect(peer.number)
