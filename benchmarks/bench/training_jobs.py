"""Training jobs that are measured: who takes part, and what a run directory says of the speed."""

import json
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.pauses import Pauses, actors
from bench.runs import Row, Run
from experiments.training import TrainingRuns
from scheduler import JobConfig

JOB = str(Path(__file__).resolve().parents[2] / "jobs" / "dlrm.yaml")
MODES = ("sync", "gba", "async")
# How long a job runs between two stops, and after what share of its samples there are no more: a
# later one might come when all are trained, and is no part of the time that training took.
RUN_SECONDS = 1.2
LAST_STOP = 0.85


@dataclass(frozen=True, slots=True)
class Case:
    """A job: so many workers and servers, a mode, samples of a local batch."""

    workers: int
    servers: int
    mode: str
    batch: int

    @property
    def topology(self) -> str:
        return f"{self.workers}+{self.servers}"

    @property
    def batches_per_step(self) -> int:
        """M: one batch of every worker; of a lone worker in `gba` two, so that it is no `sync`."""
        return self.workers if self.mode == "sync" else max(2, self.workers)

    @property
    def target(self) -> float | None:
        """The share of the matrix products' bound that is wanted; None: nothing is promised."""
        if self.batch != 2048:
            return None
        if self.mode == "sync":
            return 0.7 if self.workers == 1 else None
        return 0.8 if self.workers == 2 else None


@dataclass(frozen=True, slots=True)
class Data:
    """Directory of the data set, and how many of its train rows are trained."""

    directory: Path
    rows: int


def overrides(case: Case, data: Data, *, cores: int, seconds: float) -> tuple[str, ...]:
    """Return what a case changes of the job file.

    Args:
        cores: of the machine; workers share them as compute threads.
        seconds: between two looks at a running job.
    """
    return (
        f"data.train={data.directory.resolve()}/train/*.parquet",
        f"data.eval={data.directory.resolve()}/test/*.parquet",
        f"data.batch_size={case.batch}",
        f"training.mode={case.mode}",
        f"training.global_batch={case.batches_per_step * case.batch}",
        f"training.max_samples={data.rows}",
        f"cluster.workers={case.workers}",
        f"cluster.servers={case.servers}",
        f"cluster.worker_threads={max(1, cores // case.workers)}",
        f"run.progress_every_seconds={seconds}",
    )


def job_of(case: Case, data: Data) -> JobConfig:
    """Return the job of a case."""
    return JobConfig.from_yaml(JOB, list(overrides(case, data, cores=1, seconds=1.0)))


class Jobs:
    """Trains cases one after another on one Ray; run directories go to `out`."""

    def __init__(self, out: Path, data: Data, *, cores: int, seconds: float) -> None:
        self._out, self._data, self._cores, self._seconds = out, data, cores, seconds
        self._train = TrainingRuns(out)

    def __call__(self, case: Case, repeat: int) -> Row:
        """Train once; return the run's figures.

        Raises:
            ConfigError, DataError, TrainingError: as Trainer.fit.
        """
        run = self._run(case, repeat)
        row = self._train(run)
        directory = run.directory(self._out)
        lines = [json.loads(text) for text in (directory / "metrics.jsonl").open()]
        result = json.loads((directory / "result.json").read_text())
        found = figures(lines, result, case)
        cpu = found["cpu_seconds_per_million"]
        own = sum(cpu.values())
        cpu["rest"] = None
        if math.isnan(row["cores_used"]):  # too short a run has no figure for everything
            return {**row, **found, "cores_used": None, "cores_used_by_others": None}
        everything = 1e6 * row["cores_used"] * row["train_seconds"] / row["samples_trained"]
        cpu["rest"] = everything - own  # Ray and the driver
        return {**row, **found}

    def interrupted(self, case: Case, repeat: int, measure: Callable[[], float]) -> Row:
        """Train once, stopping the job now and then to measure something else meanwhile.

        Returns:
            auc, train_seconds, and
            measured: what `measure` returned at each stop; none where the run was too short.
            stopped_seconds: of train_seconds, all stops together.
            samples_per_second: of the time in which it was not stopped.

        Raises:
            ConfigError, DataError, TrainingError: as Trainer.fit; what `measure` raises.
        """
        run = self._run(case, repeat)
        metrics = run.directory(self._out) / "metrics.jsonl"
        metrics.unlink(missing_ok=True)  # of the run before, in the same directory

        def wanted() -> bool:
            return 0.0 < share_trained(metrics, self._data.rows, time.time()) < LAST_STOP

        with Pauses(measure, actors, wanted, every_seconds=RUN_SECONDS) as pauses:
            row = self._train(run)
        return {
            "auc": row["auc"],
            "train_seconds": row["train_seconds"],
            "measured": pauses.measured,
            "stopped_seconds": pauses.seconds,
            "samples_per_second": row["samples_trained"] / (row["train_seconds"] - pauses.seconds),
        }

    def _run(self, case: Case, repeat: int) -> Run:
        settings = overrides(case, self._data, cores=self._cores, seconds=self._seconds)
        names = {"topology": case.topology, "mode": case.mode, "batch": case.batch}
        return Run("bench", {**names, "repeat": repeat}, 1, JOB, settings)


def share_trained(metrics: Path, samples: int, now: float) -> float:
    """Return about what share of the samples is over by now; 0 where training has not begun.

    Lines of metrics.jsonl are seconds apart; the job is taken to go on after the last one as fast
    as it went before.

    Args:
        samples: of the whole job.
        now: as `time.time()`.
    """
    try:
        lines = metrics.read_text().splitlines(keepends=True)
    except FileNotFoundError:
        return 0.0
    whole = [text for text in lines if text.endswith("\n")]  # the last one may be being written
    line = json.loads(whole[-1]) if whole else {"train_seconds": 0.0}
    if line["train_seconds"] == 0.0:
        return 0.0
    over = line["samples"] + line["samples_dropped"] + line["samples_skipped"]
    return float(over * (1 + (now - line["time"]) / line["train_seconds"]) / samples)


def figures(lines: list[Row], result: Row, case: Case) -> Row:
    """Return what a run says of stages, CPU time, memory and the wire.

    They are differences between the first and the last line of metrics.jsonl while it trained:
    processes wait before the first batch, and evaluate after the last one.
    """
    begin, end = _window(lines)
    samples = end["samples"] - begin["samples"]
    batches = samples / case.batch
    wire = "pushed_and_pulled_by_workers"
    return {
        "worker_ms_per_batch": _per_batch("worker", begin, end, batches),
        "server_ms_per_batch": _per_batch("server", begin, end, batches),
        "cpu_seconds_per_million": {
            role: 1e6 * (sum(end["cpu_seconds"][role]) - sum(begin["cpu_seconds"][role])) / samples
            for role in end["cpu_seconds"]
        },
        "peak_memory_mb": {role: num / 1e6 for role, num in result["peak_rss_bytes"].items()},
        "wire_bytes_per_sample": (end["wire_bytes"][wire] - begin["wire_bytes"][wire]) / samples,
    }


def _window(lines: list[Row]) -> tuple[Row, Row]:
    training = [line for line in lines if line["eval_auc"] is None and line["samples"] > 0]
    if not training:
        raise ValueError("metrics.jsonl has no line with trained samples before the evaluation")
    # Samples of the first line are those of a start; where there is no other, it has to do.
    end = training[-1]
    begin = training[0] if training[0]["samples"] < end["samples"] else _nothing_of(end)
    return begin, end


def _nothing_of(line: Row) -> Row:
    """Return a line of a job that has done nothing."""
    return {name: _zeros(line[name]) for name in line}


def _zeros(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _zeros(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [_zeros(entry) for entry in value]
    return 0


def _per_batch(role: str, begin: Row, end: Row, batches: float) -> dict[str, float]:
    """Return milliseconds a local batch by stage, all processes of a role together."""
    before, after = begin["stage_seconds"][role], end["stage_seconds"][role]
    names = after[0] if after else ()
    return {
        name: 1e3 * (sum(s[name] for s in after) - sum(s.get(name, 0.0) for s in before)) / batches
        for name in names
    }
