"""Where recorded rows are replayed to: a folder, a topic of Kafka, or a receiver."""

import math
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, Literal, Protocol
from urllib.parse import urlsplit

import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import fs as pafs

from runtime.storage import StorageError, open_filesystem
from runtime.strict_json import json_text
from worker.data.kafka_client import ASK_SECONDS, producer_of

_ARROW_ROWS = 1000  # of a message
_LEAVE_SECONDS = 30.0


class Target(Protocol):
    """Takes rows, part after part."""

    def write(self, table: pa.Table, now: float) -> str:
        """Write rows that happen now, seconds since 1970; return what a person calls the place.

        Raises:
            OSError: it can't be done.
        """
        ...

    def close(self) -> None:
        """Nothing comes any more; raises OSError where something that was written is lost."""
        ...


class FolderTarget:
    """Writes files into a folder, each whole or not at all, named by the time.

    Args:
        folder: path or URL.
    """

    def __init__(self, folder: str) -> None:
        self._filesystem, self._root = open_filesystem(folder)

    def write(self, table: pa.Table, now: float) -> str:
        folder = f"{self._root.rstrip('/')}/{datetime.fromtimestamp(now, UTC):%Y-%m-%d/%H}"
        name = f"part-{round(now * 1e9):019d}.parquet"
        self._filesystem.create_dir(folder, recursive=True)
        # In a store an object is there once it is whole; a file of a disk gets its name then.
        local = isinstance(self._filesystem, pafs.LocalFileSystem)
        partial = f"{folder}/.{name}" if local else f"{folder}/{name}"
        with self._filesystem.open_output_stream(partial) as sink:
            pq.write_table(table, sink)
        if local:
            self._filesystem.move(partial, f"{folder}/{name}")
        return f"{folder}/{name}"

    def close(self) -> None:
        pass


class KafkaTarget:
    """Writes messages to a topic, spread over its partitions by the client.

    Args:
        url: `kafka://HOST:PORT[,HOST:PORT]/TOPIC`.
        form: `arrow`: an IPC stream of up to 1,000 rows a message; `json`: a row each.
        settings: of librdkafka.

    Raises:
        ValueError: the URL or a setting is wrong.
        ImportError: the client's package is missing.
    """

    def __init__(
        self, url: str, *, form: Literal["arrow", "json"], settings: Mapping[str, str] = {}
    ) -> None:
        parts = urlsplit(url)
        self._topic = parts.path.strip("/")
        if not parts.netloc or not self._topic or "/" in self._topic:
            raise ValueError(f"must look like kafka://HOST:PORT/TOPIC, got {url!r}")
        self._url, self._form = url, form
        self._refused: list[Any] = []
        self._producer = producer_of(parts.netloc, dict(settings))

    def write(self, table: pa.Table, now: float) -> str:
        for message in _arrow(table) if self._form == "arrow" else _json(table):
            self._produce(message)
        self._producer.poll(0)
        self._check()
        return self._url

    def close(self) -> None:
        left = self._producer.flush(_LEAVE_SECONDS)
        self._check()
        if left:
            raise StorageError(
                self._url,
                f"{left:,} messages were not taken within {_LEAVE_SECONDS:.0f} s",
                "Look whether the brokers can be reached",
            )

    def _produce(self, message: bytes) -> None:
        waited = 0.0
        while True:
            try:
                self._producer.produce(self._topic, value=message, on_delivery=self._delivered)
                return
            except BufferError:  # so many wait for the broker
                self._producer.poll(0.1)
                self._check()
                waited += 0.1
                if waited >= ASK_SECONDS * 3:
                    self.close()

    def _delivered(self, error: Any, _: Any) -> None:
        if error is not None:
            self._refused.append(error)

    def _check(self) -> None:
        if self._refused:
            raise StorageError(
                self._url,
                f"a message was not taken ({self._refused[0].str()})",
                "Look whether the brokers can be reached, and whether the topic is there",
            )


class ReceiverTarget:
    """Sends rows to `synchromesh data receive`; see `FlightProducer`."""

    def __init__(self, location: str, *, name: str, token: str) -> None:
        from worker.datasets.flight_producer import FlightProducer  # and with it gRPC

        self._location = location
        self._producer = FlightProducer(location, name=name, token=token)

    def write(self, table: pa.Table, now: float) -> str:
        self._producer.send(table)
        return self._location

    def close(self) -> None:
        self._producer.close()


def _arrow(table: pa.Table) -> list[bytes]:
    messages = []
    for number in range(math.ceil(table.num_rows / _ARROW_ROWS)):
        sink = pa.BufferOutputStream()
        with pa.ipc.new_stream(sink, table.schema) as writer:
            writer.write_table(table.slice(number * _ARROW_ROWS, _ARROW_ROWS))
        messages.append(sink.getvalue().to_pybytes())
    return messages


def _json(table: pa.Table) -> list[bytes]:
    for number, field in enumerate(table.schema):
        if pa.types.is_binary(field.type):
            raise ValueError(f"column {field.name!r} holds bytes, which JSON can't; write arrow")
        if pa.types.is_temporal(field.type):
            table = table.set_column(number, field.name, table.column(number).cast(pa.string()))
    return [json_text(row).encode() for row in table.to_pylist()]
