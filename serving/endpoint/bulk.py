"""Arrow Flight for bulk: record batches come in a stream, their predictions go back in it.

A stream of `DoExchange` names the model as its descriptor's path. Its batches have the columns of a
request; each is answered, in order, by a batch of one column `prediction`, with JSON as app
metadata: the step, the checkpoint and the age of the version, one for all of the batch.
"""

import asyncio
import json
import threading
import time
from concurrent.futures import Future
from typing import Any

import pyarrow as pa
import pyarrow.flight as flight

from runtime.flight_calls import TokenRequired, only_flight_errors
from runtime.strict_json import json_text
from serving.calls import Answer, Call
from serving.computing import failed
from serving.endpoint.answering import Limits, Sessions
from serving.endpoint.figures import Figures
from serving.errors import BUSY, WRONG, OverloadError, RequestError, ServingError, cut
from serving.model import Model
from serving.wire import arrow

MOST_STREAMS = 8
IDLE_SECONDS = 60.0
_AGAIN_SECONDS = 0.02
_CLOSE_SECONDS = 2.0
_PREDICTION = pa.schema([pa.field("prediction", pa.float32(), nullable=False)])


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
        most_streams: int = MOST_STREAMS,
        idle_seconds: float = IDLE_SECONDS,
    ) -> None:
        self._model, self._name = model, name
        self._sessions, self._loop = sessions, loop
        self._limits, self._figures = limits, figures
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
            self._exchange(descriptor, reader, writer)

    def _exchange(self, descriptor: Any, reader: Any, writer: Any) -> None:
        stream = self._begin(descriptor)
        try:
            self._check(reader)
            writer.begin(_PREDICTION)
            for number, chunk in enumerate(_chunks(reader)):
                self._see(stream)
                predictions, about = self._answered(number, chunk.data)
                writer.write_with_metadata(predictions, about)
                self._see(stream)
        except RequestError as error:
            raise flight.FlightServerError(str(error), WRONG) from error
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

    def _begin(self, descriptor: Any) -> object:
        path = [part.decode("utf-8", "replace") for part in descriptor.path or []]
        if path != [self._name]:
            raise flight.FlightServerError(
                f"there is no model {cut('/'.join(path))!r}; the descriptor's path must be"
                f" {self._name!r}",
                WRONG,
            )
        stream, now = object(), time.monotonic()
        with self._lock:
            if len(self._moved) >= self._most_streams:
                for other, moved in list(self._moved.items()):
                    if now - moved > self._idle_seconds:
                        del self._moved[other]
            if len(self._moved) >= self._most_streams:
                raise flight.FlightUnavailableError(
                    f"{self._most_streams} streams are open, no more may; come again later",
                    BUSY,
                )
            self._moved[stream] = now
        return stream

    def _see(self, stream: object) -> None:
        with self._lock:
            if stream not in self._moved:
                raise flight.FlightUnavailableError(
                    f"the stream did nothing for {self._idle_seconds:g} s and has made room for"
                    " another",
                    BUSY,
                )
            self._moved[stream] = time.monotonic()
        if self._over:
            raise flight.FlightUnavailableError("the server is stopping", BUSY)

    def _check(self, reader: Any) -> None:
        """Refuse wrong columns before anything is computed."""
        try:
            given = reader.schema
        except (pa.ArrowException, OSError) as error:  # OSError of one that ends without any
            raise RequestError("a stream must begin with the schema of its batches") from error
        arrow.check_columns(given, self._model.schema)

    def _answered(self, number: int, batch: pa.RecordBatch | None) -> tuple[pa.RecordBatch, bytes]:
        if batch is None:
            raise RequestError(f"message {number} came without a batch")
        if batch.nbytes > self._limits.body_bytes:
            raise RequestError(
                f"batch {number} has {batch.nbytes:,} bytes, at most {self._limits.body_bytes:,}"
                " are taken; send smaller ones"
            )
        if batch.num_rows == 0:
            about = self._model.version.about(time.time())
            none = pa.record_batch([pa.array([], pa.float32())], schema=_PREDICTION)
            return none, json_text(about).encode()
        began = time.monotonic()
        call = Call("arrow", arrow.written(batch), None, began + self._limits.request_seconds)
        answer = self._computed(call)
        seconds = time.monotonic() - began
        self._loop.call_soon_threadsafe(self._count, answer, seconds)
        if answer.status == 200:
            return arrow.answered(answer.body)
        text = f"batch {number}: {json.loads(answer.body)['error']}"
        if answer.status == 400:
            raise RequestError(text)
        if answer.status == 504:
            raise flight.FlightTimedOutError(text)
        if answer.status in (429, 503):
            raise flight.FlightUnavailableError(text, BUSY)
        raise flight.FlightServerError(text)

    def _count(self, answer: Answer, seconds: float) -> None:
        self._figures.count(answer.status, seconds=seconds, rows=answer.rows)

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


def _chunks(reader: Any) -> Any:
    while True:
        try:
            yield reader.read_chunk()
        except StopIteration:
            return
