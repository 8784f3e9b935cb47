import socket
import threading
import time
from pathlib import Path

import pytest

from ps.net.cancellation import Cancellation, CancelledError
from ps.net.sockets import Address, connect


def test_who_waits_on_a_socket_wakes_and_no_other_is_taken_up() -> None:
    cancellation = Cancellation()
    ours, theirs = socket.socketpair()
    cancellation.hold(ours)
    threading.Timer(0.05, cancellation.set).start()

    assert ours.recv(1) == b"", "it would have waited for ever"

    with pytest.raises(CancelledError):
        cancellation.hold(theirs)
    with pytest.raises(CancelledError):
        cancellation.sleep(60.0)
    ours.close(), theirs.close()


def test_a_handshake_with_a_listener_that_hangs_ends(tmp_path: Path) -> None:
    cancellation = Cancellation()
    path = str(tmp_path / "socket")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(path)
        listener.listen()
        threading.Timer(0.05, cancellation.set).start()
        began = time.monotonic()

        with pytest.raises(ConnectionError):
            connect(Address("n", path), node_id="n", secret=b"x", cancellation=cancellation)

    assert time.monotonic() - began < 9.0, "a handshake may take 10 s"
