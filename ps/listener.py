"""Sockets that let in peers who know the job's secret: a thread for each of them."""

import contextlib
import logging
import os
import shutil
import socket
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

import psutil

from ps.sockets import HANDSHAKE_TIMEOUT_SECONDS, Address, prove_as_server, tune

logger = logging.getLogger(__name__)

MAX_CONNECTIONS = 8192
ACCEPT_PAUSE_SECONDS = 0.2
_PREFIX = "synchromesh-"


class Peer:
    """One connection; `sending` is held by who writes to it, as several threads may."""

    def __init__(self, number: int, sock: socket.socket) -> None:
        self.number = number
        self.sock = sock
        self.sending = threading.Lock()

    def close(self) -> None:
        """Close the socket, waking whoever waits on it."""
        with contextlib.suppress(OSError):
            self.sock.shutdown(socket.SHUT_RDWR)
        self.sock.close()


class Listener:
    """Listens on a local socket, and on a network socket once asked to.

    Args:
        name: of who listens, for its socket and for messages.
        secret: what a peer must prove to know.
        serve: called with each peer, in a thread of its own; the connection ends when it returns.

    Attributes:
        path: of the local socket.
    """

    def __init__(self, name: str, *, secret: bytes, serve: Callable[[Peer], None]) -> None:
        self._name = name
        self._secret = secret
        self._serve = serve
        # From the moment they are accepted, so that those in the handshake are counted too.
        self._peers: dict[int, Peer] = {}
        self._guard = threading.Lock()
        self._next_number = 0
        self._listeners: list[socket.socket] = []
        self._closing = False
        # Only this user may enter the directory, so only this user can reach the local socket.
        self._directory = _make_directory()
        self.path = os.path.join(self._directory, name.replace(" ", "-"))
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        listener.bind(self.path)
        self._listen(listener)
        self._network: tuple[str, int] | None = None

    def open_network(self, host: str) -> tuple[str, int]:
        """Listen on an address of this node too, for peers on other nodes; idempotent."""
        if self._network is None:
            listener = socket.create_server((host, 0))
            self._network = (host, listener.getsockname()[1])
            self._listen(listener)
        return self._network

    def address(self, node_id: str) -> Address:
        """Return where peers find it, from the node that it runs on or from others."""
        return Address(node_id, self.path, *(self._network or (None, None)))

    def peer(self, number: int) -> Peer | None:
        """Return a peer that is still connected."""
        return self._peers.get(number)

    @property
    def peers(self) -> list[Peer]:
        return list(self._peers.values())

    def drop(self, peer: Peer) -> None:
        """Close a connection and forget it; idempotent."""
        with self._guard:
            self._peers.pop(peer.number, None)
        peer.close()

    def close(self) -> None:
        """Stop listening and drop all connections; their threads end by themselves."""
        with self._guard:
            self._closing = True
            peers = list(self._peers.values())
        for listener in self._listeners:
            with contextlib.suppress(OSError):
                listener.shutdown(socket.SHUT_RDWR)
            listener.close()
        for peer in peers:
            peer.close()
        shutil.rmtree(self._directory, ignore_errors=True)

    def _listen(self, listener: socket.socket) -> None:
        listener.listen(128)
        self._listeners.append(listener)
        threading.Thread(target=self._accept, args=(listener,), daemon=True).start()

    def _accept(self, listener: socket.socket) -> None:
        while not self._closing:
            try:
                sock, _ = listener.accept()
            except OSError as error:
                if not self._closing:  # too many open files, or the peer is gone again
                    logger.warning("%s can't accept: %s", self._name, error)
                    time.sleep(ACCEPT_PAUSE_SECONDS)
                continue
            peer = self._admit(sock)
            if peer is None:
                sock.close()
            else:
                threading.Thread(target=self._run, args=(peer,), daemon=True).start()

    def _admit(self, sock: socket.socket) -> Peer | None:
        with self._guard:
            if self._closing or len(self._peers) >= MAX_CONNECTIONS:
                return None
            peer = Peer(self._next_number, sock)
            self._next_number += 1
            self._peers[peer.number] = peer
            return peer

    def _run(self, peer: Peer) -> None:
        try:
            if self._handshake(peer.sock):
                self._serve(peer)
        finally:
            self.drop(peer)

    def _handshake(self, sock: socket.socket) -> bool:
        try:
            sock.settimeout(HANDSHAKE_TIMEOUT_SECONDS)
            prove_as_server(sock, self._secret)
            tune(sock)
        except OSError as error:
            if not self._closing:
                logger.warning("%s refused a connection: %s", self._name, error)
            return False
        return True


def _make_directory() -> str:
    """Make a folder that names its process, and remove those of processes that were killed."""
    parent = Path(tempfile.gettempdir())
    # A Unix socket's path is limited to about 100 bytes; temporary folders can be longer.
    if len(str(parent)) >= 60:
        parent = Path("/tmp")
    for old in parent.glob(f"{_PREFIX}*-*"):
        pid = old.name.removeprefix(_PREFIX).partition("-")[0]
        if pid.isdigit() and not psutil.pid_exists(int(pid)):
            shutil.rmtree(old, ignore_errors=True)
    return tempfile.mkdtemp(prefix=f"{_PREFIX}{os.getpid()}-", dir=parent)
