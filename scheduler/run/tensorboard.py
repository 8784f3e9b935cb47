"""A run's figures as TensorBoard events, for those who compare runs there."""

import socket
import struct
import time
from collections import deque
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from runtime.growing_files import MAX_FILE_BYTES, MAX_FILES, GrowingFile
from scheduler.coordinator.progressive import WINDOW_SCORES
from scheduler.job.errors import ConfigError
from scheduler.run.interval_figures import indexed

Line = dict[str, Any]


def require_tensorboard() -> None:
    """Raise ConfigError where the package that writes events is not installed."""
    if find_spec("tensorboardX") is None:
        raise ConfigError(
            "run.tensorboard is true, but tensorboardX is not installed. Run"
            " pip install 'synchromesh[tensorboard]', or leave the key out"
        )


def scalars_of(line: Line) -> dict[str, float]:
    """Return the figures of a line of metrics.jsonl by their tags; what is null is left out."""
    found = {
        "train/loss": line["train_loss"],
        "train/samples_per_second": line["samples_per_second"],
        "train/global_step": line["global_step"],
        "train/clock": line["clock"],
        **_window_of(line),
        "eval/auc": line["eval_auc"],
        "eval/logloss": line["eval_logloss"],
        "eval/gauc": line.get("eval_gauc"),
        **{
            f"eval/{name}/{score}": scores.get(score)
            for name, scores in line.get("eval_tasks", {}).items()
            for score in ("auc", "logloss", "gauc")
        },
        "samples/dropped": line["samples_dropped"],
        "samples/skipped": line["samples_skipped"],
        **{f"batches/{name}": count for name, count in line["batches"].items()},
        **{f"learning_rate/{name}": rate for name, rate in line["learning_rate"].items()},
        **{f"rows/{name}": rows for name, rows in line["rows"].items()},
        **{f"new_keys/{name}": n for name, n in line.get("new_keys_per_sample", {}).items()},
        **{f"non_finite/{name}": count for name, count in line.get("non_finite", {}).items()},
        "dense_non_finite": line.get("dense_non_finite"),
        **{f"table_bytes/{name}": size for name, size in line["table_bytes"].items()},
        **{f"shard_lag/{i}": lag for i, lag in indexed(line, "server", line["shard_lag"])},
    }
    for number, worker in line["workers"].items():
        found[f"worker_batch_seconds/{number}"] = worker["batch_seconds"]
        found[f"worker_share/{number}"] = worker["share"]
    for name, seconds in line.get("all_workers", {}).get("batch_seconds", {}).items():
        found[f"all_workers/batch_seconds_{name}"] = seconds
    for role, sizes in line["peak_rss_bytes"].items():
        found |= {f"peak_rss_bytes/{role}-{i}": size for i, size in indexed(line, role, sizes)}
    return {tag: float(value) for tag, value in found.items() if value is not None}


def _window_of(line: Line) -> dict[str, float]:
    """Return the scores of the last window of a stream that was over in an interval."""
    windows = line.get("windows", [])
    if not windows:
        return {}
    last = windows[-1]
    return {
        **{f"window/{score}": last[score] for score in WINDOW_SCORES},
        **{
            f"window/{task['name']}/{score}": task[score]
            for task in last.get("tasks", [])
            for score in WINDOW_SCORES
        },
    }


class TensorBoardEvents:
    """Writes events into a folder; the step of an event is the number of samples applied.

    Samples mean the same in every mode, the global step does not. tensorboardX makes the events.
    Its writer is not used: where its thread has failed, on a full disk, a later call never returns.

    Args:
        folder: made where it is missing.
        max_bytes: of a file; an interval is never cut.
        max_files: that are kept, those of earlier writers among them; the oldest go.
    """

    def __init__(
        self, folder: Path, *, max_bytes: int = MAX_FILE_BYTES, max_files: int = MAX_FILES
    ) -> None:
        self._folder = folder
        self._max_bytes = max_bytes
        self._max_files = max_files
        # TensorBoard reads files in the order of their names.
        self._name = f"events.out.tfevents.{time.time():010.0f}.{socket.gethostname()}"
        self._older = sorted(folder.glob("events.out.tfevents.*"))
        self._files: deque[GrowingFile] = deque()
        self._number = 0
        self._samples = -1

    def add(self, line: Line) -> None:
        """Write an interval; raises OSError where it can't be written."""
        from tensorboardX.proto.event_pb2 import Event  # an extra: only who asks needs it

        event = Event(wall_time=line["time"], step=line["samples"], summary=_summary(line))
        data = _record(event.SerializeToString())
        if not self._files or self._files[-1].num_bytes + len(data) > self._max_bytes:
            self._begin_another()
        file = self._files[-1]
        goes_back = line["samples"] < self._samples or (self._samples < 0 and self._older)
        if goes_back:  # TensorBoard then forgets what it has of later steps
            restart = Event(wall_time=line["time"], step=line["samples"])
            restart.session_log.status = restart.session_log.START
            data = _record(restart.SerializeToString()) + data
        if file.num_bytes == 0:
            head = Event(wall_time=line["time"], file_version="brain.Event:2")
            data = _record(head.SerializeToString()) + data
        file.append(data)
        self._samples = line["samples"]

    def _begin_another(self) -> None:
        self._folder.mkdir(exist_ok=True)
        while len(self._older) + len(self._files) >= self._max_files:
            oldest = self._older.pop(0) if self._older else self._files.popleft().path
            oldest.unlink(missing_ok=True)
        self._number += 1
        self._files.append(GrowingFile(self._folder / f"{self._name}.{self._number:06}"))


def _summary(line: Line) -> Any:
    from tensorboardX import summary
    from tensorboardX.proto.summary_pb2 import Summary

    values = [v for tag, y in scalars_of(line).items() for v in summary.scalar(tag, y).value]
    for scaling in line["scalings"]:
        text = f"{scaling['role']}s {scaling['before']} to {scaling['after']}"
        values += summary.text("scaling", f"{text}: {scaling['reason']}").value
    for shift in line["shifts"]:
        text = f"step {shift['step']}: {shift['from_mode']} to {shift['to_mode']}"
        values += summary.text("mode", f"{text}, {shift['reason']}").value
    for kind, counts in line["staleness_of_interval"].items():
        if counts:
            values += _histogram(f"staleness/{kind}", counts).value
    return Summary(value=values)


def _histogram(tag: str, counts: dict[str, int]) -> Any:
    """Return exact counts by steps, one bucket for each number of steps."""
    from tensorboardX import summary

    pairs = sorted((int(steps), count) for steps, count in counts.items())
    values = [steps for steps, _ in pairs]
    return summary.histogram_raw(
        tag,
        min=values[0],
        max=values[-1],
        num=sum(count for _, count in pairs),
        sum=sum(steps * count for steps, count in pairs),
        sum_squares=sum(steps * steps * count for steps, count in pairs),
        # A bucket reaches up to its limit; a last one above keeps the highest steps apart.
        bucket_limits=[steps + 0.5 for steps in values],
        bucket_counts=[count for _, count in pairs],
    )


def _record(data: bytes) -> bytes:
    """Return a record of TensorFlow's format: length, its checksum, bytes, their checksum."""
    from tensorboardX.record_writer import masked_crc32c

    length = struct.pack("<Q", len(data))
    sums = (struct.pack("<I", masked_crc32c(part)) for part in (length, data))
    return length + next(sums) + data + next(sums)
