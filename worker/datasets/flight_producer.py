"""A producer of samples for a receiver: each batch is sent until it is known to be on the disk."""

import contextlib
import json
import threading
import time
from collections import deque
from typing import Any

import pyarrow as pa
import pyarrow.flight as flight

from runtime.storage import StorageError, brief

_MOST_ROWS = 1 << 16  # of a batch
_AGAIN_SECONDS = 0.2
_MOST_AGAIN_SECONDS = 5.0
_REFUSALS = (flight.FlightUnauthenticatedError, flight.FlightServerError)


class FlightProducer:
    """Sends rows to `synchromesh data receive`, each once, over lost connections and restarts.

    A producer of the same name goes on where the one before was acknowledged: `acknowledged` says
    how many batches that were when it begins. Used by one thread.

    Args:
        location: `grpc://HOST:PORT`, or `grpc+tls://HOST:PORT`.
        name: of the producer; one of a name sends at a time.
        token: that the receiver wants to see.
        most_waiting_bytes: that are sent and not acknowledged; who sends more waits.
        retry_seconds: for how long a receiver may be out of reach.
        root_certificates: in PEM, where those of the system don't do.

    Raises:
        StorageError: the receiver is out of reach for too long, or refuses.

    Example:
        with FlightProducer("grpc://127.0.0.1:8815", name="clicks", token=token) as producer:
            producer.send(table)
    """

    def __init__(
        self,
        location: str,
        *,
        name: str,
        token: str,
        most_waiting_bytes: int = 64 << 20,
        retry_seconds: float = 60.0,
        root_certificates: bytes | None = None,
    ) -> None:
        self._location = location
        self._name = name
        self._headers = [(b"authorization", f"Bearer {token}".encode())]
        self._most_waiting_bytes = most_waiting_bytes
        self._retry_seconds = retry_seconds
        self._roots = root_certificates
        self._news = threading.Condition()
        self._waiting: deque[tuple[int, pa.RecordBatch]] = deque()  # sent, not acknowledged
        self._waiting_bytes = 0
        self._stream: _Stream | None = None
        self.acknowledged = 0
        self._connect(None)
        self._next = self.acknowledged + 1

    def __enter__(self) -> "FlightProducer":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self.close()
        elif self._stream is not None:
            self._stream.leave()

    def send(self, table: pa.Table) -> None:
        """Send rows; returns before they are acknowledged, but waits where too many are not."""
        for batch in table.to_batches(max_chunksize=_MOST_ROWS):
            if not batch.num_rows:
                continue
            self._await(lambda: self._waiting_bytes < self._most_waiting_bytes)
            with self._news:
                self._waiting.append((self._next, batch))
                self._waiting_bytes += batch.nbytes
            self._next += 1
            if self._stream is None or not self._stream.takes(batch.schema):
                self._await(lambda: len(self._waiting) <= 1)
                self._connect(batch.schema)
            else:
                self._write(*self._waiting[-1])

    def flush(self) -> None:
        """Wait until all that was sent is on the receiver's disk."""
        self._await(lambda: not self._waiting)

    def close(self) -> None:
        """Wait as `flush` does, and end."""
        try:
            self.flush()
        finally:
            if self._stream is not None:
                self._stream.leave()

    # Inside -----------------------------------------------------------------------------------

    def _await(self, done: Any) -> None:
        """Wait until something holds; where the stream has ended meanwhile, begin another."""
        while True:
            with self._news:
                while not done() and self._stream is not None and self._stream.error is None:
                    self._news.wait(1.0)
                if done():
                    return
            error = None if self._stream is None else self._stream.error
            if isinstance(error, _REFUSALS):
                raise self._failed(error) from error
            self._connect(self._waiting[0][1].schema if self._waiting else None)

    def _write(self, number: int, batch: pa.RecordBatch) -> None:
        assert self._stream is not None, "it is connected"
        try:
            self._stream.write(number, batch)
        except (pa.ArrowException, flight.FlightError, OSError) as error:
            self._stream.error = self._stream.error or error  # whoever waits begins another

    def _connect(self, schema: pa.Schema | None) -> None:
        """Begin a stream, and send on it what is not acknowledged; tries for a while.

        Raises:
            StorageError: it can't be done.
        """
        until = time.monotonic() + self._retry_seconds
        pause = _AGAIN_SECONDS
        while True:
            if self._stream is not None:
                self._stream.leave()
                self._stream = None
            try:
                client = flight.connect(self._location, tls_root_certs=self._roots)
                options = flight.FlightCallOptions(headers=self._headers)
                stream = _Stream(client, self._name, schema, options, self._heard, self._news)
                self._heard(stream.first)
                self._stream = stream
                for number, batch in list(self._waiting):
                    if schema is None or not batch.schema.equals(schema):
                        break
                    stream.write(number, batch)
                return
            except _REFUSALS as error:
                raise self._failed(error) from error
            except (flight.FlightError, pa.ArrowException, OSError) as error:
                if time.monotonic() >= until:
                    raise self._failed(error) from error
            time.sleep(pause)
            pause = min(2 * pause, _MOST_AGAIN_SECONDS)

    def _heard(self, acknowledged: int) -> None:
        with self._news:
            self.acknowledged = max(self.acknowledged, acknowledged)
            while self._waiting and self._waiting[0][0] <= acknowledged:
                self._waiting_bytes -= self._waiting.popleft()[1].nbytes
            self._news.notify_all()

    def _failed(self, error: Exception) -> StorageError:
        return StorageError(
            self._location,
            f"the receiver does not take what {self._name} sends ({brief(error)})",
            "Look whether it runs, and whether name and token are right",
        )


class _Stream:
    """One `DoPut`, and a thread that hears what is acknowledged."""

    def __init__(
        self,
        client: Any,
        name: str,
        schema: pa.Schema | None,
        options: Any,
        heard: Any,
        news: threading.Condition,
    ) -> None:
        self._client = client
        self._schema = schema
        self._heard = heard
        self._news = news
        self.error: Exception | None = None
        descriptor = flight.FlightDescriptor.for_path(name)
        self._writer, self._reader = client.do_put(descriptor, schema or pa.schema([]), options)
        first = self._read()
        if first is None:  # the error is only told where the writer is closed
            self._writer.close()
            raise flight.FlightUnavailableError("it ended at once")
        self.first = first
        self._thread = threading.Thread(target=self._listen, daemon=True)
        self._thread.start()

    def takes(self, schema: pa.Schema) -> bool:
        return self.error is None and self._schema is not None and self._schema.equals(schema)

    def write(self, number: int, batch: pa.RecordBatch) -> None:
        metadata = json.dumps({"batch": number}, allow_nan=False).encode()
        self._writer.write_with_metadata(batch, metadata)

    def leave(self) -> None:
        """End it; what is not acknowledged is not known to be taken."""
        for end in (self._writer.done_writing, self._client.close):
            with contextlib.suppress(pa.ArrowException, OSError):
                end()

    def _read(self) -> int | None:
        message = self._reader.read()
        return None if message is None else int(json.loads(message.to_pybytes())["acknowledged"])

    def _listen(self) -> None:
        error: Exception = flight.FlightUnavailableError("the receiver has ended the stream")
        try:
            while (acknowledged := self._read()) is not None:
                self._heard(acknowledged)
            self._writer.close()
        except (pa.ArrowException, OSError, ValueError, KeyError) as raised:
            error = raised
        with self._news:
            self.error = self.error or error
            self._news.notify_all()
