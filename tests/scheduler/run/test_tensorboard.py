"""TensorBoard events: what was written is read back from the files, record by record."""

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tensorboardX.proto.event_pb2 import Event
from tensorboardX.record_writer import masked_crc32c

import scheduler.run.tensorboard as tensorboard_events
from scheduler import ConfigError, JobConfig
from scheduler.run.directory import RunDirectory
from scheduler.run.tensorboard import TensorBoardEvents, scalars_of


def line(samples: int, loss: float | None) -> dict[str, Any]:
    return {
        "time": 1000.0 + samples,
        "train_loss": loss,
        "samples_per_second": 5.0,
        "global_step": 2,
        "shifts": [],
        "scalings": [],
        "clock": 1,
        "samples": samples,
        "eval_auc": None,
        "eval_logloss": None,
        "samples_dropped": 3,
        "samples_skipped": 0,
        "batches": {"reissued": 4},
        "learning_rate": {"model": 0.5},
        "rows": {"user": 10},
        "table_bytes": {"user": 640},
        "non_finite": {"user": 6},
        "dense_non_finite": 1,
        "shard_lag": [0, 2],
        "workers": {"0": {"batch_seconds": 0.25, "share": 1.0}},
        "staleness_of_interval": {"data": {"0": 3, "2": 1}, "parameter": {}},
        "peak_rss_bytes": {"worker": [7], "server": [8], "coordinator": [9]},
    }


def config(run: Path, **settings: Any) -> JobConfig:
    return JobConfig.from_dict(
        {
            "data": {"train": "a", "sparse": ["c"]},
            "model": {"type": "deepfm"},
            "run": {"dir": str(run), "tensorboard": True, **settings},
        }
    )


def events(run: Path) -> Iterator[Event]:
    """Read the records of TensorFlow's format: length, its checksum, bytes, their checksum."""
    data = b"".join(path.read_bytes() for path in sorted((run / "tensorboard").iterdir()))
    while data:
        (length,) = struct.unpack("<Q", data[:8])
        yield Event.FromString(data[12 : 12 + length])
        data = data[16 + length :]


@pytest.fixture
def run(tmp_path: Path) -> Path:
    path = tmp_path / "run"
    directory = RunDirectory(config(path), least_checkpoint_bytes=0)
    directory.add_metrics(line(100, 0.75))
    directory.add_metrics(line(200, None))
    directory.close()
    return path


def test_every_figure_is_an_event_at_its_number_of_samples(run: Path) -> None:
    found = {
        (event.step, value.tag): value.simple_value
        for event in events(run)
        for value in event.summary.value
        if value.HasField("simple_value")
    }

    assert found[100, "train/loss"] == 0.75
    assert (200, "train/loss") not in found
    assert (100, "eval/auc") not in found
    assert found[200, "rows/user"] == 10
    assert found[100, "worker_batch_seconds/0"] == 0.25
    assert found[100, "shard_lag/1"] == 2
    assert found[100, "batches/reissued"] == 4
    assert found[100, "peak_rss_bytes/server-0"] == 8


def test_an_event_has_the_time_of_its_interval(run: Path) -> None:
    assert {event.wall_time for event in events(run) if event.step} == {1100.0, 1200.0}


def test_staleness_is_a_histogram_with_exact_counts(run: Path) -> None:
    histograms = [
        value.histo
        for event in events(run)
        for value in event.summary.value
        if value.tag == "staleness/data"
    ]

    assert len(histograms) == 2
    assert list(histograms[0].bucket) == [3, 1]
    assert list(histograms[0].bucket_limit) == [0.5, 2.5]
    assert (histograms[0].num, histograms[0].sum, histograms[0].max) == (4, 2, 2)


def test_overwriting_a_run_removes_its_events(run: Path) -> None:
    again = RunDirectory(config(run, overwrite=True), least_checkpoint_bytes=0)
    again.add_metrics(line(300, 0.5))
    again.close()

    assert {event.step for event in events(run) if event.step} == {300}


def test_without_being_asked_no_events_are_written(tmp_path: Path) -> None:
    directory = RunDirectory(config(tmp_path / "r", tensorboard=False), least_checkpoint_bytes=0)
    directory.add_metrics(line(100, 0.75))
    directory.close()

    assert not (tmp_path / "r" / "tensorboard").exists()


def test_a_missing_package_is_refused_before_a_run_is_overwritten(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tensorboard_events, "find_spec", lambda name: None)

    with pytest.raises(ConfigError, match=r"synchromesh\[tensorboard\]"):
        RunDirectory(config(run, overwrite=True), least_checkpoint_bytes=0)
    assert (run / "metrics.jsonl").exists()


def test_events_never_take_more_than_their_bound_and_the_newest_stay(tmp_path: Path) -> None:
    written = TensorBoardEvents(tmp_path / "tensorboard", max_bytes=4000, max_files=3)
    most = 0
    for samples in range(1, 200):
        written.add(line(samples, 0.5))
        files = list((tmp_path / "tensorboard").iterdir())
        most = max(most, sum(path.stat().st_size for path in files))

    found = list(events(tmp_path))
    assert 8000 < most <= 12_000
    assert len(files) == 3
    assert sum(event.file_version == "brain.Event:2" for event in found) == 3
    steps = [event.step for event in found if event.step]
    assert steps == list(range(steps[0], 200))


def test_checksums_of_events_are_those_that_tensorflow_asks_for(run: Path) -> None:
    (path,) = (run / "tensorboard").iterdir()
    data = path.read_bytes()
    (length, of_length) = struct.unpack("<QI", data[:12])
    (of_data,) = struct.unpack("<I", data[12 + length : 16 + length])

    assert of_length == masked_crc32c(data[:8])
    assert of_data == masked_crc32c(data[12 : 12 + length])


def test_of_many_processes_events_have_one_for_all() -> None:
    many = line(1, 0.5) | {
        "together": {"worker": 100},
        "all_workers": {"batch_seconds": {"p50": 0.5, "max": None}},
    }

    found = scalars_of(many)

    assert found["peak_rss_bytes/worker-all"] == 7
    assert found["peak_rss_bytes/server-0"] == 8
    assert found["all_workers/batch_seconds_p50"] == 0.5
    assert "all_workers/batch_seconds_max" not in found


def test_what_was_not_finite_is_by_table_and_of_all_dense_blocks() -> None:
    found = scalars_of(line(5, 0.5))

    assert (found["non_finite/user"], found["dense_non_finite"]) == (6, 1)


def test_the_last_window_of_a_stream_and_its_new_keys_are_scalars() -> None:
    scores = {"auc": 0.6, "logloss": 0.5, "normalized_entropy": 0.9, "calibration": 1.1}
    window = {"begins": 0.0, "label_rate": 0.2, **scores}
    found = scalars_of(
        {
            **line(8, 0.5),
            "windows": [{**window, "auc": 0.1}, window],
            "new_keys_per_sample": {"user": 0.25, "item": None},
        }
    )

    expected = {"label_rate": 0.2, **scores}
    assert {tag: y for tag, y in found.items() if tag.startswith("window/")} == {
        f"window/{score}": y for score, y in expected.items()
    }
    assert {tag for tag in found if tag.startswith("new_keys")} == {"new_keys/user"}
