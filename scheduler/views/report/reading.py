"""What a run directory holds, as far as it is there: of jobs that ended, failed or still run."""

import json
import re
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import IO, Any, Literal

from runtime.growing_files import (
    METRICS_FILE,
    first_metrics_are_gone,
    metrics_files,
    opened_metrics,
)
from scheduler.coordinator.progressive import WINDOW_SCORES
from scheduler.errors import RunDirectoryError
from scheduler.run.directory import BATCHES_FILE, FAILURE_FILE, JOB_FILE, RESULT_FILE
from scheduler.run.results import read_result

# A chart shows no more than so many points in time.
MAX_INTERVALS = 600

Line = dict[str, Any]
Outcome = Literal["finished", "failed", "unfinished"]

_COLOR_CODES = re.compile(r"\x1b\[[0-9;]*m")


@dataclass(frozen=True, slots=True, kw_only=True)
class RunData:
    """The files of one run.

    Args:
        path: the run directory.
        outcome: `finished` where it has its result.
        state: the same in a sentence, with the reason of a failure.
        intervals: lines of metrics.jsonl, the oldest first; neighbours are merged where there are
            many.
        batches: lines of batches.jsonl, ordered by their start.
        result, job: None where the file is not there.
        notes: what is missing or could not be read.
    """

    path: Path
    outcome: Outcome
    state: str
    intervals: list[Line]
    batches: list[Line]
    result: dict[str, Any] | None
    job: str | None
    notes: list[str]

    @property
    def recoveries(self) -> list[Line]:
        """What the run lost, and how it went on; see `run.recoveries.RecoveryFigures`."""
        found = (self.result or {}).get("recoveries")
        if isinstance(found, list):
            return [each for each in found if isinstance(each, dict)]
        return [each for line in self.intervals for each in line.get("recoveries", [])]

    @property
    def rebalancings(self) -> list[Line]:
        """Decisions to move buckets, see `scaling.balance`, each as it is known last."""
        found = [each for line in self.intervals for each in line.get("rebalancings", [])]
        return list({each["number"]: each for each in found}.values())

    @property
    def server_moves(self) -> list[Line]:
        """Changes of the number of servers, see `run.recoveries.ServerMove`."""
        return [each for line in self.intervals for each in line.get("server_moves", [])]

    @property
    def scalings(self) -> list[Line]:
        """Decisions on the number of workers and servers, as they were last told."""
        told = {
            (each.get("role"), each.get("number"), each.get("time")): each
            for line in self.intervals
            for each in line.get("scalings", [])
        }
        return list(told.values())

    @property
    def began(self) -> float:
        """When the first batch or interval began, seconds since 1970."""
        starts = [line["start"] for line in self.batches[:1]]
        if self.intervals:
            first = self.intervals[0]
            starts.append(first["time"] - first.get("train_seconds", 0.0))
        return min(starts, default=0.0)


def read_run(path: Path) -> RunData:
    """Read a run directory; a line that is not complete yet is left out.

    Raises:
        RunDirectoryError: there is no such directory, or it holds no file of a run.
    """
    if not path.is_dir():
        raise RunDirectoryError(f"{path} is not a directory. Name the run.dir of a job")
    if not (path / JOB_FILE).exists() and not metrics_files(path):
        raise RunDirectoryError(
            f"{path} is not a run directory: it has neither {JOB_FILE} nor {METRICS_FILE}"
        )
    notes: list[str] = []
    result = _read_result(path / RESULT_FILE, notes)
    failure = _read_object(path / FAILURE_FILE, notes)
    intervals = _read_intervals(path, notes)
    batches = _read_batches(path / BATCHES_FILE, notes)
    job = path / JOB_FILE
    if not job.exists():
        notes.append(f"{JOB_FILE} is missing")
    outcome, state = _state(result, failure, intervals)
    return RunData(
        path=path,
        outcome=outcome,
        state=state,
        intervals=intervals,
        batches=sorted(batches, key=lambda line: line["start"]),
        result=result,
        job=job.read_text(errors="replace") if job.exists() else None,
        notes=notes,
    )


def _state(result: Line | None, failure: Line | None, intervals: list[Line]) -> tuple[Outcome, str]:
    if result is not None:
        return "finished", "The job is finished."
    if failure is not None:
        reason = str(failure.get("error", "no reason is given"))
        return "failed", f"The job failed: {_COLOR_CODES.sub('', reason)}"
    if not intervals:
        text = "The job has written no figures yet: it starts, or was killed before it began."
        return "unfinished", text
    age = max(0.0, time.time() - intervals[-1]["time"])
    text = (
        f"The job is not finished: it runs, or was killed. Its last figures are {age:,.0f} s old."
    )
    return "unfinished", text


def _read_result(path: Path, notes: list[str]) -> Line | None:
    try:
        return read_result(path, whole=False) if path.exists() else None
    except RunDirectoryError as error:
        notes.append(str(error))
        return None


def _read_object(path: Path, notes: list[str]) -> Line | None:
    if not path.exists():
        return None
    try:
        value = json.loads(path.read_text())
    except (OSError, ValueError, RecursionError) as error:
        notes.append(f"{path.name} can't be read: {error}")
        return None
    return value if isinstance(value, dict) else None


def _read_intervals(run: Path, notes: list[str]) -> list[Line]:
    """Read the metrics, one line after another: their files may be larger than the memory."""
    with opened_metrics(run) as (paths, files):
        if not files:
            notes.append(f"{METRICS_FILE} is missing")
        if first_metrics_are_gone(paths):
            notes.append(
                f"The first intervals are gone: of {METRICS_FILE} a job keeps the newest part"
            )
        count = sum(1 for file in files for _ in file)
        for file in files:
            file.seek(0)
        lines = _lines_of(files, {"time", "samples"}, METRICS_FILE, notes)
        return merge_intervals(lines, count)


def _read_batches(path: Path, notes: list[str]) -> list[Line]:
    if not path.exists():
        notes.append(f"{path.name} is missing")
        return []
    with open(path, "rb") as file:
        required = {"worker", "step", "start", "seconds"}
        return list(_lines_of([file], required, path.name, notes))


def _lines_of(
    files: Sequence[IO[bytes]], required: set[str], name: str, notes: list[str]
) -> Iterator[Line]:
    """Yield the objects of lines that have the numbers that are required; note how many have not.

    What else a line says may be missing, but is of its type.
    """
    unreadable, torn = 0, False
    for row in (row for file in files for row in file):
        torn = not row.endswith(b"\n")
        try:
            line = json.loads(row)
        except (ValueError, RecursionError):
            line = None
        if isinstance(line, dict) and _is_whole(line, required):
            yield line
        else:
            unreadable += 1
    if unreadable > torn:  # the last line may be in the middle of being written
        notes.append(f"{name}: {unreadable} lines can't be read and are left out")


# What charts and sums take from a line besides what is required: numbers, by name or alone.
_NUMBERS = ("train_seconds", "samples_per_second", "train_loss", "eval_auc", "eval_step", "clock",
            "global_step", "workers_wanted", "load_skew")  # fmt: skip
_OF_NUMBERS = (
    "batches", "rows", "table_bytes", "learning_rate", "non_finite", "skipped_by_reason",
    "new_keys_per_sample",
)  # fmt: skip
_OF_RECOVERY = ("from_step", "to_step", "redone_steps", "redone_samples", "seconds")
_OF_SCALING = ("number", "before", "after", "rate", "share", "predicted", "realised", "time")
_OF_MOVE = ("time", "step", "before", "after", "buckets", "rounds", "rows", "bytes",
            "rows_in_pause", "bytes_in_pause", "seconds", "pause_seconds")  # fmt: skip
_OF_REBALANCING = ("number", "skew", "predicted", "realised", "buckets", "hottest", "time")
_OF_WORKER = ("batches", "samples", "batch_seconds", "share")


def _is_whole(line: Line, required: set[str]) -> bool:
    workers = line.get("workers", {})
    stale = line.get("staleness_of_interval", {})
    return (
        all(_is_number(line.get(name)) for name in required)
        and all(line.get(name) is None or _is_number(line[name]) for name in _NUMBERS)
        and all(_has_numbers(line.get(name, {})) for name in _OF_NUMBERS)
        and isinstance(stale, dict)
        and all(map(_has_numbers, stale.values()))
        and isinstance(workers, dict)
        and all(_has_numbers(w) and set(_OF_WORKER) <= set(w) for w in workers.values())
        and isinstance(line.get("shifts", []), list)
        and _are_recoveries(line.get("recoveries", []))
        and _are_scalings(line.get("scalings", []))
        and _are_server_moves(line.get("server_moves", []))
        and _are_windows(line.get("windows", []))
        and isinstance(line.get("eval_tasks", {}), dict)
        and all(map(_has_numbers, line.get("eval_tasks", {}).values()))
        and _are_rebalancings(line.get("rebalancings", []))
    )


def _are_windows(values: Any) -> bool:
    return isinstance(values, list) and all(
        isinstance(each, dict)
        and _is_number(each.get("begins"))
        and _is_number(each.get("seconds"))
        and _have_scores([each, *_segments_of(each), *_tasks_of(each)])
        and all(_have_scores(_segments_of(task)) for task in _tasks_of(each))
        for each in values
    )


def _segments_of(window: Line) -> list[Any]:
    segments = window.get("segments", [])
    named = isinstance(segments, list) and all(
        isinstance(each, dict) and isinstance(each.get("value", 0), str | None) for each in segments
    )
    return segments if named else [None]


def _tasks_of(window: Line) -> list[Any]:
    tasks = window.get("tasks", [])
    named = isinstance(tasks, list) and all(
        isinstance(each, dict) and isinstance(each.get("name"), str) for each in tasks
    )
    return tasks if named else [None]


def _have_scores(values: list[Any]) -> bool:
    return all(
        isinstance(each, dict)
        and _is_number(each.get("samples"))
        and "auc" in each
        and all(each.get(score) is None or _is_number(each[score]) for score in WINDOW_SCORES)
        for each in values
    )


def _are_server_moves(values: Any) -> bool:
    return isinstance(values, list) and all(
        isinstance(each, dict)
        and all(_is_number(each.get(name, 0)) for name in _OF_MOVE)
        and _has_numbers(each.get("pause_parts", {}))
        for each in values
    )


def _are_rebalancings(values: Any) -> bool:
    return isinstance(values, list) and all(
        isinstance(each, dict)
        and _is_number(each.get("number"))
        and all(each.get(name) is None or _is_number(each[name]) for name in _OF_REBALANCING)
        and isinstance(each.get("held_back"), str | None)
        for each in values
    )


def _are_recoveries(values: Any) -> bool:
    return isinstance(values, list) and all(
        isinstance(each, dict)
        and all(_is_number(each.get(name, 0)) for name in _OF_RECOVERY)
        and isinstance(each.get("promoted", []), list)
        for each in values
    )


def _are_scalings(values: Any) -> bool:
    return isinstance(values, list) and all(
        isinstance(each, dict)
        and all(each.get(name) is None or _is_number(each[name]) for name in _OF_SCALING)
        and all(isinstance(each.get(name, ""), str) for name in ("role", "cause", "reason"))
        and isinstance(each.get("held_back"), str | None)
        for each in values
    )


def _has_numbers(values: Any) -> bool:
    return isinstance(values, dict) and all(v is None or _is_number(v) for v in values.values())


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float)


def merge_intervals(lines: Iterable[Line], count: int, most: int = MAX_INTERVALS) -> list[Line]:
    """Merge neighbours of so many lines, so that about `most` are left."""
    size, left = max(1, -(-count // most)), iter(lines)
    groups = iter(lambda: list(islice(left, size)), [])
    return [group[0] if size == 1 else _merged(group) for group in groups]


def _merged(lines: list[Line]) -> Line:
    """Sums since the start are those of the last line; figures of an interval are gathered."""
    merged = dict(lines[-1])
    for key in ("samples_per_second", "train_loss"):
        values = [line[key] for line in lines if line.get(key) is not None]
        merged[key] = sum(values) / len(values) if values else None
    stale: dict[str, dict[str, int]] = {}
    for line in lines:
        for kind, counts in line.get("staleness_of_interval", {}).items():
            sums = stale.setdefault(kind, {})
            for value, count in counts.items():
                sums[value] = sums.get(value, 0) + count
    merged["staleness_of_interval"] = stale
    merged["workers"] = _merged_workers(lines)
    for key in ("shifts", "recoveries", "scalings", "server_moves", "rebalancings", "windows"):
        merged[key] = [each for line in lines for each in line.get(key, [])]
    merged["evaluations"] = _evaluations(lines)
    return merged


def _evaluations(lines: list[Line]) -> list[Line]:
    """Return what lines say of each evaluation; the first that shows one is nearest to its end."""
    found: dict[Any, Line] = {}
    for line in lines:
        if line.get("eval_step") is not None:
            its = {key: value for key, value in line.items() if key.startswith("eval_")}
            found.setdefault(line["eval_step"], {"time": line["time"], **its})
    return list(found.values())


def _merged_workers(lines: list[Line]) -> dict[str, Line]:
    workers: dict[str, Line] = {}
    seconds: dict[str, float] = {}
    for line in lines:
        for number, worker in line.get("workers", {}).items():
            sums = workers.setdefault(number, {"batches": 0, "samples": 0})
            sums["batches"] += worker["batches"]
            sums["samples"] += worker["samples"]
            spent = worker["batches"] * (worker["batch_seconds"] or 0.0)
            seconds[number] = seconds.get(number, 0.0) + spent
    total = sum(worker["samples"] for worker in workers.values())
    for number, worker in workers.items():
        done = worker["batches"]
        worker["batch_seconds"] = seconds[number] / done if done else None
        worker["share"] = worker["samples"] / total if total else 0.0
    return workers
