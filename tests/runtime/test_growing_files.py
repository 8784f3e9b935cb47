"""What a job writes for those who watch it is bounded, and a disk that is full ends nothing."""

import contextlib
import json
import resource
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from runtime.growing_files import GrowingFile, Losses, MetricsFiles, metrics_files, opened_metrics
from scheduler import JobConfig
from scheduler.coordinator.batch_trace import BatchFile, BatchSpan
from scheduler.run.control_file import last_known
from scheduler.run.directory import RunDirectory
from scheduler.views.report.reading import read_run


def line(number: int) -> dict[str, Any]:
    return {"time": 100.0 + number, "mode": "sync", "global_step": number, "samples": number}


def whole_line(samples: int) -> dict[str, Any]:
    """A line with all that TensorBoard is told of."""
    groups = ("batches", "learning_rate", "rows", "table_bytes", "peak_rss_bytes")
    named: dict[str, Any] = {key: {} for key in groups}
    numbers = dict.fromkeys(
        ("train_loss", "samples_per_second", "global_step", "clock", "eval_auc", "eval_logloss",
         "samples_dropped", "samples_skipped"), 1.0
    )  # fmt: skip
    counts = {"data": {"0": 3}, "parameter": {}}
    return {
        "time": 1.0, "samples": samples, "shifts": [], "scalings": [], "shard_lag": [0],
        "workers": {},
        "staleness_of_interval": counts, **named, **numbers
    }  # fmt: skip


@contextlib.contextmanager
def no_room_beyond(num_bytes: int) -> Iterator[None]:
    """Let files grow to so many bytes: what is written beyond is cut, as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def steps_in(run: Path) -> list[int]:
    with opened_metrics(run) as (_, files):
        return [json.loads(row)["global_step"] for file in files for row in file]


def test_metrics_never_take_more_than_their_bound_and_the_newest_stay(tmp_path: Path) -> None:
    metrics = MetricsFiles(tmp_path, max_bytes=1000, max_files=3)
    most = 0
    for number in range(500):
        metrics.add(line(number))
        most = max(most, sum(path.stat().st_size for path in tmp_path.iterdir()))

    assert 2000 < most <= 3000
    names = [path.name for path in metrics_files(tmp_path)]
    assert names[-1] == "metrics.jsonl"
    assert len(names) == 3
    steps = steps_in(tmp_path)
    assert steps == list(range(steps[0], 500))


def test_a_line_is_longer_than_a_file_may_be_and_there_whole(tmp_path: Path) -> None:
    metrics = MetricsFiles(tmp_path, max_bytes=10, max_files=3)
    for number in range(7):
        metrics.add(line(number))

    assert steps_in(tmp_path) == [4, 5, 6]


def test_who_reads_has_what_was_there_when_it_began(tmp_path: Path) -> None:
    metrics = MetricsFiles(tmp_path, max_bytes=200, max_files=2)
    for number in range(4):
        metrics.add(line(number))
    before = steps_in(tmp_path)

    with opened_metrics(tmp_path) as (_, files):
        for number in range(4, 40):
            metrics.add(line(number))
        rows = [json.loads(row)["global_step"] for file in files for row in file]

    assert rows[: len(before)] == before
    assert rows == sorted(set(rows))


def test_what_could_be_written_in_part_is_not_there(tmp_path: Path) -> None:
    file = GrowingFile(tmp_path / "x")
    file.append(b"first\n")
    with no_room_beyond(10), pytest.raises(OSError, match="File too large"):
        file.append(b"second\n")
    between = (tmp_path / "x").read_bytes()
    file.append(b"third\n")

    assert between == b"first\n"
    assert (tmp_path / "x").read_bytes() == b"first\nthird\n"


def test_a_file_that_somebody_removed_begins_anew(tmp_path: Path) -> None:
    metrics = MetricsFiles(tmp_path, max_bytes=200)
    metrics.add(line(0))
    (tmp_path / "metrics.jsonl").unlink()
    metrics.add(line(1))
    metrics.add(line(2))
    (tmp_path / "metrics.jsonl").unlink()
    for number in range(3, 9):
        metrics.add(line(number))

    assert steps_in(tmp_path) == [3, 4, 5, 6, 7, 8]


def test_a_loss_is_told_once_for_each_file_and_counted() -> None:
    losses, told = Losses(), list[str]()
    losses.note = told.append
    for name in ("a", "b", "a"):
        with losses.borne(name):
            raise OSError(28, "No space left on device")
    with losses.borne("a"):
        pass

    assert losses.counts == {"a": 2, "b": 1}
    assert [text.split(" can't")[0] for text in told] == ["a", "b"]
    assert "No space left on device. The job goes on" in told[0]


def span(number: int) -> BatchSpan:
    return BatchSpan(0, number, 0, number, start=2.0 * number, seconds=1.0, samples=8)


def test_a_trace_is_thinned_after_some_of_it_could_not_be_written(tmp_path: Path) -> None:
    file = BatchFile(tmp_path / "batches.jsonl", limit=16)
    file.add([span(0)])
    size = (tmp_path / "batches.jsonl").stat().st_size
    with no_room_beyond(size + 10), pytest.raises(OSError, match="File too large"):
        file.add([span(1)])
    for number in range(2, 40):
        file.add([span(number)])

    lines = (tmp_path / "batches.jsonl").read_text().splitlines()
    assert [json.loads(text)["batch"] for text in lines] == [0, 4, 8, 12, 16, 20, 24, 28, 32, 36]


def run_of(path: Path, **settings: Any) -> RunDirectory:
    config = JobConfig.from_dict(
        {
            "data": {"train": "x", "sparse": ["a"]},
            "model": {"type": "wide_deep"},
            "run": {"dir": str(path), "overwrite": True, **settings},
        }
    )
    return RunDirectory(config, least_checkpoint_bytes=0)


@pytest.mark.parametrize("tensorboard", [False, True])
def test_a_job_goes_on_where_nothing_can_be_written_about_it(
    tmp_path: Path, tensorboard: bool
) -> None:
    run = run_of(tmp_path / "r", tensorboard=tensorboard)
    told = list[str]()
    run.losses.note = told.append
    run.add_metrics(whole_line(0))
    with no_room_beyond(10):
        for number in range(1, 31):  # more than fit into the queue of a thread that is dead
            run.add_metrics(whole_line(number))
            run.add_batches([span(number)])
    run.add_metrics(whole_line(31))
    run.close()

    files = {"metrics.jsonl", "batches.jsonl"} | ({"tensorboard"} if tensorboard else set())
    assert run.losses.counts == dict.fromkeys(files, 30)
    assert len(told) == len(files)
    assert [json.loads(text)["samples"] for text in (run.path / "metrics.jsonl").open()] == [0, 31]


def test_a_run_that_is_overwritten_loses_all_its_metrics(tmp_path: Path) -> None:
    run_of(tmp_path / "r").close()
    metrics = MetricsFiles(tmp_path / "r", max_bytes=10)
    for number in range(3):
        metrics.add(line(number))

    run_of(tmp_path / "r").close()

    assert metrics_files(tmp_path / "r") == []


def test_the_last_line_is_found_also_where_a_file_has_just_begun(tmp_path: Path) -> None:
    metrics = MetricsFiles(tmp_path, max_bytes=10)
    for number in range(3):
        metrics.add(line(number))
    (tmp_path / "metrics.jsonl").write_text('{"time": 3')

    assert "step 1, 1 samples" in last_known(tmp_path)


def test_a_report_reads_all_files_and_says_where_the_first_are_gone(tmp_path: Path) -> None:
    metrics = MetricsFiles(tmp_path, max_bytes=200, max_files=3)
    for number in range(3):
        metrics.add(line(number))
    whole = read_run(tmp_path)
    for number in range(3, 40):
        metrics.add(line(number))
    later = read_run(tmp_path)

    assert [each["samples"] for each in whole.intervals] == [0, 1, 2]
    assert not any("are gone" in note for note in whole.notes)
    samples = [each["samples"] for each in later.intervals]
    assert len(samples) > 3
    assert samples == list(range(samples[0], 40))
    assert any("first intervals are gone" in note for note in later.notes)


def test_a_job_that_goes_on_adds_to_its_whole_lines(tmp_path: Path) -> None:
    metrics = MetricsFiles(tmp_path, max_bytes=200, max_files=3)
    for number in range(20):
        metrics.add(line(number))
    with open(tmp_path / "metrics.jsonl", "ab") as file:
        file.write(b'{"time": 3, "global_st')  # killed in the midst of a line
    before = steps_in_whole_lines(tmp_path)

    metrics = MetricsFiles(tmp_path, max_bytes=200, max_files=3, goes_on=True)
    metrics.add(line(20))
    after = steps_in(tmp_path)
    for number in range(21, 40):
        metrics.add(line(number))

    assert after == [*before, 20]
    steps = steps_in(tmp_path)
    assert steps == list(range(steps[0], 40))
    assert len(metrics_files(tmp_path)) == 3


def steps_in_whole_lines(run: Path) -> list[int]:
    text = b"".join(path.read_bytes() for path in metrics_files(run))
    return [json.loads(row)["global_step"] for row in text.splitlines()[:-1]]


def test_a_file_of_one_unfinished_line_begins_anew(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"torn" * 1_000_000)
    file = GrowingFile(tmp_path / "x", goes_on=True)
    file.append(b"whole\n")

    assert (tmp_path / "x").read_bytes() == b"whole\n"
    assert GrowingFile(tmp_path / "none", goes_on=True).num_bytes == 0


def test_a_trace_goes_on_as_far_apart_as_it_was_thinned(tmp_path: Path) -> None:
    path = tmp_path / "batches.jsonl"
    file = BatchFile(path, limit=16)
    for number in range(40):
        file.add([span(number)])
    with open(path, "ab") as torn:
        torn.write(b'{"no start": 1}\n{"worker": 3, "st')

    file = BatchFile(path, limit=16, goes_on=True)
    for number in range(40, 50):
        file.add([span(number)])

    rows = [json.loads(text) for text in path.read_text().splitlines()]
    batches = [row["batch"] for row in rows if "batch" in row]
    assert batches == list(range(0, 50, 4))
