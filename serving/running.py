"""Serve a model until a signal: the model, its sessions, the server."""

import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, TYPE_CHECKING

from serving.endpoint.access_log import AccessLog
from serving.endpoint.answering import Endpoint, Limits
from serving.endpoint.connection import ConnectionLimits
from serving.endpoint.server import MOST_CONNECTIONS, Server, check_free, free_port
from serving.errors import ServingError
from serving.form.making import WhenMaking
from serving.loop_session import LoopSession
from serving.model import KEPT_VERSIONS, Model
from serving.pool import AnySession, Pool
from serving.rows.paging import RowCacheFigures
from serving.rows.quantized import RowsAs
from serving.session import SessionOptions
from serving.session_process import SessionProcess
from serving.session_template import SessionTemplate

if TYPE_CHECKING:
    from serving.endpoint.bulk import BulkServer

_LOOPBACK = ("127.0.0.1", "localhost", "::1")


@dataclass(frozen=True, slots=True, kw_only=True)
class ServeOptions:
    """How a model is served.

    Args:
        source: run directory, whose newer checkpoints are followed, or checkpoint; or where a job
            publishes its checkpoints.
        session: the model's name, and how requests become batches.
        host, port: where it listens; port 0: a free one.
        flight_port: where it listens for streams of Arrow Flight, 0: a free one; None: nowhere.
        sessions: processes that compute; 0: this one does.
        token: that requests must bear; None: none, on the loopback alone.
        forms: where serving forms are kept; None: folder `serving` of the run.
        rows: how they keep vectors.
        memory_bytes: of vectors in memory, those of all sessions together; the others are read from
            the disk. None: all are mapped.
        keep_versions: for rollbacks.
        follow_seconds: how often newer checkpoints are looked for; None: a quarter of a second,
            in a store a second.
        limits: what a request may take.
        connections: that may be open.
        access_log: a file for a line of JSON a request, `-` for the standard output; None: none.
        stop_seconds: how long requests under way are waited for at the end.
        publish_token: what a job that publishes wants followers to know.
    """

    source: str
    session: SessionOptions
    host: str = "127.0.0.1"
    port: int = 8500
    flight_port: int | None = None
    sessions: int = 0
    token: str | None = None
    forms: str | None = None
    rows: RowsAs = "float32"
    memory_bytes: int | None = None
    keep_versions: int = KEPT_VERSIONS
    follow_seconds: float | None = None
    limits: Limits = field(default_factory=Limits)
    connections: int = MOST_CONNECTIONS
    access_log: str | None = None
    stop_seconds: float = 10.0
    publish_token: str | None = None

    @property
    def memory_of_a_session(self) -> int | None:
        """What each process that computes has of `memory_bytes`."""
        return None if self.memory_bytes is None else self.memory_bytes // max(self.sessions, 1)


class Serving:
    """A model with its sessions and its server.

    Args:
        options: how it is served.
        when_making: called as rows are written of a form that is made first.

    Attributes:
        bulk: what answers Arrow Flight, while it runs; None: it is not asked for.
        waits: whether a stream of Arrow Flight is left open, whose client sends nothing.

    Raises:
        ServingError, CheckpointError, ModelError: it can't be served as it is asked for.
    """

    def __init__(self, options: ServeOptions, when_making: WhenMaking | None = None) -> None:
        if options.host not in _LOOPBACK and options.token is None:
            raise ServingError(
                f"at {options.host} others could ask too: give a token, in SYNCHROMESH_SERVE_TOKEN"
                " or --token-file"
            )
        port = options.port or free_port(options.host)
        check_free(options.host, port)
        if options.flight_port:
            check_free(options.host, options.flight_port, "--flight-port")
        self.address = f"http://{_bracketed(options.host)}:{port}"
        self._options = options
        with contextlib.ExitStack() as opened:
            self.model = Model.open(
                options.source,
                forms=options.forms,
                rows=options.rows,
                keep_versions=options.keep_versions,
                max_rows=options.session.max_rows,
                publish_token=options.publish_token,
                memory_bytes=options.memory_of_a_session,
                when_making=when_making,
            )
            opened.callback(self.model.close)
            self._template = SessionTemplate()
            opened.callback(self._template.close)
            self._computing = self._sessions()
            self._pool = Pool(self._computing)
            opened.callback(self._pool.close)
            self._log = _access_log(options.access_log, opened)
            self._opened = opened.pop_all()
        self.bulk: BulkServer | None = None
        self.waits = False
        self.model.when_swapped(self._pool.take)
        self.endpoint = Endpoint(
            self.model,
            options.session.name,
            self._pool,
            token=options.token,
            limits=options.limits,
            log=self._log,
            row_cache=self._row_cache,
        )
        self.server = Server(
            self.endpoint,
            host=options.host,
            port=port,
            limits=ConnectionLimits(body_seconds=options.limits.body_seconds),
            most_connections=options.connections,
            stop_seconds=options.stop_seconds,
        )

    def _sessions(self) -> list[AnySession]:
        options = self._options
        if options.sessions == 0:
            return [LoopSession(self.model.current, options.session)]
        cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else [None]
        started: list[AnySession] = []
        try:
            for number in range(options.sessions):
                core = cores[number % len(cores)] if options.sessions > 1 else None
                started.append(
                    SessionProcess(
                        self.model.current,
                        options.session,
                        core,
                        self._template,
                        options.memory_of_a_session,
                    )
                )
        except BaseException:
            for session in started:
                session.close()
            raise
        return started

    def _row_cache(self) -> RowCacheFigures | None:
        """Return where vectors were, of all processes that compute."""
        apart = [
            session.row_cache
            for session in self._computing
            if isinstance(session, SessionProcess) and session.row_cache is not None
        ]
        return sum(apart, RowCacheFigures()) if apart else self.model.row_cache

    async def run(self, ready: Callable[[], None] | None = None) -> None:
        """Serve until `server.stop`, or SIGINT or SIGTERM where this is the main thread."""
        self.model.follow(self._options.follow_seconds)
        loop = asyncio.get_running_loop()
        with contextlib.suppress(ValueError, RuntimeError, NotImplementedError):
            for number in (signal.SIGINT, signal.SIGTERM):
                loop.add_signal_handler(number, self.server.stop)
        self._begin_bulk(loop)
        try:
            await self.server.run(ready)
        finally:
            if self.bulk is not None:
                self.waits = not await asyncio.to_thread(self.bulk.close)

    def _begin_bulk(self, loop: asyncio.AbstractEventLoop) -> None:
        options = self._options
        if options.flight_port is None:
            return
        from serving.endpoint.bulk import BulkServer

        self.bulk = BulkServer(
            self.model,
            options.session.name,
            self._pool,
            loop,
            host=options.host,
            port=options.flight_port,
            token=options.token,
            limits=options.limits,
            figures=self.endpoint.figures,
            log=self._log,
        )

    def close(self) -> None:
        """End the sessions, what follows the run, and the access log."""
        self._opened.close()


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host


def _access_log(name: str | None, opened: contextlib.ExitStack) -> AccessLog | None:
    if name is None:
        return None
    file: IO[str] = sys.stdout
    if name != "-":
        try:
            file = opened.enter_context(open(Path(name), "a", encoding="utf-8"))  # noqa: SIM115
        except OSError as error:
            raise ServingError(f"the access log {name} can't be written: {error}") from error
    log = AccessLog(file)
    opened.callback(log.close)
    return log
