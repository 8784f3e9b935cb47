"""A client of Arrow Flight: predictions of tables, batch by batch."""

import contextlib
import json
import threading
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.flight as flight

from serving.calls import OUTPUT
from serving.client import Answered
from serving.errors import BUSY, WRONG, DeadlineError, OverloadError, RequestError, ServingError

BATCH_ROWS = 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class BulkClient:
    """Asks a server for the predictions of many samples.

    Args:
        address: as `grpc://127.0.0.1:8815`.
        model: its name.
        token: that the server asks for.
        timeout_seconds: for all of a table or of what gives batches; None: as long as it takes.
        batch_rows: most rows of a batch: what the server computes together, with one version.
    """

    address: str
    model: str
    token: str | None = None
    timeout_seconds: float | None = None
    batch_rows: int = BATCH_ROWS

    def predict(
        self, data: pa.Table | pa.RecordBatchReader | Iterable[pa.RecordBatch]
    ) -> Iterator[Answered]:
        """Give the predictions of samples, batch by batch, in order.

        Batches are sent while predictions come, as far as the server takes them: neither all
        samples nor all predictions need to be in memory.

        Args:
            data: a table, or what gives its batches; all of one schema, with the columns of the
                job without its label.

        Raises:
            RequestError: the server refuses a batch for what it is.
            OverloadError: it is overloaded, or stops.
            DeadlineError: the time is over.
            ServingError: the server can't be reached, or failed.
        """
        batches = _cut(data, self.batch_rows)
        first = next(batches, None)
        if first is None:
            return
        headers = (
            [] if self.token is None else [(b"authorization", f"Bearer {self.token}".encode())]
        )
        options = flight.FlightCallOptions(headers=headers, timeout=self.timeout_seconds)
        with _telling(), flight.connect(self.address) as client:
            descriptor = flight.FlightDescriptor.for_path(self.model)
            writer, reader = client.do_exchange(descriptor, options)
            sending = _Sending(writer, first, batches)
            try:
                for chunk in _chunks(reader):
                    about = json.loads(chunk.app_metadata.to_pybytes())
                    values = [column.to_numpy() for column in chunk.data.columns]
                    outputs = tuple(chunk.data.schema.names)
                    yield Answered(
                        values[0] if outputs == (OUTPUT,) else np.stack(values, axis=1),
                        about["step"],
                        about["checkpoint"],
                        about["age_seconds"],
                        outputs,
                    )
                sending.check()
            finally:
                sending.end(reader)


class _Sending:
    """Writes batches in a thread of its own, while others are answered."""

    def __init__(self, writer: Any, first: pa.RecordBatch, rest: Iterator[pa.RecordBatch]) -> None:
        self._writer = writer
        self._error: Exception | None = None
        self._over = False
        self._thread = threading.Thread(target=self._run, args=(first, rest), daemon=True)
        self._thread.start()

    def _run(self, first: pa.RecordBatch, rest: Iterator[pa.RecordBatch]) -> None:
        try:
            self._writer.begin(first.schema)
            self._writer.write_batch(first)
            for batch in rest:
                if self._over:
                    return
                self._writer.write_batch(batch)
        except Exception as error:  # the server's, which the reader finds, or of what gives batches
            self._error = error
        finally:
            with contextlib.suppress(pa.ArrowException):
                self._writer.done_writing()

    def check(self) -> None:
        """Raise what kept it from sending all."""
        self._thread.join()
        if self._error is not None:
            raise self._error

    def end(self, reader: Any) -> None:
        self._over = True
        if self._thread.is_alive():
            reader.cancel()
        self._thread.join()
        with contextlib.suppress(pa.ArrowException):
            self._writer.close()


def _cut(data: Any, most_rows: int) -> Iterator[pa.RecordBatch]:
    if isinstance(data, pa.Table):
        yield from data.to_batches(max_chunksize=most_rows)
        return
    for batch in data:
        for start in range(0, max(batch.num_rows, 1), most_rows):
            yield batch.slice(start, most_rows)


def _chunks(reader: Any) -> Iterator[Any]:
    while True:
        try:
            yield reader.read_chunk()
        except StopIteration:
            return


@contextlib.contextmanager
def _telling() -> Iterator[None]:
    """Raise what Flight says as what the other client raises."""
    try:
        yield
    except flight.FlightError as error:
        text = str(error).split(". Detail:")[0].split(". gRPC client debug")[0]
        raise _kind_of(error)(text) from error


def _kind_of(error: flight.FlightError) -> type[Exception]:
    if isinstance(error, flight.FlightTimedOutError):
        return DeadlineError
    if isinstance(error, flight.FlightUnauthenticatedError) or error.extra_info == WRONG:
        return RequestError
    return OverloadError if error.extra_info == BUSY else ServingError
