"""The server: listens, and looks after its connections."""

import asyncio
import contextlib
import resource
import socket
import time
from collections.abc import Callable, Coroutine
from email.utils import formatdate
from typing import Any

import uvloop

from serving.endpoint.connection import Connection, ConnectionLimits
from serving.endpoint.heads import Application
from serving.errors import ServingError

MOST_CONNECTIONS = 1024
_BACKLOG = 1024
_CHECK_SECONDS = 0.1
_FILES_OF_OTHERS = 128  # of forms, sessions and libraries


class Server:
    """Listens, and hands requests to an application.

    Args:
        application: that answers.
        host, port: where it listens.
        limits: of each connection.
        most_connections: that are open at a time. One more takes the place of the one that has
            been idle for longest; where none is, it is refused.
        stop_seconds: how long requests that are under way are waited for at the end.
    """

    def __init__(
        self,
        application: Application,
        *,
        host: str,
        port: int,
        limits: ConnectionLimits | None = None,
        most_connections: int = MOST_CONNECTIONS,
        stop_seconds: float = 10.0,
    ) -> None:
        self.application = application
        self.limits = limits or ConnectionLimits()
        self.now: Callable[[], float] = time.monotonic
        self.date = b""
        self._host, self._port = host, port
        self._most = most_connections
        self._stop_seconds = stop_seconds
        self._stop = asyncio.Event()
        self._connections: set[Connection] = set()

    def enter(self, connection: Connection) -> bool:
        """Take a connection that is made; False: there are too many."""
        while len(self._connections) >= self._most:
            idle = [each for each in self._connections if each.is_idle]
            if not idle:
                break
            oldest = min(idle, key=lambda each: each.deadline)
            self.leave(oldest)
            oldest.close()
        self._connections.add(connection)
        if len(self._connections) > 2 * self._most:
            connection.abort()
        return len(self._connections) <= self._most

    def leave(self, connection: Connection) -> None:
        """Forget one that has ended."""
        self._connections.discard(connection)

    def stop(self) -> None:
        """Answer what is under way, then end `run`; of the thread that runs it."""
        self.application.stopping = True
        self._stop.set()

    async def run(self, ready: Callable[[], None] | None = None) -> None:
        """Serve until `stop`.

        Args:
            ready: called without arguments once requests are answered.

        Raises:
            ServingError: the place can't be listened at.
        """
        bound = _bound(self._host, self._port, "--port")
        self._check_files()
        self._tell_date()
        loop = asyncio.get_running_loop()
        listening = await loop.create_server(lambda: Connection(self), sock=bound, backlog=_BACKLOG)
        checking = asyncio.create_task(self._check())
        try:
            if ready is not None:
                ready()
            await self._stop.wait()
            await self._until(
                lambda: not any(each.is_answering for each in self._connections),
                self._stop_seconds,
            )
        finally:
            listening.close()
            for connection in list(self._connections):
                connection.close()
            await self._until(lambda: not self._connections, 1.0)
            for connection in list(self._connections):
                connection.abort()
            checking.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await checking
            await asyncio.sleep(0)  # the last ones leave

    async def _check(self) -> None:
        while True:
            await asyncio.sleep(_CHECK_SECONDS)
            self._tell_date()
            now = self.now()
            for connection in list(self._connections):
                connection.check(now)

    def _tell_date(self) -> None:
        self.date = formatdate(usegmt=True).encode()

    async def _until(self, true: Callable[[], bool], seconds: float) -> None:
        end = self.now() + seconds
        while not true() and self.now() < end:
            await asyncio.sleep(0.01)

    def _check_files(self) -> None:
        """Take no more connections than this process may have open files."""
        files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        if files != resource.RLIM_INFINITY:
            self._most = max(min(self._most, files - _FILES_OF_OTHERS), 16)


def run_loop(coroutine: Coroutine[Any, Any, None]) -> None:
    """Run a coroutine to its end on the loop that answers requests fastest."""
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(coroutine)


def check_free(host: str, port: int, option: str = "--port") -> None:
    """Refuse a place where another process listens.

    Raises:
        ServingError: names it.
    """
    _bound(host, port, option).close()


def _bound(host: str, port: int, option: str) -> socket.socket:
    found = _socket_for(host)
    try:
        found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        found.bind((host, port))
    except OSError as error:
        found.close()
        raise ServingError(
            f"{host}:{port} can't be listened at: {error.strerror or error}; name another {option}"
        ) from error
    return found


def _socket_for(host: str) -> socket.socket:
    return socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM)


def free_port(host: str) -> int:
    """Return a port that nobody listens at now."""
    with _socket_for(host) as found:
        found.bind((host, 0))
        return int(found.getsockname()[1])
