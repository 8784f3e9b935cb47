"""A run that its job publishes: its newest checkpoints are copied to this machine as they come."""

import logging
import threading
import time
from collections.abc import Callable
from pathlib import Path
from urllib.parse import urlsplit

from ps.checkpoint.intact import checkpoints_in
from ps.following.follower import Follower
from ps.net.sockets import NotProvenError
from serving.errors import ServingError

SCHEME = "tcp://"
CHECKPOINTS = "published"
# For the first checkpoint to come, where none is here.
FIRST_SECONDS = 120.0
_PAUSE_SECONDS, _LONGEST_PAUSE_SECONDS = 0.2, 5.0

_log = logging.getLogger(__name__)


def is_published(source: str | object) -> bool:
    """Whether that is where a job publishes its checkpoints, `tcp://HOST:PORT`."""
    return isinstance(source, str) and source.startswith(SCHEME)


class PublishedRun:
    """Follows a job in a thread of its own, and comes back to it when the connection is lost.

    Args:
        address: `tcp://HOST:PORT`.
        token: that the job wants followers to know.
        forms: a folder of this machine, for this server alone; checkpoints are in it, too.

    Attributes:
        checkpoints, forms: where they are.
        brought: is called when something newer is there.

    Raises:
        ServingError: the address is none, or there is no token or no folder.
    """

    def __init__(self, address: str, token: str | None, forms: str | Path | None) -> None:
        self._host, self._port = _split(address)
        if token is None:
            raise ServingError(
                f"{address} wants a token: give that of the job's checkpoint.publish, in"
                " SYNCHROMESH_PUBLISH_TOKEN or --publish-token-file"
            )
        if forms is None:
            raise ServingError(
                f"say in which folder of this machine what {address} publishes is kept (--forms)"
            )
        self._address, self._token = address, token.encode()
        self.forms = Path(forms)
        self.checkpoints = self.forms / CHECKPOINTS
        self.brought: Callable[[], None] = lambda: None
        self._trouble = "it has not answered yet"
        self._refused = False
        self._closed = threading.Event()
        self._first = threading.Event()
        self._follower: Follower | None = None
        self._thread = threading.Thread(target=self._run, name="published", daemon=True)
        self._thread.start()

    def wait(self, seconds: float = FIRST_SECONDS) -> None:
        """Wait until there is a checkpoint, be it one that was here before.

        Raises:
            ServingError: none came in time, or the job refuses us; the message says why.
        """
        deadline = time.monotonic() + seconds
        while not checkpoints_in(self.checkpoints):
            if self._refused:
                raise ServingError(
                    f"{self._address}: {self._trouble}. Is the token that of the job's"
                    " checkpoint.publish (SYNCHROMESH_PUBLISH_TOKEN or --publish-token-file)?"
                )
            if not self._first.wait(min(0.1, seconds)) and time.monotonic() > deadline:
                raise ServingError(
                    f"{self._address} has given no checkpoint in {seconds:.0f} s: {self._trouble}"
                )

    def close(self) -> None:
        """Follow no more; what is here stays."""
        self._closed.set()
        follower = self._follower
        if follower is not None:
            follower.close()
        self._thread.join()

    def _run(self) -> None:
        pause = _PAUSE_SECONDS
        while not self._closed.is_set():
            try:
                self._follower = Follower(
                    self._host, self._port, secret=self._token, folder=self.checkpoints
                )
                if self._trouble:
                    _log.info("following %s", self._address)
                try:
                    while not self._closed.is_set():
                        if self._follower.step() is not None:
                            self._first.set()
                            self.brought()
                        self._trouble, pause = "", _PAUSE_SECONDS
                finally:
                    self._follower.close()
            except Exception as error:  # what is served goes on being served
                if self._closed.is_set():
                    return
                if str(error) != self._trouble:
                    _log.warning("%s can't be followed: %s", self._address, error)
                self._trouble = str(error)
                self._refused = isinstance(error, NotProvenError)
                self._closed.wait(pause)
                pause = min(2 * pause, _LONGEST_PAUSE_SECONDS)


def _split(address: str) -> tuple[str, int]:
    try:
        found = urlsplit(address)
        host, port = found.hostname, found.port
    except ValueError:
        host = port = None
    if not host or not port:
        raise ServingError(f"where a job publishes must look like tcp://HOST:PORT, got {address!r}")
    return host, port
