"""Sockets that let in peers who know the job's secret: a thread for each of them."""

import contextlib
import fcntl
import logging
import os
import shutil
import socket
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

from ps.net.sockets import Address, local_place, network_place, prove_as_server, tune

logger = logging.getLogger(__name__)

# Between two lines about connections that are refused.
TELL_SECONDS = 60.0

MAX_CONNECTIONS = 8192
# Peers in the handshake. Where they are as many, the one that is at it for longest makes place: an
# honest handshake takes milliseconds.
MAX_UNPROVEN = 64
ACCEPT_PAUSE_SECONDS = 0.2
_BACKLOG = 1024
_LOCK_NAME = "lock"
_PREFIX = "synchromesh-"
# A folder gets its name and its lock within milliseconds.
_UNNAMED_SECONDS = 600.0


class Peer:
    """One connection; `sending` is held by who writes to it, as several threads may.

    Only its own thread closes the descriptor: another one could be about to receive on it, and
    would then receive what a new connection with that number is sent.

    Attributes:
        place: the listener's end, as it is in proofs.
        name: that the peer gave itself; empty in the handshake.
    """

    def __init__(self, number: int, sock: socket.socket, place: str) -> None:
        self.number = number
        self.sock = sock
        self.place = place
        self.name = ""
        self.sending = threading.Lock()

    def shut(self) -> None:
        """End the connection, waking whoever waits on it; any thread may call it."""
        with contextlib.suppress(OSError):
            self.sock.shutdown(socket.SHUT_RDWR)


class Listener:
    """Listens on a local socket, and on a network socket once asked to.

    Args:
        name: of who listens, for its socket, its proofs and for messages.
        secret: what a peer must prove to know.
        serve: called with each peer, in a thread of its own; the connection ends when it returns.
        hands_over: whether `serve` hands each peer to somebody else, who drops it and closes its
            socket: then the thread ends, and not the connection.

    Attributes:
        path: of the local socket.
    """

    def __init__(
        self,
        name: str,
        *,
        secret: bytes,
        serve: Callable[[Peer], None],
        hands_over: bool = False,
    ) -> None:
        self._name = name
        self._hands_over = hands_over
        self._secret = secret
        self._serve = serve
        self._peers: dict[int, Peer] = {}
        self._unproven: dict[int, Peer] = {}  # in the order in which they came
        self._guard = threading.Condition()
        self._next_number = 0
        self._listeners: list[socket.socket] = []
        self._accepting: list[threading.Thread] = []
        self._closing = False
        self._refused, self._silent_until = 0, 0.0  # not told yet; of connections
        # Only this user may enter the directory, so only this user can reach the local socket.
        self._directory, self._lock = _make_directory()
        self.path = os.path.join(self._directory, name.replace(" ", "-"))
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        listener.bind(self.path)
        self._listen(listener, local_place(name, self.path))
        self._network: tuple[str, int] | None = None

    def open_network(
        self, host: str, port: int = 0, *, place: str | None = None
    ) -> tuple[str, int]:
        """Listen on an address of this node too, for peers on other nodes; idempotent.

        Args:
            port: 0: one that is free.
            place: how both ends call it in their proofs, where peers may reach it by another
                address than this one; None: by this.
        """
        if self._network is None:
            listener = socket.create_server((host, port))
            self._network = (host, listener.getsockname()[1])
            self._listen(listener, place or network_place(self._name, *self._network))
        return self._network

    def address(self, node_id: str) -> Address:
        """Return where peers find it, from the node that it runs on or from others."""
        host, port = self._network or (None, None)
        return Address(node_id, self.path, host, port, name=self._name)

    def peer(self, number: int) -> Peer | None:
        """Return a peer that is still connected."""
        return self._peers.get(number)

    @property
    def peers(self) -> list[Peer]:
        return list(self._peers.values())

    def drop(self, peer: Peer) -> None:
        """End a connection and forget it; idempotent. Its thread closes it."""
        self._forget(peer)
        peer.shut()

    def close(self) -> None:
        """Stop listening and drop all connections; their threads end by themselves."""
        with self._guard:
            if self._closing:
                return
            self._closing = True
            peers = [*self._peers.values(), *self._unproven.values()]
            self._guard.notify_all()
        for listener in self._listeners:
            with contextlib.suppress(OSError):
                listener.shutdown(socket.SHUT_RDWR)
        for peer in peers:
            peer.shut()
        for thread in self._accepting:
            thread.join(timeout=5.0)
        shutil.rmtree(self._directory, ignore_errors=True)
        os.close(self._lock)

    def _listen(self, listener: socket.socket, place: str) -> None:
        listener.listen(_BACKLOG)
        self._listeners.append(listener)
        thread = threading.Thread(target=self._accept, args=(listener, place), daemon=True)
        self._accepting.append(thread)
        thread.start()

    def _accept(self, listener: socket.socket, place: str) -> None:
        with listener:
            while not self._closing:
                try:
                    sock, _ = listener.accept()
                except OSError as error:
                    self._cannot(error)
                    continue
                peer = self._admit(sock, place)
                if peer is None:
                    sock.close()
                    continue
                try:
                    threading.Thread(target=self._run, args=(peer,), daemon=True).start()
                except RuntimeError as error:  # no more threads; the peer tries again
                    self._forget(peer)
                    sock.close()
                    self._cannot(error)

    def _cannot(self, error: Exception) -> None:
        """Tell why a connection was not taken (or say nothing, in the end) and let time pass."""
        if not self._closing:  # too many open files or threads, or the peer is gone again
            logger.warning("%s can't accept a connection: %s", self._name, error)
            time.sleep(ACCEPT_PAUSE_SECONDS)

    def _admit(self, sock: socket.socket, place: str) -> Peer | None:
        """Give a new connection its place among those in the handshake."""
        with self._guard:
            if len(self._unproven) >= MAX_UNPROVEN:
                self._guard.wait_for(
                    lambda: self._closing or len(self._unproven) < MAX_UNPROVEN,
                    ACCEPT_PAUSE_SECONDS,
                )
            if self._closing:
                return None
            if len(self._unproven) >= MAX_UNPROVEN:
                oldest = self._unproven.pop(next(iter(self._unproven)))
                oldest.shut()
            peer = Peer(self._next_number, sock, place)
            self._next_number += 1
            self._unproven[peer.number] = peer
            return peer

    def _forget(self, peer: Peer) -> None:
        with self._guard:
            self._peers.pop(peer.number, None)
            self._unproven.pop(peer.number, None)
            self._guard.notify()

    def _run(self, peer: Peer) -> None:
        handed_over = False
        try:
            if self._handshake(peer):
                self._serve(peer)
                handed_over = self._hands_over
        finally:
            if not handed_over:
                self.drop(peer)
                peer.sock.close()

    def _handshake(self, peer: Peer) -> bool:
        try:
            peer.name = prove_as_server(peer.sock, self._secret, peer.place)
            tune(peer.sock)
            self._welcome(peer)
        except OSError as error:
            self._tell_refused(error)
            return False
        return True

    def _tell_refused(self, error: OSError) -> None:
        """Say so, but not each time: whoever can connect could fill the log."""
        with self._guard:
            self._refused += 1
            now = time.monotonic()
            if self._closing or now < self._silent_until:
                return
            count, self._refused = self._refused, 0
            self._silent_until = now + TELL_SECONDS
        more = f" (and {count - 1} more since the last time)" if count > 1 else ""
        logger.warning("%s refused a connection: %s%s", self._name, error, more)

    def _welcome(self, peer: Peer) -> None:
        """Let a peer that proved itself leave its place to others; raises ConnectionError."""
        with self._guard:
            if self._unproven.pop(peer.number, None) is None:
                raise ConnectionError("it had to make place for another one")
            self._guard.notify()
            if self._closing or len(self._peers) >= MAX_CONNECTIONS:
                raise ConnectionError(f"there are {len(self._peers)} connections already")
            self._peers[peer.number] = peer


def _make_directory() -> tuple[str, int]:
    """Make a folder and hold its lock; remove those whose lock nobody holds any more.

    A lock and not a process id says who is alive: ids mean nothing in another container that shares
    the temporary folder.

    Returns:
        The folder, and the descriptor that holds the lock.
    """
    parent = Path(tempfile.gettempdir())
    # A Unix socket's path is limited to about 100 bytes; temporary folders can be longer.
    if len(str(parent)) >= 60:
        parent = Path("/tmp")
    for old in parent.glob(f"{_PREFIX}*"):
        _remove_if_abandoned(old)
    for old in parent.glob(f".{_PREFIX}*"):
        _remove_if_never_named(old)
    # It gets the name that others look for once the lock is held.
    new = tempfile.mkdtemp(prefix=f".{_PREFIX}", dir=parent)
    lock = os.open(os.path.join(new, _LOCK_NAME), os.O_RDWR | os.O_CREAT, 0o600)
    fcntl.flock(lock, fcntl.LOCK_EX)
    directory = str(parent / os.path.basename(new).removeprefix("."))
    os.rename(new, directory)
    return directory, lock


def _remove_if_never_named(directory: Path) -> None:
    """Remove a folder whose maker was killed before it had its lock and its name."""
    try:
        found = directory.stat()
        if found.st_uid == os.getuid() and time.time() - found.st_mtime > _UNNAMED_SECONDS:
            shutil.rmtree(directory, ignore_errors=True)
    except OSError:
        pass  # somebody else was faster


def _remove_if_abandoned(directory: Path) -> None:
    try:
        lock = os.open(directory / _LOCK_NAME, os.O_RDWR)
    except OSError:
        return  # of another user, or none of ours
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        shutil.rmtree(directory, ignore_errors=True)
    except OSError:
        pass  # its owner lives
    finally:
        os.close(lock)
