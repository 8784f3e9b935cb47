"""Arrow Flight: producers send batches by `DoPut`, and hear of each once it is on the disk.

The descriptor's path is the producer's name. The server says first, as app metadata of JSON,
`{"acknowledged": N}`, the last batch of this producer that it has; each batch comes with
`{"batch": N}`, one after the other, and acknowledgements are as the first word, each up to N. What
is not acknowledged is to be sent again, on another stream: nothing is taken twice.
"""

import json
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.flight as flight

from runtime.flight_calls import TokenRequired, only_flight_errors
from worker.datasets.receiving import Inbox, ReceiveError, Spool

MAX_METADATA_BYTES = 256


class FlightReceiver(flight.FlightServerBase):
    """Takes the batches of producers into a folder.

    Args:
        folder: local folder; its files are those of a stream.
        host, port: where to listen; port 0: a free one.
        token: that every call must bear.
        every_seconds: what has come is put onto the disk so often.
        most_producers: that may send at once.
        most_batch_bytes: of one batch.
        certificate: (chain, private key) in PEM; None: in plain text.
        note: tells a person something.

    Raises:
        OSError: the folder can't be written, or nobody can listen there.
    """

    def __init__(
        self,
        folder: Path,
        *,
        host: str = "127.0.0.1",
        port: int = 0,
        token: str,
        every_seconds: float = 1.0,
        most_producers: int = 32,
        most_batch_bytes: int = 64 << 20,
        certificate: tuple[bytes, bytes] | None = None,
        note: Callable[[str], None] = lambda text: None,
    ) -> None:
        self._spool = Spool(folder)
        self._most_producers = most_producers
        self._most_batch_bytes = most_batch_bytes
        self._note = note
        self._inboxes: dict[str, Inbox] = {}
        self._lock = threading.Lock()
        self._over = threading.Event()
        scheme = "grpc+tls" if certificate else "grpc"
        try:
            super().__init__(
                f"{scheme}://{host}:{port}",
                middleware={"token": TokenRequired(token)},
                tls_certificates=[certificate] if certificate else None,
            )
        except pa.ArrowException as error:
            raise OSError(f"nobody can listen at {host}:{port}: {error}") from error
        self.location = f"{scheme}://{host}:{self.port}"
        self._flusher = threading.Thread(
            target=self._flush_now_and_then, args=(every_seconds,), daemon=True
        )
        self._flusher.start()

    def do_put(self, context: Any, descriptor: Any, reader: Any, writer: Any) -> None:
        """Take one stream of a producer; raises FlightError."""
        with only_flight_errors():
            self._take(descriptor, reader, writer)

    def _take(self, descriptor: Any, reader: Any, writer: Any) -> None:
        parts = descriptor.path or []
        producer = parts[0].decode("utf-8", "replace") if len(parts) == 1 else ""
        try:
            inbox = self._begin(producer, lambda last: _say(writer, last))
        except ReceiveError as error:
            raise flight.FlightServerError(str(error)) from error
        try:
            while True:
                try:
                    chunk = reader.read_chunk()
                except StopIteration:
                    break
                inbox.add(_number_of(chunk.app_metadata), self._checked(chunk.data))
            inbox.flush()
        except ReceiveError as error:
            raise flight.FlightServerError(str(error)) from error
        except OSError as error:
            self._note(f"what {producer} sends can't be written: {error}")
            raise flight.FlightUnavailableError(f"it can't be written: {error}") from error
        finally:
            self._end(producer, inbox)

    def close(self) -> None:
        """Write down and acknowledge what has come, and take nothing more; 2 s at most."""
        self._over.set()
        self._flush()
        for inbox in list(self._inboxes.values()):
            inbox.close(_ends())
        ending = threading.Thread(target=self.shutdown, daemon=True)
        ending.start()
        ending.join(2.0)

    def _begin(self, producer: str, say: Callable[[int], None]) -> Inbox:
        with self._lock:
            before = self._inboxes.get(producer)
            if before is None and len(self._inboxes) >= self._most_producers:
                raise ReceiveError(
                    f"{self._most_producers} producers send already; try again later"
                )
            if before is not None:
                # As a rule its connection is lost, and nobody has noticed.
                before.close(ReceiveError(f"another stream of {producer!r} has begun"))
            inbox = self._inboxes[producer] = Inbox(self._spool, producer, say)
            if self._over.is_set():
                inbox.close(_ends())
        say(inbox.last)
        return inbox

    def _end(self, producer: str, inbox: Inbox) -> None:
        inbox.close(_ends())
        with self._lock:
            if self._inboxes.get(producer) is inbox:
                del self._inboxes[producer]

    def _checked(self, batch: pa.RecordBatch | None) -> pa.RecordBatch:
        if batch is None:
            raise ReceiveError("a message came without a batch")
        if batch.nbytes > self._most_batch_bytes:
            raise ReceiveError(
                f"a batch has {batch.nbytes:,} bytes, at most {self._most_batch_bytes:,} are"
                " taken; send smaller ones"
            )
        batch.validate(full=True)
        return batch

    def _flush_now_and_then(self, every_seconds: float) -> None:
        while not self._over.wait(every_seconds):
            self._flush()

    def _flush(self) -> None:
        for inbox in list(self._inboxes.values()):
            try:
                if inbox.waits:
                    inbox.flush()
            except OSError as error:
                self._note(f"what has come can't be written: {error}")
                inbox.close(flight.FlightUnavailableError(f"it can't be written: {error}"))
            except (ReceiveError, pa.ArrowException):
                pass  # its stream has ended meanwhile


def _ends() -> Exception:
    return flight.FlightUnavailableError("the receiver ends")


def _number_of(metadata: pa.Buffer | None) -> int:
    """Return the number of a batch; raises ReceiveError."""
    try:
        if metadata is None or metadata.size > MAX_METADATA_BYTES:
            raise ValueError("it has no app metadata, or too much")
        number = json.loads(metadata.to_pybytes())["batch"]
        if type(number) is not int or not 0 < number < 2**62:
            raise ValueError(f"its number is {number!r}")
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ReceiveError(
            f'a batch must come with app metadata such as {{"batch": 1}}: {error}'
        ) from error
    return number


def _say(writer: Any, last: int) -> None:
    writer.write(json.dumps({"acknowledged": last}, allow_nan=False).encode())
