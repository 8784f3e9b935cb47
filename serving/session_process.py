"""A session in a process of its own, pinned to a core: both sides of the connection.

Messages are msgpack in frames. From the server: the options, then requests and the folders of
versions; from the session: answers, and a line when it is ready.
"""

import contextlib
import logging
import os
import signal
import socket
import threading
import time
from dataclasses import asdict, astuple
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import msgpack

from serving.calls import Answer, Call
from serving.computing import Done, failed
from serving.errors import OverloadError, ServingError
from serving.interpreter import keep_pauses_short
from serving.loading import Loaded, Loader
from serving.rows.paging import RowCache, RowCacheFigures
from serving.session import Session, SessionOptions
from serving.session_template import SessionTemplate

MAX_MESSAGE_BYTES = 1 << 30
# In place of a request's number.
_VERSION, _ROW_CACHE = -1, -2
_ROW_CACHE_SECONDS = 1.0  # between two messages of where vectors were
_START_SECONDS = 120.0

_log = logging.getLogger(__name__)


class SessionProcess:
    """The server's side of a session in another process.

    Args:
        loaded: the version that it begins with.
        options: of the session.
        core: that it runs on; None: any.
        template: that the process is forked from.
        memory_bytes: of vectors in its memory, as of `Loader`.

    Attributes:
        pid: number of the process, which is another one after it died.
        row_cache: where vectors were, as it said last; None: they are mapped.

    Raises:
        ServingError: it does not come up.
    """

    def __init__(
        self,
        loaded: Loaded,
        options: SessionOptions,
        core: int | None,
        template: SessionTemplate,
        memory_bytes: int | None = None,
    ) -> None:
        self.row_cache = None if memory_bytes is None else RowCacheFigures()
        self._memory_bytes = memory_bytes
        self._options = options
        self._template = template
        self.pid = 0
        self._core = core
        self._lock = threading.Lock()
        self._loaded = loaded
        self._closed = False
        self._open: dict[int, Done] = {}
        self._number = 0
        self._connection: Connection | None = None  # while the process starts
        self._begin(self._started(loaded), loaded)

    def _started(self, loaded: Loaded) -> Connection:
        """Start the process with a version; return the connection once it is ready."""
        ours, theirs = socket.socketpair()
        with theirs:
            try:
                self.pid = self._template.fork(theirs, loaded.form.folder)
            except ServingError:
                ours.close()
                raise
        connection = Connection(ours.detach())
        first = {
            "options": asdict(self._options),
            "core": self._core,
            "version": str(loaded.form.folder),
            "memory_bytes": self._memory_bytes,
        }
        try:
            connection.send_bytes(msgpack.packb(first))
            if not connection.poll(_START_SECONDS):
                os.kill(self.pid, signal.SIGKILL)
                raise ServingError("a session did not come up in time")
            said = msgpack.unpackb(connection.recv_bytes(MAX_MESSAGE_BYTES))
        except (EOFError, OSError) as error:
            raise ServingError(f"a session ended at its start: {error!r}") from error
        if said != "ready":
            raise ServingError(f"a session could not start: {said}")
        return connection

    def _begin(self, connection: Connection, loaded: Loaded) -> None:
        with self._lock:
            self._connection = connection
            if self._loaded is not loaded:
                self._send((_VERSION, str(self._loaded.form.folder)))
        self._reader = threading.Thread(
            target=self._read, args=(connection,), name="answers", daemon=True
        )
        self._reader.start()

    def submit(self, call: Call, done: Done) -> None:
        """As `Session.submit`."""
        with self._lock:
            if self._connection is None:
                raise OverloadError("a session starts, or is stopping")
            if len(self._open) >= self._options.max_waiting:
                raise OverloadError(f"{len(self._open)} requests wait, no more may")
            self._number += 1
            number = self._number
            self._open[number] = done
            self._send((number, call.form, call.json_bytes, call.deadline, call.body))

    @property
    def alive(self) -> bool:
        """Whether it is up, and not being started again."""
        with self._lock:
            return self._connection is not None

    def take(self, loaded: Loaded) -> None:
        """Have it load a version, beside its requests, and serve it once it is loaded."""
        with self._lock:
            self._loaded = loaded
            self._send((_VERSION, str(loaded.form.folder)))

    def _send(self, message: Any) -> None:
        if self._connection is not None:
            with contextlib.suppress(OSError):  # who reads its answers finds that it is gone
                self._connection.send_bytes(msgpack.packb(message))

    def _read(self, connection: Connection) -> None:
        while True:
            try:
                message = msgpack.unpackb(connection.recv_bytes(MAX_MESSAGE_BYTES))
            except (EOFError, OSError):
                break
            if message[0] == _ROW_CACHE:
                self.row_cache = RowCacheFigures(*message[1])
                continue
            number, status, body, kind, headers, rows, step = message
            answer = Answer(status, body, kind, [(n, v) for n, v in headers], rows, step)
            with self._lock:
                done = self._open.pop(number, None)
            if done is not None:
                done(answer)
        self._lost()

    def _lost(self) -> None:
        """Answer what the process leaves open, and start another one where it should live."""
        with self._lock:
            left, self._open = list(self._open.values()), {}
            connection, self._connection = self._connection, None
            closed, loaded = self._closed, self._loaded
        if connection is not None:
            connection.close()
        for done in left:
            done(failed(503, "the session that computed the request has ended"))
        if closed:
            return
        _log.error("the session of process %d has ended; another starts", self.pid)
        try:
            self._begin(self._started(loaded), loaded)
        except ServingError:
            _log.exception("no other session could be started")
            return
        with self._lock:
            if self._closed:  # meanwhile
                self._send((_VERSION, ""))

    def close(self) -> None:
        """End the process; what it still computes is answered."""
        with self._lock:
            self._closed = True
            self._send((_VERSION, ""))
        while True:
            reader = self._reader
            reader.join()
            if reader is self._reader:
                return


def main(descriptor: int) -> None:
    """Be the session of a server that is at the other end of a socket, until it closes it."""
    connection = Connection(descriptor)
    first = msgpack.unpackb(connection.recv_bytes(MAX_MESSAGE_BYTES))
    if first["core"] is not None:
        with contextlib.suppress(OSError, AttributeError):
            os.sched_setaffinity(0, {first["core"]})
    loader = Loader(first["memory_bytes"])
    try:
        loaded = loader.load(loader.open(Path(first["version"])))
        session = Session(loaded, SessionOptions(**first["options"]))
    except Exception as error:
        connection.send_bytes(msgpack.packb(f"{error}"))
        return
    lock = threading.Lock()
    told = 0.0

    def answered(number: int, answer: Answer) -> None:
        data = msgpack.packb(
            (
                number,
                answer.status,
                answer.body,
                answer.content_type,
                answer.headers,
                answer.rows,
                answer.step,
            )
        )
        with lock, contextlib.suppress(OSError):
            connection.send_bytes(data)
            if loaded.cache is not None:
                tell(loaded.cache)

    def tell(cache: RowCache) -> None:
        nonlocal told
        if time.monotonic() - told >= _ROW_CACHE_SECONDS:
            told = time.monotonic()
            connection.send_bytes(msgpack.packb((_ROW_CACHE, astuple(cache.figures()))))

    def take(folder: str) -> None:
        nonlocal loaded
        try:
            before, loaded = loaded.form, loader.load(loader.open(Path(folder)))
            session.take(loaded)
            if not loaded.form.has_base_of(before):
                before.let_go_of_base()
        except ServingError as error:
            _log.error("a version can't be loaded, the one before is served: %s", error)

    keep_pauses_short()
    connection.send_bytes(msgpack.packb("ready"))
    loading: threading.Thread | None = None
    with contextlib.suppress(EOFError, OSError):
        while True:
            message = msgpack.unpackb(connection.recv_bytes(MAX_MESSAGE_BYTES))
            if message[0] != _VERSION:
                _submit(session, message, answered)
                continue
            if loading is not None:
                loading.join()
            if not message[1]:
                break
            loading = threading.Thread(target=take, args=(message[1],), daemon=True)
            loading.start()
    session.close()
    connection.close()


def _submit(session: Session, message: Any, answered: Any) -> None:
    number, form, json_bytes, deadline, body = message
    try:
        session.submit(
            Call(form, body, json_bytes, deadline), lambda answer: answered(number, answer)
        )
    except OverloadError as error:
        answered(number, failed(429, str(error)))
