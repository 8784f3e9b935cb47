"""The side of a follower: a connection to a publisher, by which a mirror is kept."""

import contextlib
import itertools
import socket
import time
from pathlib import Path
from typing import TypeVar

from ps.following.folder import KeptFolder, facts_of
from ps.following.mirror import GoneError, Mirror
from ps.following.publisher import PUBLISHED
from ps.messages.exchange import Following, Refusal
from ps.messages.following import MAX_PIECE_BYTES, AwaitNewest, FetchPiece, Newest, Piece
from ps.messages.wire import WireError
from ps.net.sockets import HANDSHAKE_TIMEOUT_SECONDS, prove_as_client, receive, send, tune

A = TypeVar("A", Newest, Piece)


class Follower:
    """Keeps the newest checkpoints of a job in a folder, as they come.

    A connection that is lost is an OSError: make another follower, for the same folder.

    Args:
        host, port: where the job publishes its checkpoints.
        secret: that both know.
        folder: of this machine, which nobody else writes to.

    Raises:
        OSError: nobody listens there, or knows the secret; or the folder can't be written.
    """

    def __init__(self, host: str, port: int, *, secret: bytes, folder: Path) -> None:
        self._kept = KeptFolder(folder)
        self._numbers = itertools.count(1)
        self._has = ""
        sock = socket.create_connection((host, port), HANDSHAKE_TIMEOUT_SECONDS)
        try:
            deadline = time.monotonic() + HANDSHAKE_TIMEOUT_SECONDS
            prove_as_client(sock, secret, PUBLISHED, "follower", deadline=deadline)
            tune(sock)
            self._sock = sock
            self._mirror = Mirror(self, self._kept, facts_of)
        except BaseException:
            sock.close()
            raise

    def step(self) -> str | None:
        """Wait a while for a newer checkpoint than it has, and bring it; return its name.

        Returns:
            None where none came, or where it went while it was fetched: to be asked again.

        Raises:
            OSError: the connection is lost, or the folder can't be written.
            CheckpointError, ValueError: a manifest is damaged.
        """
        newest = self._ask(AwaitNewest(next(self._numbers), self._has), Newest).name
        if newest in ("", self._has):
            return None
        try:
            self._mirror.bring(newest)
        except GoneError:
            return None
        finally:
            self._kept.give_up()
        self._has = newest
        return newest

    def piece(self, checkpoint: str, path: str, offset: int) -> tuple[int, bytes]:
        """Return how long a file is, and some of it; raises GoneError, OSError."""
        piece = self._ask(FetchPiece(next(self._numbers), checkpoint, path, offset), Piece)
        if piece.data.nbytes > MAX_PIECE_BYTES:
            raise WireError(f"a piece of {piece.data.nbytes} bytes")
        return piece.size, piece.data.tobytes()

    def close(self) -> None:
        """End the connection, also for a thread that waits on it."""
        with contextlib.suppress(OSError):
            self._sock.shutdown(socket.SHUT_RDWR)
        self._sock.close()

    def _ask(self, request: Following, answer: type[A]) -> A:
        send(self._sock, request)
        found, _ = receive(self._sock)
        if isinstance(found, Refusal):
            raise GoneError(found.text)
        if not isinstance(found, answer) or found.request_id != request.request_id:
            raise WireError(f"the publisher answers {type(request).__name__} otherwise")
        return found
