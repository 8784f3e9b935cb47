"""Arrow Flight for bulk: record batches come in a stream, their predictions go back in it.

A stream of `DoExchange` names the model as its descriptor's path. Its batches have the columns of a
request; each is answered, in order, by a batch of one column `prediction`, or of one for each of
several tasks, with JSON as app metadata: the step, the checkpoint and the age of the version, one
for all of the batch.
"""

import asyncio
import contextlib
import json
import threading
import time
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.flight as flight

from runtime.flight_calls import TokenRequired, only_flight_errors
from serving.calls import ARROW, Answer, Call
from serving.computing import failed
from serving.endpoint.access_log import AccessLog
from serving.endpoint.answering import Limits, Sessions
from serving.endpoint.figures import Figures
from serving.errors import BUSY, WRONG, OverloadError, RequestError, ServingError, cut
from serving.model import Model
from serving.wire import arrow

MOST_STREAMS = 8
IDLE_SECONDS = 60.0
_AGAIN_SECONDS = 0.02
_CLOSE_SECONDS = 2.0


@dataclass(slots=True)
class _Asked:
    """A stream, and when what it asks for now came."""

    client: str
    path: str
    began: float = field(default_factory=time.monotonic)


class _RefusedError(Exception):
    """A stream ends with an answer that is none of predictions."""

    def __init__(self, answer: Answer) -> None:
        super().__init__(answer.status)
        self.answer = answer


class BulkServer(flight.FlightServerBase):
    """Hands batches of streams to sessions, one of each stream at a time.

    So a stream takes no more of a session than one client that asks over HTTP, and who sends faster
    than is computed waits. Where as many requests wait as may, its batch waits, too.

    Args:
        model: whose schema batches must have, and whose version is told.
        name: of it.
        sessions: that compute.
        loop: in which requests are handed to them.
        host, port: where to listen; port 0: a free one.
        token: that every call must bear; None: none is asked for.
        limits: what a batch may take, as a request of its own.
        figures: in which batches are counted.
        log: that has a line for each batch, and each stream that is refused; None: there is none.
        most_streams: that may be open.
        idle_seconds: after which a stream that does nothing makes room for another one.

    Raises:
        ServingError: nobody can listen there.
    """

    def __init__(
        self,
        model: Model,
        name: str,
        sessions: Sessions,
        loop: asyncio.AbstractEventLoop,
        *,
        host: str,
        port: int,
        token: str | None,
        limits: Limits,
        figures: Figures,
        log: AccessLog | None = None,
        most_streams: int = MOST_STREAMS,
        idle_seconds: float = IDLE_SECONDS,
    ) -> None:
        self._model, self._name = model, name
        self._sessions, self._loop = sessions, loop
        self._limits, self._figures, self._log = limits, figures, log
        self._most_streams, self._idle_seconds = most_streams, idle_seconds
        self._lock = threading.Lock()
        self._moved: dict[object, float] = {}  # streams, and when each did something last
        self._over = False
        where = f"[{host}]" if ":" in host else host
        try:
            super().__init__(
                f"grpc://{where}:{port}",
                middleware={} if token is None else {"token": TokenRequired(token)},
            )
        except (pa.ArrowException, OSError) as error:
            raise ServingError(
                f"{host}:{port} can't be listened at; name another --flight-port"
            ) from error
        self.address = f"grpc://{where}:{self.port}"

    def do_exchange(self, context: Any, descriptor: Any, reader: Any, writer: Any) -> None:
        """Answer the batches of a stream; raises FlightError, of what is wrong with `WRONG`."""
        with only_flight_errors():
            asked = _Asked(context.peer(), _path_of(descriptor))
            try:
                self._exchange(asked, reader, writer)
            except _RefusedError as refused:
                self._note(asked, refused.answer)
                raise _flight_error(refused.answer) from refused

    def _exchange(self, asked: "_Asked", reader: Any, writer: Any) -> None:
        stream = self._begin(asked.path)
        try:
            self._check(reader)
            writer.begin(arrow.answer_schema(self._model.schema.outputs))
            for number, chunk in enumerate(_chunks(reader)):
                asked.began = time.monotonic()
                self._see(stream)
                answer = self._answered(number, chunk.data)
                writer.write_with_metadata(*arrow.answered(answer.body))
                self._note(asked, answer)
                self._see(stream)
        finally:
            with self._lock:
                self._moved.pop(stream, None)

    def close(self) -> bool:
        """Answer the batches that are under way, and take no more; 2 s at most.

        Returns:
            Whether all streams have ended. gRPC waits for one whose client sends nothing, and so
            would the end of this process.
        """
        self._over = True
        ending = threading.Thread(target=self.shutdown, daemon=True)
        ending.start()
        ending.join(_CLOSE_SECONDS)
        return not ending.is_alive()

    def _begin(self, path: str) -> object:
        if path != self._name:
            raise _refused(
                404,
                f"there is no model {cut(path)!r}; the descriptor's path must be {self._name!r}",
            )
        stream, now = object(), time.monotonic()
        with self._lock:
            if len(self._moved) >= self._most_streams:
                for other, moved in list(self._moved.items()):
                    if now - moved > self._idle_seconds:
                        del self._moved[other]
            if len(self._moved) >= self._most_streams:
                raise _refused(
                    429, f"{self._most_streams} streams are open, no more may; come again later"
                )
            self._moved[stream] = now
        return stream

    def _see(self, stream: object) -> None:
        with self._lock:
            if stream not in self._moved:
                raise _refused(
                    429,
                    f"the stream did nothing for {self._idle_seconds:g} s and has made room for"
                    " another",
                )
            self._moved[stream] = time.monotonic()
        if self._over:
            raise _refused(503, "the server is stopping")

    def _check(self, reader: Any) -> None:
        """Refuse wrong columns before anything is computed."""
        try:
            arrow.check_columns(reader.schema, self._model.schema)
        except (pa.ArrowException, OSError) as error:  # OSError of one that ends without any
            text = "a stream must begin with the schema of its batches"
            raise _refused(400, text) from error
        except RequestError as error:
            raise _refused(400, str(error)) from error

    def _answered(self, number: int, batch: pa.RecordBatch | None) -> Answer:
        if batch is None:
            raise _refused(400, f"message {number} came without a batch")
        if batch.nbytes > self._limits.body_bytes:
            raise _refused(
                413,
                f"batch {number} has {batch.nbytes:,} bytes, at most {self._limits.body_bytes:,}"
                " are taken; send smaller ones",
            )
        if batch.num_rows == 0:
            version = self._model.version
            outputs = self._model.schema.outputs
            none = np.empty((0, len(outputs)), np.float32)
            body = arrow.encode(none, version.about(time.time()), outputs)
            return Answer(200, body, ARROW, step=version.step)
        deadline = time.monotonic() + self._limits.request_seconds
        answer = self._computed(Call("arrow", arrow.written(batch), None, deadline))
        if answer.status != 200:
            raise _refused(answer.status, f"batch {number}: {_error_in(answer)}")
        return answer

    def _note(self, asked: "_Asked", answer: Answer) -> None:
        """Count a batch, or a stream that is refused, and write its line."""
        seconds = time.monotonic() - asked.began

        def count() -> None:
            self._figures.count(answer.status, seconds=seconds, rows=answer.rows)

        with contextlib.suppress(RuntimeError):  # the loop has ended: the server stops
            self._loop.call_soon_threadsafe(count)
        if self._log is not None:
            self._log.write(
                answer, client=asked.client, method="DoExchange", path=asked.path, began=asked.began
            )

    def _computed(self, call: Call) -> Answer:
        """Have a batch computed, once there is room for it among what waits."""
        while True:
            future: Future[Answer] = Future()
            self._loop.call_soon_threadsafe(self._submit, call, future)
            try:
                answer = future.result(max(call.deadline - time.monotonic(), 0.0))
            except TimeoutError:
                return failed(504, "its time was over before it was computed")
            if answer.status != 429 or time.monotonic() + _AGAIN_SECONDS >= call.deadline:
                return answer
            time.sleep(_AGAIN_SECONDS)

    def _submit(self, call: Call, future: "Future[Answer]") -> None:
        def done(answer: Answer) -> None:
            if not future.done():
                future.set_result(answer)

        try:
            self._sessions.submit(call, done)
        except OverloadError as error:
            done(failed(429, str(error)))


def _path_of(descriptor: Any) -> str:
    return "/".join(part.decode("utf-8", "replace") for part in descriptor.path or [])


def _refused(status: int, message: str) -> _RefusedError:
    return _RefusedError(failed(status, message))


def _error_in(answer: Answer) -> str:
    message: str = json.loads(answer.body)["error"]
    return message


def _flight_error(answer: Answer) -> Exception:
    """Return how Arrow Flight says what an answer says."""
    text = _error_in(answer)
    if answer.status in (400, 404, 413):
        return flight.FlightServerError(text, WRONG)
    if answer.status == 504:
        return flight.FlightTimedOutError(text)
    if answer.status in (429, 503):
        return flight.FlightUnavailableError(text, BUSY)
    return flight.FlightServerError(text)


def _chunks(reader: Any) -> Any:
    while True:
        try:
            yield reader.read_chunk()
        except StopIteration:
            return
