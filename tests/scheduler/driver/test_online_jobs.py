"""Whole jobs on a stream, in threads: what arrives is trained once, whoever dies."""

import json
import math
import os
import random
import shutil
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from confluent_kafka import Consumer, TopicPartition
from held_back import hold_back
from killed_actors import disturbed
from lost_driver import driver_lost
from mock_kafka import arrow_message
from mock_kafka import kafka as some_kafka
from ray_of_threads import RayOfThreads

from ps.checkpoint.read import CheckpointReader
from ps.following.follower import Follower
from scheduler import JobConfig, Result, Trainer
from scheduler.coordinator.events import EndOfTrainingWanted, FinishWanted, Wanted
from scheduler.coordinator.status import Status
from scheduler.driver.supervisor import Supervisor
from scheduler.run.directory import checkpoints_of

ROWS, PER_FILE = 1500, 100
LIMIT_SECONDS = 60.0


def job(stream: Path, run: Path, /, **sections: Any) -> JobConfig:
    adagrad = {"type": "adagrad", "initial_accumulator": 1e-4}
    data = {
        "stream": {"dir": str(stream), "close_seconds": 0.2, "poll_seconds": 0.02},
        "dense": ["d1", "d2"],
        "sparse": ["a", "b", "id"],
        "batch_size": 32,
    }
    return JobConfig.from_dict(
        {
            "data": {**data, **sections.pop("data", {})},
            "embedding": {"dim": 4, "optimizer": adagrad},
            "tables": {"id": {"track_usage": True}},
            "model": {"type": "dlrm", "bottom_mlp": [8], "top_mlp": [8], "optimizer": adagrad},
            "training": {
                "mode": "sync",
                "global_batch": 64,
                "online": {"window_seconds": 0.5},
                **sections.pop("training", {}),
            },
            "cluster": {"workers": 2, "servers": 2},
            "checkpoint": {"every_steps": 3, "every_seconds": None, "full_every": 2},
            "run": {"dir": str(run), "resume": "auto"},
            **sections,
        }
    )


@pytest.fixture(scope="module")
def files(samples: Path) -> list[pa.Table]:
    """Tables that arrive, of rows that can be told apart by `id`."""
    table = pq.read_table(samples / "train-0.parquet").slice(0, ROWS)
    table = table.append_column("id", pa.array(range(table.num_rows)))
    return [table.slice(first, PER_FILE) for first in range(0, table.num_rows, PER_FILE)]


def write(files: list[pa.Table], to: Path, *, first: int = 0) -> None:
    to.mkdir(exist_ok=True)
    for number, table in enumerate(files, first):
        partial = to / f".part-{number}.parquet"
        pq.write_table(table, partial, row_group_size=60)
        partial.rename(to / f"part-{number}.parquet")


def times_trained(result: Result) -> dict[int, int]:
    """How often a step had each id: what the model itself remembers."""
    reader = CheckpointReader(result.checkpoint)
    (table,) = (table for table in reader.store.tables if table.name == "id")
    found: dict[int, int] = {}
    for rows in reader.rows(table):
        found.update(zip(rows.keys.tolist(), rows.frequency.tolist(), strict=True))
    return found


def each_once(result: Result) -> bool:
    times = times_trained(result)
    return len(times) == ROWS and set(times.values()) == {1}


@contextmanager
def arriving(
    files: list[pa.Table],
    to: Path,
    *,
    pause: float = 0.1,
    may_come: Callable[[int], bool] = lambda number: True,
) -> Iterator[threading.Thread]:
    """Files appear while the block runs, the first three before it.

    Args:
        may_come: says whether the time of a file has come.
    """
    write(files[:3], to)

    def write_others() -> None:
        for number, table in enumerate(files[3:], 3):
            time.sleep(pause)
            until = time.monotonic() + LIMIT_SECONDS
            while not may_come(number) and time.monotonic() < until:
                time.sleep(0.02)
            write([table], to, first=number)

    thread = threading.Thread(target=write_others)
    thread.start()
    try:
        yield thread
    finally:
        thread.join()


@contextmanager
def finishing(arriving: threading.Thread | None = None) -> Iterator[None]:
    """The stream ends with all that is there, or with the last that arrives."""
    poll = Supervisor.poll

    def poll_and_finish(self: Supervisor) -> Status:
        status = poll(self)
        if not status.is_to_finish and (arriving is None or not arriving.is_alive()):
            self.tell_coordinator(self.processes.coordinator.handle.order.remote(FinishWanted()))
        return status

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Supervisor, "poll", poll_and_finish)
        yield


def finished(config: JobConfig) -> Result:
    """Train all that is there."""
    with finishing():
        return Trainer(config).fit()


@contextmanager
def ordered(wanted: Wanted, when: Callable[[Status], bool]) -> Iterator[None]:
    """Somebody orders something as by `synchromesh control`, once the status is such.

    Until then batches take long.
    """
    poll = Supervisor.poll
    done: list[bool] = []

    def poll_and_order(self: Supervisor) -> Status:
        status = poll(self)
        if not done and when(status):
            done.append(True)
            self.tell_coordinator(self.processes.coordinator.handle.order.remote(wanted))
        return status

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Supervisor, "poll", poll_and_order)
        hold_back(patch, lambda: not done)
        yield


def test_what_arrives_while_the_job_runs_is_trained_once(
    jobs_in_threads: RayOfThreads, files: list[pa.Table], tmp_path: Path
) -> None:
    stream = tmp_path / "stream"
    with arriving(files, stream) as others, finishing(others):
        result = Trainer(job(stream, tmp_path / "run")).fit()

    assert result.metrics["samples_trained"] == ROWS
    assert each_once(result)
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    windows = [window for line in lines for window in json.loads(line)["windows"]]
    assert windows[0]["logloss"] == pytest.approx(math.log(2), abs=0.06)
    if not result.metrics["recoveries"]:  # else windows are told again
        assert sum(window["samples"] for window in windows) == ROWS
        begins = [window["begins"] for window in windows]
        assert begins == sorted(set(begins))


def test_whoever_dies_the_model_is_the_undisturbed_one_and_each_sample_was_trained_once(
    jobs_in_threads: RayOfThreads, files: list[pa.Table], tmp_path: Path
) -> None:
    stream, run = tmp_path / "stream", tmp_path / "run"
    write(files, stream)
    calm = finished(job(stream, tmp_path / "calm"))

    with (
        disturbed(jobs_in_threads, ("coordinator", 0, 4), ("server", 1, 8)),
        driver_lost(lambda status: status.applied_step >= 10 and checkpoints_of(run) != []),
    ):
        Trainer(job(stream, run)).fit()
    (stream / "part-0.parquet").unlink()  # the checkpoint has its rows, nobody reads it again
    with disturbed(jobs_in_threads, ("coordinator", 0, 14), ("server", 0, 17)):
        killed = finished(job(stream, run))

    assert each_once(calm)
    assert each_once(killed)
    assert killed.metrics["model_digest"] == calm.metrics["model_digest"]
    assert len(killed.metrics["recoveries"]) >= 2


@pytest.mark.parametrize("mode", ["async", pytest.param("gba", marks=pytest.mark.slow)])
def test_each_sample_is_trained_once_where_nobody_waits(
    jobs_in_threads: RayOfThreads, files: list[pa.Table], tmp_path: Path, mode: str
) -> None:
    stream, run = tmp_path / "stream", tmp_path / "run"
    training = {"mode": mode, "staleness_bound": 1000}
    with arriving(files, stream) as others:
        with driver_lost(lambda status: checkpoints_of(run) != []):
            Trainer(job(stream, run, training=training)).fit()
        shutil.rmtree(run / "plan")  # the checkpoint has all that is needed

        with finishing(others):
            result = Trainer(job(stream, run, training=training)).fit()

    assert each_once(result)


def test_a_backlog_is_told_in_the_windows_in_which_it_was_written(
    jobs_in_threads: RayOfThreads, files: list[pa.Table], tmp_path: Path
) -> None:
    stream, run = tmp_path / "stream", tmp_path / "run"
    write(files, stream)
    for number in range(len(files)):
        written = 10.0 * (number // 5)
        os.utime(stream / f"part-{number}.parquet", (written, written))
    (stream / "part-3.parquet").write_bytes(b"PAR1 and no more")
    online = {"window_seconds": 10, "until": {"idle_seconds": 1}}
    data = {"on_bad_file": "skip", "stream": {"dir": str(stream), "settle_seconds": 0.1}}

    result = Trainer(job(stream, run, data=data, training={"online": online})).fit()

    rows = ROWS - PER_FILE
    assert result.metrics["samples_trained"] == rows
    figures = result.metrics["stream"]
    assert (figures["files_skipped"], figures["files_waiting"]) == (1, 0)
    assert figures["first_skipped"] == [str(stream / "part-3.parquet")]
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert lines[-1]["stream"]["files_skipped"] == 1
    windows = [window for line in lines for window in line["windows"]]
    assert [window["begins"] for window in windows] == [0, 10, 20]
    assert sum(window["samples"] for window in windows) == rows
    assert result.metrics["stopped"] is False


def test_a_job_that_was_stopped_goes_on_and_one_that_is_to_finish_trains_what_is_there(
    jobs_in_threads: RayOfThreads, files: list[pa.Table], tmp_path: Path
) -> None:
    stream, run = tmp_path / "stream", tmp_path / "run"
    write(files[:8], stream)

    with ordered(EndOfTrainingWanted(), lambda status: status.applied_step >= 3):
        stopped = Trainer(job(stream, run)).fit()
    assert stopped.metrics["stopped"]
    assert 0 < stopped.metrics["samples_trained"] < 8 * PER_FILE
    with ordered(EndOfTrainingWanted(), lambda status: True):
        again = Trainer(job(stream, run)).fit()
    write(files[8:], stream, first=8)
    with ordered(FinishWanted(), lambda status: True):
        result = Trainer(job(stream, run)).fit()

    assert again.metrics["stopped"]
    assert not result.metrics["stopped"]
    assert each_once(result)
    assert Trainer(job(stream, run)).fit().metrics == result.metrics


def test_files_go_once_no_checkpoint_needs_them_whoever_dies(
    jobs_in_threads: RayOfThreads, files: list[pa.Table], tmp_path: Path
) -> None:
    stream, run, old = tmp_path / "stream", tmp_path / "run", tmp_path / "old"
    settings = {"trained_files": "remove", "archive": str(old), "close_seconds": 0.2}
    sections = {
        "data": {"stream": {"dir": str(stream), **settings}},
        "checkpoint": {"every_steps": 3, "every_seconds": None, "full_every": 1, "keep": 1},
    }
    write(files, stream)

    def is_under_way(status: Status) -> bool:
        return status.applied_step >= 10 and 0 < len(list(stream.iterdir())) < len(files)

    with (
        disturbed(jobs_in_threads, ("server", 1, 8)),
        driver_lost(is_under_way),
    ):
        Trainer(job(stream, run, **sections)).fit()
    there = len(list(stream.iterdir()))
    with disturbed(jobs_in_threads, ("coordinator", 0, 16)):
        result = finished(job(stream, run, **sections))

    assert 0 < there < len(files)
    assert each_once(result)
    assert list(stream.iterdir()) == []
    assert pq.read_table(old).num_rows == ROWS


@pytest.mark.parametrize("form", ["json", "arrow"])
def test_messages_of_a_broker_are_trained_once_though_the_driver_is_lost(
    jobs_in_threads: RayOfThreads, files: list[pa.Table], tmp_path: Path, form: str
) -> None:
    run = tmp_path / "run"
    numbers = dict.fromkeys(["a", "b", "id"], "int64") | dict.fromkeys(["d1", "d2"], "float32")
    declared = {"json": {"columns": {"label": "int8", **numbers}}, "arrow": {}}
    parts = [(number % 3, table) for number, table in enumerate(files)]
    topic = f"clicks-{form}-{time.time_ns()}"
    with some_kafka() as kafka:

        def arrive(some: list[tuple[int, pa.Table]]) -> None:
            for partition, table in some:
                rows = [json.dumps(row).encode() for row in table.to_pylist()]
                messages = rows if form == "json" else [arrow_message(table)]
                kafka.write(topic, [*messages, b"poison"], partition=partition)

        source = {"type": "kafka", "brokers": kafka.brokers, "topic": topic, "format": form}
        sections = {
            "data": {
                "stream": {**source, **declared[form], "close_seconds": 0.2},
                "on_bad_record": "quarantine",
            },
            "checkpoint": {"every_steps": 3, "every_seconds": None, "full_every": 1, "keep": 1},
        }
        arrive(parts[:10])
        with driver_lost(lambda status: checkpoints_of(run) != []):
            Trainer(job(tmp_path, run, **sections)).fit()
        arrive(parts[10:])
        result = finished(job(tmp_path, run, **sections))
        consumer = Consumer({"bootstrap.servers": kafka.brokers, "group.id": "synchromesh-job"})
        partitions = [TopicPartition(topic, number) for number in range(3)]
        committed = [each.offset for each in consumer.committed(partitions, timeout=10)]
        consumer.close()

    assert each_once(result)
    figures = result.metrics["stream"]
    assert (figures["messages_skipped"], figures["messages_lost"]) == (len(files), 0)
    kept = pq.read_table(run / "quarantine")
    assert kept["value"].to_pylist() == [b"poison"] * len(files)
    assert sum(committed) == len(files) + (ROWS if form == "json" else len(files))
    assert list((run / "arrived").iterdir()) == []


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(10))
def test_a_hundred_deaths_lose_no_sample(
    jobs_in_threads: RayOfThreads, files: list[pa.Table], tmp_path: Path, seed: int
) -> None:
    """Ten in each of ten jobs: servers, coordinators and drivers, at any step."""
    rng = random.Random(seed)
    stream, run = tmp_path / "stream", tmp_path / "run"
    slow = {"kind": "slow", "index": [0, 1], "least_seconds": 0.05}
    values: dict[str, Any] = {
        "cluster": {"workers": 2, "servers": 2, "inject": [slow]},
        "run": {"dir": str(run), "resume": "auto", "allow_faults": True},
        "training": {"mode": rng.choice(["sync", "gba", "async"]), "staleness_bound": 1000},
    }
    with arriving(files, stream, pause=0.3) as others:
        for part in range(3):
            kills = [
                rng.choice([("server", 0, step), ("server", 1, step), ("coordinator", 0, step)])
                for step in sorted(rng.sample(range(5 * part, 5 * part + 5), 2))
            ]
            with (
                disturbed(jobs_in_threads, *kills),
                driver_lost(lambda status, part=part: status.applied_step >= 5 * part + 6),
            ):
                Trainer(job(stream, run, **values)).fit()
        with disturbed(jobs_in_threads, ("server", rng.randrange(2), 18)), finishing(others):
            result = Trainer(job(stream, run, **values)).fit()
    assert each_once(result)


def test_a_follower_has_the_newest_checkpoint_of_a_job_over_its_end(
    jobs_in_threads: RayOfThreads,
    files: list[pa.Table],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("SYNCHROMESH_PUBLISH_TOKEN", "a token of sixteen")
    stream, brought = tmp_path / "stream", list[str | None]()
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]

    def follow() -> None:
        folder, deadline = tmp_path / "copy", time.monotonic() + LIMIT_SECONDS
        while time.monotonic() < deadline:
            with suppress(OSError):
                follower = Follower("127.0.0.1", port, secret=b"a token of sixteen", folder=folder)
                while True:
                    brought.append(follower.step())
            if brought:
                return
            time.sleep(0.05)

    def names() -> list[str]:
        return [name for name in brought if name is not None]

    checkpoint = {"every_steps": 3, "every_seconds": None, "publish": {"port": port}}
    thread = threading.Thread(target=follow)
    thread.start()
    # Five files are a checkpoint at least.
    with (
        arriving(files, stream, may_come=lambda number: len(names()) >= number // 5) as others,
        finishing(others),
    ):
        result = Trainer(job(stream, tmp_path / "run", checkpoint=checkpoint)).fit()
    thread.join()

    assert len(names()) > 2
    assert names()[-1] == Path(result.checkpoint).name
    for each in CheckpointReader(tmp_path / "copy" / names()[-1]).chain:
        each.verify()


def test_yesterdays_files_and_then_the_stream_behind_them_are_one_model(
    jobs_in_threads: RayOfThreads,
    files: list[pa.Table],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A backfill at full speed, and a job on the stream that begins where it has ended."""
    gave_way: list[str] = []
    monkeypatch.setattr("worker.loop.give_way", lambda: gave_way.append("one"))
    stream = tmp_path / "stream"
    write(files[:8], stream)
    backfill = job(stream, tmp_path / "backfill").model_dump(mode="json")
    backfill["data"] |= {"stream": None, "train": [str(stream / "*.parquet")]}
    backfill["data"]["order"] = "sequential"
    before = Trainer(JobConfig.from_dict(backfill)).fit()
    assert before.metrics["samples_trained"] == 8 * PER_FILE
    assert gave_way, "what is read ahead can wait"
    gave_way.clear()

    write(files[8:], stream, first=8)
    behind = {"stream": {"dir": str(stream), "after": "part-7.parquet", "close_seconds": 0.2}}
    run = {"dir": str(tmp_path / "online"), "init_from": before.path}
    result = finished(job(stream, tmp_path / "online", data=behind, run=run))

    assert result.metrics["samples_trained"] == ROWS - 8 * PER_FILE
    assert each_once(result), "no row is left out between them, and none trained by both"
    assert result.metrics["global_step"] > before.metrics["global_step"], "its clock goes on"
    assert not gave_way, "samples that have just come are waited for"


def test_two_jobs_on_one_stream_train_all_of_it_each_from_where_it_began(
    jobs_in_threads: RayOfThreads, files: list[pa.Table], tmp_path: Path
) -> None:
    """Another learning rate is tried on the stream that a job trains, from the job's own model."""
    stream = tmp_path / "stream"
    write(files[:10], stream)
    first = finished(job(stream, tmp_path / "a"))
    write(files[10:], stream, first=10)
    adagrad = {"type": "adagrad", "learning_rate": 0.2, "initial_accumulator": 1e-4}
    since = {"stream": {"dir": str(stream), "after": "part-9.parquet", "close_seconds": 0.2}}
    results = []
    for name, sections in (
        ("control", {}),
        ("faster", {"embedding": {"dim": 4, "optimizer": adagrad}}),
    ):
        run = {"dir": str(tmp_path / name), "init_from": first.checkpoint}
        results.append(finished(job(stream, tmp_path / name, data=since, run=run, **sections)))

    assert all(each_once(result) for result in results)
    digests = {result.metrics["model_digest"] for result in results}
    assert len(digests) == 2
    assert Path(first.checkpoint).exists(), "nobody touches what they began from"
