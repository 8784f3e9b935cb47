"""Replayed files: all rows in order, at the rate, each file whole."""

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from command_here import run_here
from confluent_kafka import Consumer, TopicPartition
from mock_kafka import mock_kafka

from worker.data.directory_stream import DirectoryStream
from worker.data.messages import Decoded, arrow_decoder, json_decoder
from worker.datasets.delayed_labels import LabelDelay
from worker.datasets.replay import replay
from worker.datasets.targets import FolderTarget


@pytest.fixture
def recorded(tmp_path: Path) -> str:
    for number, rows in enumerate((70, 5, 45)):
        first = (0, 70, 75)[number]
        table = pa.table({"a": list(range(first, first + rows))})
        pq.write_table(table, tmp_path / f"day-{number}.parquet", row_group_size=9)
    return str(tmp_path / "day-*.parquet")


def test_rows_come_in_order_at_the_rate(recorded: str, tmp_path: Path) -> None:
    now, times = 1_764_437_854.0, []

    def sleep(seconds: float) -> None:
        nonlocal now
        now += seconds

    rows = replay(
        [recorded],
        FolderTarget(str(tmp_path / "stream")),
        rate=20,
        every_seconds=2,
        loops=2,
        time_column="at",
        number_column="row",
        on_part=lambda place, rows: times.append((now, rows)),
        clock=lambda: now,
        sleep=sleep,
    )

    assert rows == 240
    assert times == [(1_764_437_854.0 + 2 * i, 40) for i in range(1, 7)]
    files = DirectoryStream(str(tmp_path / "stream")).poll(most=99, now=0.0)
    tables = [pq.read_table(file.path) for file in files]
    assert pa.concat_tables(tables)["a"].to_pylist() == [*range(120), *range(120)]
    assert tables[0]["at"][0].as_py().timestamp() == 1_764_437_856.0
    numbers = pa.concat_tables(tables)["row"].to_pylist()
    assert numbers == [*range(numbers[0], numbers[0] + 240)]
    assert not list((tmp_path / "stream").rglob(".*"))


def test_the_command_replays_and_says_how_much(recorded: str, tmp_path: Path) -> None:
    done = run_here("data", "replay", recorded, "--to", tmp_path / "s", "--rate", 1e9, "--json")

    assert done.returncode == 0, done.stderr
    assert '"rows": 120' in done.stdout
    missing = run_here("data", "replay", tmp_path / "none", "--to", tmp_path / "s", "--rate", 9)
    assert missing.returncode == 2
    assert "none" in missing.stderr


def messages_of(brokers: str, topic: str) -> list[bytes]:
    consumer = Consumer({"bootstrap.servers": brokers, "group.id": "g", "log_level": 0})
    ends = {n: consumer.get_watermark_offsets(TopicPartition(topic, n))[1] for n in range(4)}
    consumer.assign([TopicPartition(topic, number, 0) for number in ends])
    found: list[bytes] = []
    while len(found) < sum(ends.values()):
        found += [message.value() for message in consumer.consume(1000, timeout=1.0)]
    consumer.close()
    return found


@pytest.mark.parametrize("form", ["arrow", "json"])
def test_rows_are_replayed_to_a_topic(recorded: str, form: str) -> None:
    with mock_kafka() as kafka:
        to = f"kafka://{kafka.brokers}/rows-{form}"
        done = run_here(
            "data", "replay", recorded, "--to", to, "--rate", 1e9, "--format", form, "--json"
        )
        assert done.returncode == 0, done.stderr
        messages = messages_of(kafka.brokers, f"rows-{form}")

    decode = json_decoder({"a": "int64"}) if form == "json" else arrow_decoder(lambda _: None)
    found: Decoded = decode(messages)
    assert found.refused == {}
    assert len(messages) == (120 if form == "json" else 1)
    assert sorted(a for part in found.parts for a in part.table["a"].to_pylist()) == [*range(120)]


def test_a_topic_that_cant_be_named_or_reached_is_said(recorded: str) -> None:
    wrong = run_here("data", "replay", recorded, "--to", "kafka://host:9092", "--rate", 9)

    assert wrong.returncode == 2
    assert "kafka://HOST:PORT/TOPIC" in wrong.stderr


def labelled(folder: Path, rows: int) -> str:
    table = pa.table({"a": list(range(rows)), "label": [int(row % 3 == 0) for row in range(rows)]})
    pq.write_table(table, folder / "labelled.parquet")
    return str(folder / "labelled.parquet")


def test_labels_of_positives_come_some_time_after_their_rows(tmp_path: Path) -> None:
    now = 1_764_437_854.0

    def sleep(seconds: float) -> None:
        nonlocal now
        now += seconds

    def replayed(name: str, **options: Any) -> list[tuple[int, float, float]]:
        """Rows by number in the order of their labels, with when both were written."""
        nonlocal now
        now, rows = 1_764_437_854.0, {}
        samples, labels = tmp_path / name / "samples", tmp_path / name / "labels"
        replay(
            [labelled(tmp_path, 90)],
            FolderTarget(str(samples)),
            rate=10,
            labels_to=FolderTarget(str(labels)),
            label_delay=LabelDelay(seconds=(3.0,), **options),
            on_part=lambda place, _: rows.update({place: now}),
            clock=lambda: now,
            sleep=sleep,
        )
        came: dict[int, tuple[int, float]] = {}
        for path in sorted(samples.rglob("*.parquet")):
            part = pq.read_table(path)
            assert part.column_names == ["a", "sample_id"]
            for row, key in zip(*part.to_pydict().values(), strict=True):
                came[key] = row, rows[str(path)]
        found = []
        for path in sorted(labels.rglob("*.parquet")):
            part = pq.read_table(path)
            assert part["label"].to_pylist() == [1] * part.num_rows
            found += [(*came[key], rows[str(path)]) for key in part["sample_id"].to_pylist()]
        assert len(came) == 90
        return found

    fixed = replayed("fixed", kind="fixed")
    drawn = replayed("drawn")

    assert [row for row, *_ in fixed] == list(range(0, 90, 3))
    assert {label - sample for _, sample, label in fixed} == {3.0}
    assert sorted(row for row, *_ in drawn) == list(range(0, 90, 3))
    delays = [label - sample for _, sample, label in drawn]
    assert 1 < sum(delays) / len(delays) < 6
    assert len(set(delays)) > 4
    assert replayed("again") == drawn
    assert replayed("other", seed=1) != drawn


def test_the_command_replays_labels_by_a_key_that_rows_have(tmp_path: Path) -> None:
    recorded = labelled(tmp_path, 30)
    arguments = ["data", "replay", recorded, "--to", tmp_path / "s", "--rate", 1e9, "--every", 0.01]
    delayed = ["--labels-to", tmp_path / "l", "--label-delay", 0]

    done = run_here(*arguments, *delayed, "--key-column", "a")
    wrong = run_here(*arguments, *delayed, "--label-column", "labl")

    assert done.returncode == 0, done.stderr
    assert pq.read_table(tmp_path / "s").column_names == ["a"]
    assert pq.read_table(tmp_path / "l")["a"].to_pylist() == list(range(0, 30, 3))
    assert wrong.returncode == 2
    assert "no column 'labl', but 'label'" in wrong.stderr


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--labels-to", "in"), "--labels-to 'in' and --to 'in' lie in one another"),
        (("--labels-to", "in/labels/"), "choose places beside each other"),
        (("--labels-to", "labels", "--label-delay", "nan"), "'nan' is not a number"),
        (("--label-delay", "3"), "--label-delay is about labels of a stream of their own"),
        (("--every", "nan"), "'nan' is not a number"),
    ],
)
def test_labels_among_samples_and_options_that_mean_nothing_are_refused_before_a_row_is_written(
    recorded: str, tmp_path: Path, options: tuple[str, ...], said: str
) -> None:
    refused = run_here(
        "data", "replay", recorded, "--to", "in", "--rate", "9", *options, cwd=tmp_path
    )

    assert refused.returncode == 2
    assert said in " ".join(refused.stderr.split())
    assert not (tmp_path / "in").exists()
