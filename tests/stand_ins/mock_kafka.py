"""librdkafka's own broker in this process: four partitions a topic, made when it is written to.

What it can't do: make topics of other sizes, add partitions, remove records by order. It keeps
5 MiB of a partition, so what is older is gone by itself. Tests that need none of this run against
another one where SYNCHROMESH_TEST_KAFKA=HOST:PORT names it.
"""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress

import pyarrow as pa
from confluent_kafka import KafkaException, Producer
from confluent_kafka.admin import AdminClient, NewTopic

KEPT_BYTES = 5 << 20
OTHER_BROKER = os.environ.get("SYNCHROMESH_TEST_KAFKA")


class MockKafka:
    """A broker, and who writes to it."""

    def __init__(self, brokers: str) -> None:
        self.brokers = brokers
        self._producer = Producer({"bootstrap.servers": brokers, "log_level": 0})

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
    found = cluster.list_topics(timeout=10).brokers.values()
    yield MockKafka(",".join(f"{each.host}:{each.port}" for each in found))
    del cluster


class OtherKafka(MockKafka):
    """A broker that runs by itself, and keeps what is written.

    A message goes by itself: Tansu 0.6 says that a partition ends after the first one of those that
    came last together.
    """

    def __init__(self, brokers: str) -> None:
        super().__init__(brokers)
        self._admin = AdminClient({"bootstrap.servers": brokers, "log_level": 0})
        self._topics: set[str] = set()

    def write(self, topic: str, messages: Sequence[bytes], *, partition: int = 0) -> None:
        if topic not in self._topics:
            self._topics.add(topic)
            self._admin.create_topics([NewTopic(topic, 4, 1)])[topic].result(30)
        for message in messages:
            super().write(topic, [message], partition=partition)

    def close(self) -> None:
        for made in (
            self._admin.delete_topics(sorted(self._topics)).values() if self._topics else ()
        ):
            with suppress(KafkaException):
                made.result(30)


@contextmanager
def kafka() -> Iterator[MockKafka]:
    """Give the broker that SYNCHROMESH_TEST_KAFKA names, else one in this process."""
    if OTHER_BROKER is None:
        with mock_kafka() as broker:
            yield broker
        return
    other = OtherKafka(OTHER_BROKER)
    try:
        yield other
    finally:
        other.close()


def arrow_message(table: pa.Table) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return bytes(sink.getvalue())
