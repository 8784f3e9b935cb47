"""The side of the job: says which checkpoint is the newest, and gives pieces of its files.

Every follower has a thread here that answers one request after another. So there is one piece in
memory for each, however slow it is, and none of what it has not asked for.
"""

import contextlib
import re
import socket
import struct
import threading
import time

import numpy as np

from ps.messages.exchange import Refusal
from ps.messages.following import MAX_PIECE_BYTES, AwaitNewest, FetchPiece, Newest, Piece
from ps.messages.wire import WireError, decode_body
from ps.net.listener import Listener, Peer
from ps.net.sockets import receive_header, send
from runtime.places import Place, open_at

# How both ends call the listener in their proofs, wherever it is reached.
PUBLISHED = "checkpoints of a job"
MAX_FOLLOWERS = 64
# A follower that waits for the newest hears this often that it is still the one that it knows.
BEAT_SECONDS = 5.0
# One that takes nothing of an answer for so long is dropped: it comes back for what it lacks.
STALLED_SECONDS = 20

_FOLDER = re.compile(r"(full|delta)-\d{1,19}(-\d{1,9})?")
_PATH = re.compile(r"[A-Za-z0-9_][^\\\x00]{0,1023}")


class Publisher:
    """Lets followers in who know a secret.

    Args:
        checkpoints: where they are.
        secret: what followers have to prove that they know.
        host, port: where it listens; port 0: one that is free.

    Attributes:
        address: where it listens.

    Raises:
        OSError: it can't listen there.
    """

    def __init__(self, checkpoints: Place, *, secret: bytes, host: str, port: int) -> None:
        self._checkpoints = checkpoints
        self._newest = ""
        self._followers: dict[int, str] = {}  # what each has, by the number of its connection
        self._changed = threading.Condition()
        self._closing = False
        self._listener = Listener("publisher", secret=secret, serve=self._serve)
        try:
            self.address = self._listener.open_network(host, port, place=PUBLISHED)
        except BaseException:
            self._listener.close()
            raise

    def readable(self, name: str) -> None:
        """A checkpoint is there and the newest: every follower hears of it at once."""
        with self._changed:
            self._newest = name
            self._changed.notify_all()

    @property
    def followers(self) -> int:
        """How many are connected."""
        return len(self._followers)

    def close(self, *, patience: float = 0.0) -> None:
        """End all connections.

        Args:
            patience: seconds for which those that follow may fetch the newest before.
        """
        deadline = time.monotonic() + patience
        with self._changed:
            self._changed.wait_for(
                lambda: all(name == self._newest for name in self._followers.values()),
                max(0.0, deadline - time.monotonic()),
            )
            self._closing = True
            self._changed.notify_all()
        self._listener.close()

    def _serve(self, peer: Peer) -> None:
        with self._changed:
            if len(self._followers) >= MAX_FOLLOWERS:
                return
            self._followers[peer.number] = ""
        limit = struct.pack("@ll", STALLED_SECONDS, 0)
        peer.sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, limit)
        try:
            with contextlib.suppress(OSError):  # it is gone, or says what is no request
                while not self._closing:
                    header, _ = receive_header(peer.sock)
                    if header.kind not in (AwaitNewest, FetchPiece) or header.body_bytes:
                        raise WireError(f"a follower says {header.kind.__name__}")
                    request = decode_body(header, np.empty(0, np.uint8))
                    answer = self._answer(peer, request)
                    send(peer.sock, answer, when_stalled=_give_up)
        finally:
            with self._changed:
                del self._followers[peer.number]
                self._changed.notify_all()

    def _answer(self, peer: Peer, request: object) -> Newest | Piece | Refusal:
        if isinstance(request, AwaitNewest):
            return Newest(request.request_id, self._await(peer, request.known))
        assert isinstance(request, FetchPiece), "nothing else is received"
        return self._piece(request)

    def _await(self, peer: Peer, known: str) -> str:
        with self._changed:
            self._followers[peer.number] = known
            self._changed.notify_all()
            self._changed.wait_for(
                lambda: self._closing or self._newest != known, timeout=BEAT_SECONDS
            )
            return self._newest

    def _piece(self, request: FetchPiece) -> Piece | Refusal:
        number, parts = request.request_id, request.path.split("/")
        is_path = _PATH.fullmatch(request.path) and not {"", ".", ".."} & set(parts)
        if not is_path or not _FOLDER.fullmatch(request.checkpoint) or request.offset < 0:
            return Refusal(number, "malformed", "no file of a checkpoint is named so")
        place = self._checkpoints / request.checkpoint / request.path
        try:
            file = open_at(place)
            try:
                length = max(0, min(MAX_PIECE_BYTES, file.size - request.offset))
                data = file.read(request.offset, length) if length else b""
                return Piece(number, file.size, np.frombuffer(data, np.uint8))
            finally:
                file.close()
        except (OSError, ValueError) as error:
            return Refusal(number, "gone", f"{request.checkpoint}/{request.path}: {error}"[:1000])


def _give_up() -> None:
    raise TimeoutError(f"a follower took nothing for {STALLED_SECONDS} s")
