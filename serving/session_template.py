"""The process that sessions are forked from, so that what they are made of is in memory once.

Python, its libraries and compiled kernels take 100 MB; of a session that is forked from a process
that has them all, a fifth is its own. The server itself can't be forked: it has threads.
"""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
import traceback
from pathlib import Path

from serving.errors import ServingError
from serving.interpreter import keep_pauses_short
from serving.loading import Loader

_PID_BYTES = 8


class SessionTemplate:
    """The server's side: starts the process, again where it has died, and has it fork.

    Any thread may ask.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._control: socket.socket | None = None

    def fork(self, theirs: socket.socket, version: Path) -> int:
        """Have a session forked that talks over a socket; return the number of its process.

        Args:
            theirs: the session's end; the caller may close it afterwards.
            version: folder of the form with which a new template loads its kernels.

        Raises:
            ServingError: there is no process to fork from.
        """
        with self._lock:
            if self._process is None or self._process.poll() is not None:
                self._start(version)
            assert self._control is not None, "started"
            try:
                socket.send_fds(self._control, [b"f"], [theirs.fileno()])
                found = self._control.recv(_PID_BYTES, socket.MSG_WAITALL)
            except OSError as error:
                raise ServingError(f"a session can't be forked: {error}") from error
            if len(found) != _PID_BYTES:
                raise ServingError("the process that sessions are forked from has ended")
            return int.from_bytes(found, "little")

    def _start(self, version: Path) -> None:
        self._end()
        ours, theirs = socket.socketpair()
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "serving.session_template", str(theirs.fileno()), version],
                pass_fds=[theirs.fileno()],
                env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
                stdin=subprocess.DEVNULL,
            )
        self._control = ours

    def _end(self) -> None:
        if self._control is not None:
            self._control.close()
        if self._process is not None:
            self._process.wait()

    def close(self) -> None:
        """End the process; sessions go on."""
        with self._lock:
            self._end()


def main(descriptor: int, version: Path) -> None:
    """Fork a session for each socket that comes, until the server closes its end."""
    from serving.session_process import main as run_session

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the server ends its sessions itself
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody asks how they ended
    with contextlib.suppress(Exception):  # a session that can't load it says so
        loader = Loader()
        loader.load(loader.open(version))
    keep_pauses_short()
    with socket.socket(fileno=descriptor) as control:
        while True:
            said, descriptors, _, _ = socket.recv_fds(control, 1, 1)
            if not said:
                return
            number = os.fork()
            if number == 0:
                code = 1
                try:
                    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                    control.close()
                    run_session(descriptors[0])
                    code = 0
                except BaseException:
                    traceback.print_exc()
                finally:
                    sys.stderr.flush()
                    os._exit(code)
            os.close(descriptors[0])
            control.sendall(number.to_bytes(_PID_BYTES, "little"))


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[2]))
