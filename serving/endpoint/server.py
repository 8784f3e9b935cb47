"""The server: Granian in this process, around an `Endpoint`."""

import asyncio
import contextlib
import logging
import socket
import time
from collections.abc import AsyncIterator
from typing import Any

from granian.constants import HTTPModes, Interfaces
from granian.http import HTTP1Settings
from granian.log import LogLevels
from granian.rsgi import ProtocolClosed, ProtocolError
from granian.server.embed import Server as Granian

from serving.endpoint.access_log import AccessLog
from serving.endpoint.answering import Endpoint, HttpRequest
from serving.errors import ServingError

HEADER_BYTES = 64 << 10
HEADER_SECONDS = 10

_log = logging.getLogger(__name__)


class Server:
    """Listens, and hands requests to an endpoint.

    Args:
        endpoint: that answers.
        host, port: where it listens.
        log: that has a line for each request; None: there is none.
        stop_seconds: how long requests that are under way are waited for at the end.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        *,
        host: str,
        port: int,
        log: AccessLog | None = None,
        stop_seconds: float = 10.0,
    ) -> None:
        self._endpoint = endpoint
        self._host, self._port = host, port
        self._access = log
        self._stop_seconds = stop_seconds
        self._stop = asyncio.Event()

    def stop(self) -> None:
        """Answer what is under way, then end `run`; of the thread that runs it."""
        self._endpoint.stopping = True
        self._stop.set()

    async def run(self, ready: Any = None) -> None:
        """Serve until `stop`.

        Args:
            ready: called without arguments once requests are answered.

        Raises:
            ServingError: the place can't be listened at.
        """
        check_free(self._host, self._port)
        server = Granian(
            self,
            address=self._host,
            port=self._port,
            interface=Interfaces.RSGI,
            http=HTTPModes.http1,
            websockets=False,
            log_enabled=False,
            log_level=LogLevels.warning,
            backlog=1024,
            http1_settings=HTTP1Settings(
                header_read_timeout=1000 * HEADER_SECONDS, max_buffer_size=HEADER_BYTES
            ),
        )
        serving = asyncio.create_task(server.serve())
        try:
            await _reachable(self._host, self._port, serving)
            if ready is not None:
                ready()
            stopped = asyncio.create_task(self._stop.wait())
            await asyncio.wait({serving, stopped}, return_when=asyncio.FIRST_COMPLETED)
            await self._drained()
        finally:
            if not serving.done():
                server.stop()
            with contextlib.suppress(Exception):
                await serving

    async def _drained(self) -> None:
        end = time.monotonic() + self._stop_seconds
        while self._endpoint.outstanding and time.monotonic() < end:
            await asyncio.sleep(0.01)

    async def __rsgi__(self, scope: Any, protocol: Any) -> None:
        request = HttpRequest(
            scope.method, scope.path, scope.headers, _chunks(protocol), client=scope.client
        )
        answer = await self._endpoint.answer(request)
        told = [("content-type", answer.content_type), *answer.headers]
        # What is wrong may have been found before all of the body came.
        told += [("connection", "close")] if answer.status in (408, 413) else []
        with contextlib.suppress(ProtocolClosed, ProtocolError):
            protocol.response_bytes(answer.status, told, answer.body)
        if self._access is not None:
            self._access.write(
                answer,
                client=request.client,
                method=request.method,
                path=request.path,
                began=request.began,
            )


async def _chunks(protocol: Any) -> AsyncIterator[bytes]:
    # At once: each part would cost a turn of the loop, and all of it is in memory anyway. No more
    # comes than the head says, which the endpoint has looked at.
    yield await protocol()


def check_free(host: str, port: int, option: str = "--port") -> None:
    """Refuse a place where another process listens.

    Raises:
        ServingError: names it.
    """
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        with socket.socket(family, socket.SOCK_STREAM) as found:
            found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            found.bind((host, port))
    except OSError as error:
        raise ServingError(
            f"{host}:{port} can't be listened at: {error.strerror or error}; name another {option}"
        ) from error


def free_port(host: str) -> int:
    """Return a port that nobody listens at now."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as found:
        found.bind((host, 0))
        return int(found.getsockname()[1])


async def _reachable(host: str, port: int, serving: "asyncio.Task[None]") -> None:
    """Wait until connections are taken."""
    end = time.monotonic() + 30
    while time.monotonic() < end and not serving.done():
        try:
            _, writer = await asyncio.open_connection(host, port)
        except OSError:
            await asyncio.sleep(0.01)
            continue
        writer.close()
        return
    if serving.done():
        await serving
    raise ServingError(f"the server did not come up at {host}:{port}")
