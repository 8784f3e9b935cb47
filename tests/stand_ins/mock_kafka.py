"""librdkafka's own broker in this process: four partitions a topic, made when it is written to.

What it can't do: make topics of other sizes, add partitions, remove records by order. It keeps
5 MiB of a partition, so what is older is gone by itself.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import pyarrow as pa
from confluent_kafka import Producer

KEPT_BYTES = 5 << 20


class MockKafka:
    """A broker, and who writes to it."""

    def __init__(self, cluster: Producer) -> None:
        found = cluster.list_topics(timeout=10).brokers.values()
        self.brokers = ",".join(f"{each.host}:{each.port}" for each in found)
        self._cluster = cluster
        self._producer = Producer({"bootstrap.servers": self.brokers, "log_level": 0})

    def write(self, topic: str, messages: Sequence[bytes], *, partition: int = 0) -> None:
        refused = []
        for message in messages:
            self._producer.produce(
                topic,
                value=message,
                partition=partition,
                on_delivery=lambda error, _: refused.append(error) if error else None,
            )
        assert self._producer.flush(30) == 0
        assert refused == []


@contextmanager
def mock_kafka() -> Iterator[MockKafka]:
    # What it says of being one is no news.
    cluster = Producer({"bootstrap.servers": "none:1", "test.mock.num.brokers": 1, "log_level": 0})
    yield MockKafka(cluster)


def arrow_message(table: pa.Table) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return bytes(sink.getvalue())
