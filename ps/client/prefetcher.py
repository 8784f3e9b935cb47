"""What a worker will pull, told to shards that have rows on disk, by connections of its own.

A shard reads from its disk as long as it takes, so what is said must not stand before pulls and
pushes on a connection, nor hold up who says it. Whatever can't be said at once is left out.
"""

import contextlib
import logging
import queue
import socket
import threading
import time
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from ps.client.client import Connect
from ps.client.deduplicate import Deduplicated
from ps.copies import Copies
from ps.messages.pull_push import MAX_PREFETCHED_KEYS, Prefetch
from ps.net.cancellation import CancelledError
from ps.net.sockets import send
from ps.routing import Routing

logger = logging.getLogger(__name__)

_WAITING = 2  # batches that are not sent yet; of others nothing is said
_AGAIN_SECONDS = 1.0  # until a shard that could not be reached is tried again
_SOCKET_BUFFER_BYTES = 1 << 18  # what lies there is late


class Prefetcher:
    """A thread that says what will be pulled; one thread tells it.

    Args:
        connect: opens an authenticated connection to a copy of a shard. A standby is told, too: it
            applies the same records.
        routing: by which batches are sliced.
        copies: of the shards.
        tables: of each table, whether some of it may be on disk.
        recovery_epoch: that the messages carry.
    """

    def __init__(
        self,
        connect: Connect,
        *,
        routing: Routing,
        copies: Copies,
        tables: Sequence[bool],
        recovery_epoch: int,
    ) -> None:
        self._connect = connect
        self._routing = routing
        self._copies = copies
        self._tables: npt.NDArray[np.bool_] = np.array(tables, np.bool_)
        self._recovery_epoch = recovery_epoch
        self._socks: dict[int, socket.socket] = {}
        self._not_before: dict[int, float] = {}
        self._waiting: queue.Queue[dict[int, Prefetch] | None] = queue.Queue(_WAITING)
        self._ended = False
        self._thread = threading.Thread(target=self._run, name="prefetcher", daemon=True)
        self._thread.start()

    def tell(self, unique: Deduplicated, *, batch_id: int, attempt: int) -> None:
        """Say which rows will be pulled, of a batch that is only evaluated with batch_id -1.

        What it needs of the batch is copied. Nothing is waited for.
        """
        if self._waiting.full():
            return
        messages = {}
        for shard in range(self._routing.num_shards):
            sizes = unique.sizes[shard]
            keys = unique.keys[unique.key_starts[shard] : unique.key_starts[shard + 1]]
            keys = keys[np.repeat(self._tables, sizes)]
            if 0 < keys.size <= MAX_PREFETCHED_KEYS:
                messages[shard] = Prefetch(
                    self._recovery_epoch,
                    self._routing.version,
                    batch_id,
                    attempt,
                    tuple((sizes * self._tables).tolist()),
                    keys,
                )
        with contextlib.suppress(queue.Full):  # it was closed meanwhile
            self._waiting.put_nowait(messages)

    def close(self) -> None:
        """End the thread; what was not sent is left out."""
        self._ended = True
        for sock in list(self._socks.values()):
            _shut(sock)
        with contextlib.suppress(queue.Full):  # it sees that it has ended with what waits
            self._waiting.put_nowait(None)
        self._thread.join(timeout=0.2)

    # The thread -------------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            while (messages := self._waiting.get()) is not None and not self._ended:
                for number in self._copies.numbers:
                    message = messages.get(self._copies.shard_of(number))
                    if message is not None:
                        self._send(number, message)
        except CancelledError:
            pass
        finally:
            for sock in self._socks.values():
                sock.close()

    def _send(self, number: int, message: Prefetch) -> None:
        now = time.monotonic()
        if self._ended or now < self._not_before.get(number, now):
            return
        try:
            sock = self._socks.get(number)
            if sock is None:
                sock = self._connect(number)
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SOCKET_BUFFER_BYTES)
                self._socks[number] = sock
            send(sock, message)
        except OSError as error:
            logger.debug("copy %d can't be told what will be pulled: %s", number, error)
            self._not_before[number] = time.monotonic() + _AGAIN_SECONDS
            sock = self._socks.pop(number, None)
            if sock is not None:
                sock.close()


def _shut(sock: socket.socket) -> None:
    with contextlib.suppress(OSError):  # it is gone already
        sock.shutdown(socket.SHUT_RDWR)
