"""A server that reads a request and answers the same each time, by one of several libraries.

    python -m bench.fixed_answers ours|granian|uvicorn|aiohttp PORT

So what is measured is the library alone, as this project would use it: one process, one loop,
HTTP/1.1. `ours` is what serving has, over httptools and uvloop.
"""

import asyncio
import importlib
import signal
import sys
from collections.abc import Callable
from typing import Any

from serving.calls import Answer
from serving.endpoint.heads import Application, Asked, Head
from serving.endpoint.server import Server, run_loop

LIBRARIES = ("ours", "granian", "uvicorn", "aiohttp")
ANSWER = bytes(256)  # 64 predictions
_HEADERS = [("content-type", "application/octet-stream"), ("content-length", str(len(ANSWER)))]


class _Fixed:
    """An application that answers each request the same."""

    stopping = False

    def begin(self, head: Head) -> Answer | Asked:
        return self

    def note(self, head: Head, answer: Answer) -> None:
        """Nothing is counted."""

    def complete(self, body: bytes, done: Callable[[Answer], None]) -> None:
        done(Answer(200, ANSWER, "application/octet-stream"))

    def abandon(self) -> None:
        """Nothing has begun."""


async def serve(application: Application, port: int) -> None:
    """Answer by our own server until SIGTERM."""
    server = Server(application, host="127.0.0.1", port=port)
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, server.stop)
    await server.run()


async def _granian(port: int) -> None:
    from granian.constants import HTTPModes, Interfaces
    from granian.http import HTTP1Settings
    from granian.server.embed import Server

    class Application:
        async def __rsgi__(self, scope: Any, protocol: Any) -> None:
            await protocol()
            protocol.response_bytes(200, _HEADERS, ANSWER)

    server = Server(
        Application(),
        address="127.0.0.1",
        port=port,
        interface=Interfaces.RSGI,
        http=HTTPModes.http1,
        websockets=False,
        log_enabled=False,
        backlog=1024,
        http1_settings=HTTP1Settings(max_buffer_size=1 << 16),
    )
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, server.stop)
    await server.serve()


def _uvicorn(port: int) -> None:
    uvicorn = importlib.import_module("uvicorn")
    headers = [(name.encode(), value.encode()) for name, value in _HEADERS]

    async def application(scope: Any, receive: Any, send: Any) -> None:
        while (await receive()).get("more_body"):
            pass
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": ANSWER})

    uvicorn.run(
        application,
        port=port,
        loop="uvloop",
        http="httptools",
        lifespan="off",
        ws="none",
        log_level="error",
        access_log=False,
    )


def _aiohttp(port: int) -> None:
    from aiohttp import web

    async def answer(request: Any) -> Any:
        await request.read()
        return web.Response(body=ANSWER)

    application = web.Application()
    application.router.add_post("/", answer)
    web.run_app(application, host="127.0.0.1", port=port, access_log=None, print=None)


if __name__ == "__main__":
    library, port = sys.argv[1], int(sys.argv[2])
    if library == "ours":
        run_loop(serve(_Fixed(), port))
    elif library == "granian":
        asyncio.run(_granian(port))
    elif library == "uvicorn":
        _uvicorn(port)
    else:
        _aiohttp(port)
