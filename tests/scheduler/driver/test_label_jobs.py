"""Whole jobs whose labels come in a stream of their own: each sample is trained with its own."""

import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from killed_actors import disturbed
from lost_driver import driver_lost
from mock_kafka import mock_kafka
from ray_of_threads import RayOfThreads

import worker.data.joined_arrivals
from ps.checkpoint.read import CheckpointReader
from scheduler import JobConfig, Result, Trainer
from scheduler.coordinator.events import FinishWanted
from scheduler.coordinator.status import Status
from scheduler.driver.supervisor import Supervisor
from scheduler.run.directory import checkpoints_of
from worker.data.joined_arrivals import JoinedArrivals

ROWS, PER_FILE = 1500, 100
WINDOW = 3.0


def job(data: Path, run: Path, /, **sections: Any) -> JobConfig:
    adagrad = {"type": "adagrad", "initial_accumulator": 1e-4}
    stream = {"dir": str(data / "samples"), "close_seconds": 3600, "poll_seconds": 0.02}
    labels = {"dir": str(data / "labels"), "key": "id", "window_seconds": WINDOW}
    return JobConfig.from_dict(
        {
            "data": {
                "stream": {**stream, **sections.pop("stream", {})},
                "label_stream": {**labels, **sections.pop("labels", {})},
                "dense": ["d1", "d2"],
                "sparse": ["a", "b", "id"],
                "batch_size": 32,
            },
            "embedding": {"dim": 4, "optimizer": adagrad},
            "tables": {"id": {"track_usage": True}},
            "model": {"type": "dlrm", "bottom_mlp": [8], "top_mlp": [8], "optimizer": adagrad},
            "training": {"mode": "sync", "global_batch": 64, **sections.pop("training", {})},
            "cluster": {"workers": 2, "servers": 2},
            "checkpoint": {"every_steps": 3, "every_seconds": None, "full_every": 2},
            "run": {"dir": str(run), "resume": "auto"},
            **sections,
        }
    )


@pytest.fixture(scope="module")
def table(samples: Path) -> pa.Table:
    table = pq.read_table(samples / "train-0.parquet").slice(0, ROWS)
    return table.append_column("id", pa.array(range(table.num_rows)))


def put(table: pa.Table, path: Path, at: float) -> None:
    """Write a file that arrived at a time."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}")
    pq.write_table(table, partial, row_group_size=60)
    os.utime(partial, (at, at))
    partial.rename(path)


def write(table: pa.Table, to: Path) -> dict[int, int]:
    """Write samples, a file a second, and labels of positives some seconds later.

    Returns:
        What each sample is to be trained with, by its id.
    """
    rng = np.random.default_rng(1)
    came = np.arange(ROWS) // PER_FILE + 1000.0
    delay = rng.exponential(1.5, ROWS)
    label = table["label"].to_numpy()
    clicks = sorted((at, row) for row, at in enumerate(came + delay) if label[row])
    for number in range(ROWS // PER_FILE):
        part = table.slice(number * PER_FILE, PER_FILE).drop_columns(["label"])
        put(part, to / "samples" / f"part-{number:03d}.parquet", 1000.0 + number)
    for second in range(60):
        rows = [row for at, row in clicks if at // 1 == 1000 + second]
        if rows:
            found = pa.table({"id": rows, "label": [1] * len(rows)})
            put(found, to / "labels" / f"part-{second:03d}.parquet", 1001.0 + second)
    known = np.floor(came + delay) + 1.0
    return {row: int(label[row] and known[row] < came[row] + WINDOW) for row in range(ROWS)}


@contextmanager
def finishing() -> Iterator[None]:
    poll = Supervisor.poll

    def poll_and_finish(self: Supervisor) -> Status:
        status = poll(self)
        if not status.is_to_finish:
            self.tell_coordinator(self.processes.coordinator.handle.order.remote(FinishWanted()))
        return status

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Supervisor, "poll", poll_and_finish)
        yield


def finished(config: JobConfig) -> Result:
    """Train all that is there."""
    with finishing():
        return Trainer(config).fit()


def frequencies(result: Result) -> dict[int, int]:
    """How often a step had each id: what the model itself remembers."""
    reader = CheckpointReader(result.checkpoint)
    (table,) = (table for table in reader.store.tables if table.name == "id")
    found: dict[int, int] = {}
    for rows in reader.rows(table):
        found.update(zip(rows.keys.tolist(), rows.frequency.tolist(), strict=True))
    return found


def trained_with(run: Path) -> dict[int, list[int]]:
    """The labels with which each sample was trained, as the plan has them."""
    batches: dict[int, list[tuple[int, int, int, int]]] = {}
    paths: dict[int, str] = {}
    for file in sorted((run / "plan").iterdir()):
        for line in file.read_text().splitlines():
            extension = json.loads(line)
            paths.update((each["number"], each["plan"]["path"]) for each in extension["files"])
            for number, batch in enumerate(extension["batches"], extension["first"]):
                batches[number] = batch["rows"]
    found: dict[int, list[int]] = {}
    for rows in batches.values():
        for number, group, start, stop in rows:
            part = pq.ParquetFile(paths[number]).read_row_group(group).slice(start, stop - start)
            for key, label in zip(part["id"].to_pylist(), part["label"].to_pylist(), strict=True):
                found.setdefault(key, []).append(label)
    return found


@pytest.fixture
def small_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """A file or two is a step, and what waits is written down often."""
    monkeypatch.setattr(worker.data.joined_arrivals, "MOST_ROWS", 1)
    monkeypatch.setattr(worker.data.joined_arrivals, "FILES_AT_ONCE", 1)
    monkeypatch.setattr(worker.data.joined_arrivals, "LEAST_SAVED", 1)
    monkeypatch.setattr(worker.data.joined_arrivals, "SAVED_AGAIN", 0.3)


@pytest.fixture
def nothing_goes(monkeypatch: pytest.MonkeyPatch) -> None:
    """What was joined stays, so that it can be looked at."""
    monkeypatch.setattr(JoinedArrivals, "remove", lambda self, path: None)


@pytest.mark.usefixtures("small_steps", "nothing_goes")
def test_whoever_dies_each_sample_is_trained_once_with_the_label_that_was_in_time(
    jobs_in_threads: RayOfThreads, table: pa.Table, tmp_path: Path
) -> None:
    right = write(table, tmp_path)
    run = tmp_path / "run"
    calm = finished(job(tmp_path, tmp_path / "calm"))

    with (
        disturbed(jobs_in_threads, ("coordinator", 0, 4), ("server", 1, 8)),
        driver_lost(lambda status: status.applied_step >= 10 and checkpoints_of(run) != []),
    ):
        Trainer(job(tmp_path, run)).fit()
    with disturbed(jobs_in_threads, ("coordinator", 0, 14), ("server", 0, 17)):
        killed = finished(job(tmp_path, run))

    for each in (tmp_path / "calm", run):
        assert trained_with(each) == {key: [label] for key, label in right.items()}
    for result in (calm, killed):
        assert frequencies(result) == dict.fromkeys(range(ROWS), 1)
        figures = result.metrics["stream"]["labels"]
        assert figures["joined"] == sum(right.values()) > 100
        assert figures["joined"] + figures["expired"] == figures["samples"] == ROWS
        assert figures["late"] > figures["orphans"] > 0
        assert figures["joined"] + figures["late"] + figures["orphans"] == figures["labels"]
        assert figures["waiting"] == figures["remembered"] == 0
    assert killed.metrics["model_digest"] == calm.metrics["model_digest"]
    assert len(killed.metrics["recoveries"]) >= 2
    assert len(list((run / "arrived" / "joined").iterdir())) > 10


@pytest.mark.usefixtures("small_steps", "nothing_goes")
def test_a_late_positive_is_trained_after_it_was_a_negative(
    jobs_in_threads: RayOfThreads, table: pa.Table, tmp_path: Path
) -> None:
    write(table, tmp_path)
    settings: dict[str, Any] = {
        "labels": {"window_seconds": 0, "remember_seconds": 60},
        "training": {"loss": "fake_negative_weighting"},
    }

    with driver_lost(lambda status: status.applied_step >= 6):
        Trainer(job(tmp_path, tmp_path / "run", **settings)).fit()
    result = finished(job(tmp_path, tmp_path / "run", **settings))

    label = table["label"].to_pylist()
    right = {key: [0, 1] if label[key] else [0] for key in range(ROWS)}
    assert trained_with(tmp_path / "run") == right
    assert frequencies(result) == {key: len(labels) for key, labels in right.items()}
    assert result.metrics["stream"]["labels"]["again"] == sum(label)


@pytest.mark.usefixtures("small_steps")
def test_files_of_both_streams_go_once_no_checkpoint_needs_them(
    jobs_in_threads: RayOfThreads, table: pa.Table, tmp_path: Path
) -> None:
    right = write(table, tmp_path)
    run, removes = tmp_path / "run", {"trained_files": "remove"}
    settings: dict[str, Any] = {
        "stream": removes,
        "labels": removes,
        "checkpoint": {"every_steps": 3, "every_seconds": None, "full_every": 1, "keep": 1},
    }

    def some_are_gone(status: Status) -> bool:
        return 0 < len(list((tmp_path / "samples").iterdir())) < ROWS // PER_FILE

    with driver_lost(some_are_gone):
        Trainer(job(tmp_path, run, **settings)).fit()
    result = finished(job(tmp_path, run, **settings))

    assert frequencies(result) == dict.fromkeys(range(ROWS), 1)
    assert result.metrics["stream"]["labels"]["joined"] == sum(right.values())
    # The last of them are there until what is known after them is written down.
    assert len(list((tmp_path / "samples").iterdir())) < 8
    assert len(list((tmp_path / "labels").iterdir())) < 8
    assert list((run / "arrived" / "joined").iterdir()) == []
    assert list((run / "arrived" / "rows").iterdir()) == []


@pytest.mark.usefixtures("nothing_goes")
def test_labels_may_come_by_a_topic(
    jobs_in_threads: RayOfThreads, table: pa.Table, tmp_path: Path
) -> None:
    label = table["label"].to_pylist()
    with mock_kafka() as kafka:
        clicks = [json.dumps({"id": key, "label": 1}).encode() for key in range(ROWS) if label[key]]
        for partition in range(3):
            kafka.write("labels", clicks[partition::3], partition=partition)
        put(table.drop_columns(["label"]), tmp_path / "samples" / "1.parquet", time.time())
        topic = {"type": "kafka", "brokers": kafka.brokers, "topic": "labels", "format": "json"}
        columns = {"id": "int64", "label": "int8"}
        config = job(tmp_path, tmp_path / "run").model_dump(mode="json")
        config["data"]["label_stream"] = {
            **topic, "columns": columns, "key": "id", "window_seconds": 1,
            "remember_seconds": 60,
        }  # fmt: skip

        result = finished(JobConfig.from_dict(config))

    assert trained_with(tmp_path / "run") == {key: [label[key]] for key in range(ROWS)}
    assert result.metrics["stream"]["labels"]["joined"] == sum(label)
