"""A topic as a stream, read from a broker: every message once, whoever goes on."""

import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from confluent_kafka import Consumer, TopicPartition
from mock_kafka import KEPT_BYTES, OTHER_BROKER, MockKafka
from mock_kafka import kafka as some_kafka

import worker.data.kafka_stream
from runtime.storage import StorageError
from worker.data.kafka_client import read_client_file
from worker.data.kafka_stream import KafkaStream, KafkaTopic
from worker.data.messages import json_decoder
from worker.data.streams import Arrival
from worker.errors import DataError

Begin = Callable[..., KafkaStream]


@pytest.fixture(scope="module")
def kafka() -> Iterator[MockKafka]:
    with some_kafka() as broker:
        yield broker


@pytest.fixture
def topic(request: pytest.FixtureRequest) -> str:
    return f"{request.node.name}-{time.time_ns()}"


@pytest.fixture
def begin(kafka: MockKafka, topic: str, tmp_path: Path) -> Iterator[Begin]:
    """What begins a stream of the test's topic; all are closed at the end."""
    streams: list[KafkaStream] = []

    def begin(**options: Any) -> KafkaStream:
        of_topic = {
            name: options.pop(name) for name in ("start", "on_lost", "group") if name in options
        }
        settings = {"group": "g", **of_topic}
        made = KafkaStream(
            KafkaTopic(brokers=kafka.brokers, topic=topic, **settings),
            json_decoder({"a": "int64"}),
            **{"spool": tmp_path / "spool", **options},
        )
        streams.append(made)
        return made

    yield begin
    for stream in streams:
        stream.close()


def rows(first: int, count: int = 1) -> list[bytes]:
    return [b'{"a": %d}' % number for number in range(first, first + count)]


def taken(stream: KafkaStream, count: int) -> list[Arrival]:
    """What arrives until there are so many rows."""
    arrivals: list[Arrival] = []
    until = time.monotonic() + 60
    while len(values(arrivals)) < count and time.monotonic() < until:
        arrivals += stream.poll(most=64, now=time.time())
        time.sleep(0.02)
    while not stream.took_all and time.monotonic() < until:
        assert stream.poll(most=64, now=time.time()) == []
        time.sleep(0.02)
    assert stream.took_all
    return arrivals


def values(arrivals: list[Arrival]) -> list[int]:
    return [a for each in arrivals for a in pq.read_table(each.path)["a"].to_pylist()]


def committed(kafka: MockKafka, topic: str, group: str = "g") -> list[int]:
    consumer = Consumer({"bootstrap.servers": kafka.brokers, "group.id": group})
    found = consumer.committed([TopicPartition(topic, number) for number in range(4)], timeout=10)
    consumer.close()
    return [each.offset for each in found]


def test_each_message_is_taken_once_whoever_goes_on_from_a_position(
    kafka: MockKafka, topic: str, begin: Begin
) -> None:
    for partition in range(3):
        kafka.write(topic, rows(10 * partition, 5), partition=partition)
    stream = begin()
    began = stream.position
    assert not stream.took_all, "nobody has looked yet"
    first = values(taken(stream, 15))
    position = json.loads(json.dumps(stream.position))
    kafka.write(topic, rows(5, 5))
    second = taken(stream, 5)
    lost_with_its_driver = [each.path for each in second]

    other = begin()
    other.seek(position)
    assert not any(Path(path).exists() for path in lost_with_its_driver)
    again = taken(other, 5)
    assert values(again) == [5, 6, 7, 8, 9]
    from_the_start = begin()
    from_the_start.seek(began)

    assert sorted(first) == [*range(5), *range(10, 15), *range(20, 25)]
    assert again[0].path == lost_with_its_driver[0]
    assert other.position["offsets"] == {"0": 10, "1": 5, "2": 5, "3": 0}
    assert other.lag().messages == 0
    assert len(values(taken(from_the_start, 20))) == 20
    with pytest.raises(ValueError, match="no position"):
        other.seek({**position, "topic": "another"})


def test_rows_know_where_they_come_from_and_arrive_when_they_were_written(
    kafka: MockKafka, topic: str, begin: Begin
) -> None:
    kafka.write(topic, rows(0, 3), partition=2)

    arrivals = taken(begin(), 3)

    table = pa.concat_tables(pq.read_table(arrival.path) for arrival in arrivals)
    assert table["_partition"].to_pylist() == [2, 2, 2]
    assert table["_offset"].to_pylist() == [0, 1, 2]
    assert all(time.time() - 120 < arrival.at <= time.time() for arrival in arrivals)


def test_a_stream_begins_where_it_is_to(kafka: MockKafka, topic: str, begin: Begin) -> None:
    kafka.write(topic, rows(0, 3))
    begun = begin(start="now")
    kafka.write(topic, rows(3, 2))
    assert values(taken(begun, 2)) == [3, 4]
    begun.is_in_cut(begun.position, None)
    begun.close()
    kafka.write(topic, rows(5, 1))

    assert values(taken(begin(start="committed"), 1)) == [5]
    assert values(taken(begin(start="committed", group="new"), 6)) == [*range(6)]


def test_offsets_are_committed_once_a_cut_has_trained_what_is_before_them(
    kafka: MockKafka, topic: str, begin: Begin
) -> None:
    kafka.write(topic, rows(0, 4))
    stream = begin()
    first, *_ = taken(stream, 4)
    kafka.write(topic, rows(4, 3))
    second, *_ = taken(stream, 3)
    position = stream.position
    assert set(committed(kafka, topic)) == {-1001}

    stream.is_in_cut(stream.position, second.path)
    stream.close()
    assert committed(kafka, topic)[0] == 4, "of the second file rows are not trained"

    stream = begin()
    stream.seek(position)
    stream.is_in_cut(stream.position, first.path)
    stream.is_in_cut(stream.position, None)
    stream.close()
    assert committed(kafka, topic)[0] == 7


def test_a_file_that_is_needed_no_more_is_removed(
    kafka: MockKafka, topic: str, begin: Begin
) -> None:
    kafka.write(topic, rows(0, 2))
    stream = begin()
    arrival, *_ = taken(stream, 2)

    stream.remove(arrival.path)
    stream.remove(arrival.path)

    assert not Path(arrival.path).exists()


def test_a_message_that_cant_be_used_is_counted_and_kept_aside_once(
    kafka: MockKafka, topic: str, begin: Begin, tmp_path: Path
) -> None:
    kafka.write(topic, [*rows(0, 2), b"null", *rows(2, 2), b"\x00\xff", b""])
    notes: list[str] = []
    options = {"on_bad_record": "quarantine", "aside": tmp_path / "aside", "note": notes.append}
    stream = begin(**options)
    began = stream.position
    assert values(taken(stream, 4)) == [0, 1, 2, 3]
    again = begin(**options)
    again.seek(began)
    assert values(taken(again, 4)) == [0, 1, 2, 3]

    assert (stream.lag().refused, again.lag().refused) == (3, 3)
    kept = pq.read_table(tmp_path / "aside")
    assert sorted(kept["_offset"].to_pylist()) == [2, 5, 6]
    assert b"\x00\xff" in kept["value"].to_pylist()
    assert "no JSON object" in kept["_reason"][0].as_py()
    assert "can't be used" in notes[0]
    assert again.position["offsets"]["0"] == 7
    with pytest.raises(DataError, match=r"message 2 of partition 0.*quarantine"):
        taken(begin(), 4)


@pytest.mark.skipif(OTHER_BROKER is not None, reason="another broker keeps what is written")
def test_what_the_broker_has_removed_meanwhile_ends_the_job_or_is_counted(
    kafka: MockKafka, topic: str, begin: Begin
) -> None:
    kafka.write(topic, rows(0, 3))
    stream = begin()
    taken(stream, 3)
    position = stream.position
    kafka.write(topic, [b'{"x": "%s"}' % (b"x" * 100_000)] * (KEPT_BYTES // 100_000 + 10))
    notes: list[str] = []

    late = begin()
    late.seek(position)
    with pytest.raises(DataError, match=r"begins with message .*, and 3 is .*retention.*on_lost"):
        taken(late, 1)
    goes_on = begin(on_lost="skip", note=notes.append)
    goes_on.seek(position)
    kafka.write(topic, rows(7, 1))
    arrivals = taken(goes_on, 40)

    assert "LOST" in notes[0]
    assert goes_on.lag().lost > 0
    assert goes_on.lag().lost + 3 + len(values(arrivals)) == goes_on.position["offsets"]["0"]
    assert values(arrivals)[-1] == 7


def test_a_topic_that_was_made_anew_is_told_from_one_that_goes_on(
    kafka: MockKafka, topic: str, begin: Begin
) -> None:
    kafka.write(topic, rows(0, 3))
    stream = begin()
    stream.seek({**stream.position, "offsets": {"0": 99}})

    with pytest.raises(DataError, match=r"ends before message 3, and 99 .*made anew"):
        taken(stream, 1)


def test_partitions_that_come_later_are_read_from_their_beginning(
    kafka: MockKafka, topic: str, begin: Begin, monkeypatch: pytest.MonkeyPatch
) -> None:
    for partition in range(4):
        kafka.write(topic, rows(partition), partition=partition)
    notes: list[str] = []
    counts = [2, 2]  # the broker can't add any, so two are hidden at first
    monkeypatch.setattr(
        worker.data.kafka_stream,
        "partitions_of",
        lambda *args, **options: counts.pop() if counts else 4,
    )
    monkeypatch.setattr(worker.data.kafka_stream, "_LOOK_SECONDS", 0.5)
    stream = begin(note=notes.append)

    arrivals = taken(stream, 4)

    assert sorted(values(arrivals)) == [0, 1, 2, 3]
    assert "has 4 partitions now" in notes[0]
    assert len(stream.position["offsets"]) == 4


def test_a_broker_that_is_not_there_and_a_topic_that_is_not_are_told_apart(
    kafka: MockKafka, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("worker.data.kafka_client.ASK_SECONDS", 0.5)
    decode = json_decoder({"a": "int64"})

    def begun(brokers: str) -> KafkaStream:
        topic = KafkaTopic(brokers=brokers, topic="nowhere", group="g")
        return KafkaStream(topic, decode, spool=tmp_path)

    with pytest.raises(StorageError, match=r"kafka://.*'nowhere' can't be read.*Unknown topic"):
        begun(kafka.brokers)
    with pytest.raises(StorageError, match=r"kafka://127\.0\.0\.1:1/nowhere: no broker answers"):
        begun("127.0.0.1:1")


def test_what_a_file_of_settings_says_reaches_the_client_but_not_what_the_job_says(
    tmp_path: Path,
) -> None:
    path = tmp_path / "client.properties"
    path.write_text("# secret\nsasl.password = a=b\n\nsecurity.protocol=SSL\n")
    assert read_client_file(str(path)) == {"sasl.password": "a=b", "security.protocol": "SSL"}

    path.write_text("group.id=x")
    with pytest.raises(ValueError, match=r"line 1: group\.id is set by the job.*group"):
        read_client_file(str(path))
    path.write_text("x=1\nnonsense")
    with pytest.raises(ValueError, match="line 2"):
        read_client_file(str(path))
