"""A served model, behind a real socket, for all tests of a module."""

import asyncio
import http.client
import json
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from served_jobs import SavedModel

from serving.running import ServeOptions, Serving
from serving.session import SessionOptions

TOKEN = "a token of sixteen"


@dataclass
class Served:
    """A server that runs in a thread."""

    serving: Serving
    job: SavedModel
    loop: asyncio.AbstractEventLoop
    thread: threading.Thread

    @property
    def port(self) -> int:
        return int(self.serving.address.rsplit(":", 1)[1])

    def ask(
        self, method: str, path: str, body: Any = None, token: str | None = TOKEN, **headers: str
    ) -> tuple[int, dict[str, str], Any]:
        """Return status, headers and what JSON the answer is, else its bytes."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        given = {"Authorization": f"Bearer {token}"} if token else {}
        given |= {name.replace("_", "-"): value for name, value in headers.items()}
        data = body if isinstance(body, bytes | None) else json.dumps(body).encode()
        try:
            connection.request(method, path, data, given)
            answer = connection.getresponse()
            found = answer.read()
            told = {name.lower(): value for name, value in answer.getheaders()}
        finally:
            connection.close()
        kind = told.get("content-type")
        return answer.status, told, json.loads(found) if kind == "application/json" else found

    def stop(self) -> None:
        self.loop.call_soon_threadsafe(self.serving.server.stop)
        self.thread.join()
        self.serving.close()


def serve(job: SavedModel, **changes: Any) -> Served:
    """Serve the run of a model until `stop`."""
    session = SessionOptions(name="clicks", **changes.pop("session", {}))
    options = {"source": str(job.run), "session": session, "port": 0, "sessions": 0}
    serving = Serving(ServeOptions(**{**options, "token": TOKEN, **changes}))  # type: ignore[arg-type]
    loop = asyncio.new_event_loop()
    up = threading.Event()

    def run() -> None:
        try:
            loop.run_until_complete(serving.run(up.set))
        finally:
            loop.close()
            up.set()

    thread = threading.Thread(target=run)
    thread.start()
    assert up.wait(60)
    return Served(serving, job, loop, thread)


@pytest.fixture(scope="session")
def started() -> Callable[..., Served]:
    """What serves the run of a model until `stop`."""
    return serve


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Served]]:
    """Serve a model of its own with these options; it is stopped at the end."""
    started: list[Served] = []

    def begin(name: str = "plain", **options: Any) -> Served:
        job = SavedModel(name, tmp_path / f"run-{len(started)}")
        job.train(3)
        job.cut()
        started.append(serve(job, **options))
        return started[-1]

    yield begin
    for each in started:
        if each.thread.is_alive():
            each.stop()


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A model that follows its run only when it is asked to."""
    job = SavedModel("plain", tmp_path_factory.mktemp("served") / "run")
    job.train(3)
    job.cut()
    found = serve(job, follow_seconds=3600.0)
    yield found
    found.stop()
