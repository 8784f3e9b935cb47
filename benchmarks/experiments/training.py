"""Train a run's job through the public trainer, and keep the figures that experiments compare."""

import json
import os
import shutil
import threading
import time
from pathlib import Path
from types import TracebackType
from typing import Any

import psutil

from bench.runs import Row, Run
from scheduler import JobConfig, StartError, Trainer
from scheduler.driver.launch import start_ray
from scheduler.job.config import ClusterConfig

_ATTEMPTS = 3
# Enough for the largest job of any experiment: Ray is started once for all.
_LARGEST = ClusterConfig(workers=8, servers=2)


class CpuUse:
    """Samples, twice a second, the CPU seconds of this process and all below it.

    Example:
        with CpuUse() as use:
            work()
        use.cores_between(begin, end)
    """

    def __init__(self) -> None:
        self._own: list[tuple[float, float]] = []
        self._all: list[tuple[float, float]] = []
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._sample, daemon=True)

    def __enter__(self) -> "CpuUse":
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._ended.set()
        self._thread.join()

    def cores_between(self, begin: float, end: float) -> tuple[float, float]:
        """Return how many cores these processes and the whole machine used, on average."""
        own, everything = _slope(self._own, begin, end), _slope(self._all, begin, end)
        return own, everything

    def _sample(self) -> None:
        this = psutil.Process()
        while not self._ended.wait(0.5):
            seconds = 0.0
            for process in [this, *this.children(recursive=True)]:
                try:
                    times = process.cpu_times()
                except psutil.Error:
                    continue
                seconds += times.user + times.system
            machine = psutil.cpu_times()
            busy = machine.user + machine.nice + machine.system
            self._own.append((time.time(), seconds))
            self._all.append((time.time(), busy))


def _slope(samples: list[tuple[float, float]], begin: float, end: float) -> float:
    inside = [sample for sample in samples if begin <= sample[0] <= end]
    if len(inside) < 2:
        return float("nan")
    (t0, c0), (t1, c1) = inside[0], inside[-1]
    return (c1 - c0) / (t1 - t0)


class TrainingRuns:
    """Trains runs one after another on one Ray.

    Args:
        out: run directories go here; checkpoints that nobody starts from are removed.
    """

    def __init__(self, out: Path) -> None:
        self._out = out
        self._started = False

    def __call__(self, run: Run) -> Row:
        """Train a run's job.

        Raises:
            ConfigError, TrainingError: as Trainer.fit.
        """
        if not self._started:
            start_ray(_LARGEST, namespace=f"experiments-{os.getpid()}")
            self._started = True
        directory = run.directory(self._out)
        overrides = [*run.overrides, f"seed={run.seed}", f"run.dir={directory}"]
        config = JobConfig.from_yaml(run.job, [*overrides, "run.overwrite=true"])
        begun = time.monotonic()
        with CpuUse() as use:
            metrics = _fit(config)
        if not run.keep_checkpoint:
            shutil.rmtree(directory / "checkpoints", ignore_errors=True)
        begin, end = _trained_between(directory, metrics["train_seconds"])
        own, everything = use.cores_between(begin, end)
        return {
            "wall_seconds": time.monotonic() - begun,
            "finished": time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime()),
            "cores": os.cpu_count(),
            "cores_used": own,
            "cores_used_by_others": everything - own,
            **figures(metrics),
            "intervals": intervals(directory),
        }


def _fit(config: JobConfig) -> dict[str, Any]:
    for attempt in range(1, _ATTEMPTS + 1):
        try:
            return Trainer(config).fit().metrics
        except StartError:
            if attempt == _ATTEMPTS:
                raise
    raise AssertionError("unreachable")


def _trained_between(directory: Path, train_seconds: float) -> tuple[float, float]:
    """Return when training began and ended, as `time.time()`."""
    for text in (directory / "metrics.jsonl").read_text().splitlines():
        line = json.loads(text)
        if line["train_seconds"] > 0:
            begin = line["time"] - line["train_seconds"]
            return begin, begin + train_seconds
    return 0.0, 0.0


def intervals(directory: Path) -> list[Row]:
    """Return what experiments keep of each line of metrics.jsonl while it trains."""
    lines = [json.loads(text) for text in (directory / "metrics.jsonl").read_text().splitlines()]
    return [
        {
            "seconds": line["train_seconds"],
            "samples": line["samples"],
            "mode": line["mode"],
            "batch_seconds": {
                number: worker["batch_seconds"] for number, worker in line["workers"].items()
            },
        }
        for line in lines
        if line["train_seconds"] > 0
    ]


def figures(metrics: dict[str, Any]) -> Row:
    """Return what experiments keep of result.json."""
    evaluation = metrics["eval"] or {}
    given = metrics["samples_trained"] + metrics["samples_dropped"] + metrics["samples_skipped"]
    return {
        "samples_per_second": metrics["samples_per_second"],
        "train_seconds": metrics["train_seconds"],
        "auc": evaluation.get("auc"),
        "logloss": evaluation.get("logloss"),
        "eval_samples": evaluation.get("samples"),
        "samples": given,
        "samples_trained": metrics["samples_trained"],
        "samples_dropped": metrics["samples_dropped"],
        "reissued": metrics["reissued_batches"],
        "global_step": metrics["global_step"],
        "staleness": metrics["staleness"],
        "evaluations": metrics["evaluations"],
        "mode_history": metrics["mode_history"],
        "batch_seconds": {
            number: worker["seconds"] / worker["batches"] if worker["batches"] else None
            for number, worker in metrics["workers"].items()
        },
        "batches": {number: worker["batches"] for number, worker in metrics["workers"].items()},
        "model_digest": metrics["model_digest"],
    }
