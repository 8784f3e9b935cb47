"""Measure what a job loses whose tables are larger than memory: one JSON line for each figure.

    python benchmarks/tiers_training.py --path /ssd   # with room for values 10 times the budget
    python benchmarks/tiers_training.py --quick       # small: see that it runs

The DLRM of jobs/dlrm.yaml trains ids that are Zipf. One job makes the rows, in memory; those that
are measured go on from its checkpoint, with tables in memory and with tiers, in turns. What is
measured is the second half of each. What each line means: docs/performance.md.
"""

import argparse
import json
import shutil
import tempfile
from collections.abc import Iterable
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from bench.keys import EXPONENT, keys_of
from bench.lines import emit
from bench.training_jobs import JOB
from embedding.spec.tiers import MIN_MEMORY_BYTES
from scheduler import JobConfig, Trainer
from worker.datasets.planted import DENSE_COLUMNS, SPARSE_COLUMNS

_FILES = 8
_DIM = 16
_ROW_BYTES = 4 * 2 * _DIM  # the vector and Adagrad's accumulator
_CASES = ("memory", "tiers", "tiers without prefetch")
_TARGET = 0.7  # of memory's speed


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--samples", type=int, default=400_000,
                        help="that make the rows (%(default)s)")  # fmt: skip
    parser.add_argument("--measured", type=int, default=100_000,
                        help="samples of a job that is measured (%(default)s)")  # fmt: skip
    parser.add_argument("--ids", type=int, default=200_000, help="of a column (%(default)s)")
    parser.add_argument("--batch", type=int, default=2048, help="of a worker (%(default)s)")
    parser.add_argument("--times", type=float, default=10, help="rows over budget (%(default)s)")
    parser.add_argument("--modes", default="sync,gba", help="in turns (%(default)s)")
    parser.add_argument("--workers", type=int, default=2, help="default: %(default)s")
    parser.add_argument("--servers", type=int, default=1, help="default: %(default)s")
    parser.add_argument("--repeats", type=int, default=2, help="turns (%(default)s)")
    parser.add_argument("--without-prefetch", action="store_true",
                        help="measure tiers whose rows are not read ahead, too")  # fmt: skip
    parser.add_argument("--path", default=tempfile.gettempdir(), help="folder on the disk")
    parser.add_argument("--quick", action="store_true", help="small sizes: see that it runs")
    arguments = parser.parse_args(argv)
    if arguments.quick:
        parser.set_defaults(
            samples=4096, measured=4096, ids=3000, batch=256, modes="sync", repeats=1
        )
        arguments = parser.parse_args(argv)
    for name in ("samples", "measured", "ids", "batch", "workers", "servers", "repeats"):
        if getattr(arguments, name) < 1:
            parser.error(f"--{name} must be >= 1, got {getattr(arguments, name)}")
    if arguments.measured > arguments.samples:
        parser.error(f"--measured must be <= --samples, {arguments.samples}")
    if arguments.times <= 1:
        parser.error(f"--times must be > 1, got {arguments.times}")
    if not Path(arguments.path).is_dir():
        parser.error(f"--path must be a folder, got {arguments.path!r}")
    return arguments


def write_data(folder: Path, samples: int, ids: int) -> None:
    """Write samples whose ids are Zipf, in some files."""
    rng = np.random.default_rng(7)
    weights = np.arange(1, ids + 1) ** -EXPONENT
    bounds = np.cumsum(weights) / weights.sum()
    folder.mkdir()
    for part in range(_FILES):
        n = samples // _FILES
        columns: dict[str, Any] = {"label": (rng.random(n) < 0.25).astype(np.float32)}
        columns |= {name: rng.random(n, np.float32) for name in DENSE_COLUMNS}
        columns |= {
            name: keys_of(np.minimum(np.searchsorted(bounds, rng.random(n)), ids - 1))
            for name in SPARSE_COLUMNS
        }
        pq.write_table(pa.table(columns), folder / f"part-{part}.parquet", row_group_size=1 << 15)


class Jobs:
    """Trains the cases on one set of samples, below one folder."""

    def __init__(self, arguments: argparse.Namespace, folder: Path) -> None:
        self._arguments, self._folder = arguments, folder
        self._disk = folder / "disk"
        self._disk.mkdir()
        write_data(folder / "data", arguments.samples, arguments.ids)
        self._first = folder / "first"
        wanted = JobConfig.from_yaml(JOB, self._overrides("async", self._first))
        made = Trainer(wanted).fit().metrics["tables"]
        # The budget of each table on each server: a part of what its values take.
        share = _ROW_BYTES / arguments.times / arguments.servers
        self._budgets = {
            name: max(int(table["rows"] * share), MIN_MEMORY_BYTES) for name, table in made.items()
        }

    def __call__(self, case: str, mode: str) -> dict[str, Any]:
        """Train one case; return its figures."""
        run = self._folder / "run"
        overrides = [
            *self._overrides(mode, run),
            f"run.init_from={self._first}",
            f"training.max_samples={self._arguments.measured}",
        ]
        job = JobConfig.from_yaml(JOB, overrides).model_dump()
        if case != "memory":
            job["tables"] = {
                name: {
                    "tiers": {
                        "memory_bytes": budget,
                        "path": str(self._disk),
                        "prefetch": case == "tiers",
                    }
                }
                for name, budget in self._budgets.items()
            }
        result = Trainer(JobConfig.from_dict(job)).fit().metrics
        found = figures(run, result)
        shutil.rmtree(run)
        return found

    def _overrides(self, mode: str, run: Path) -> list[str]:
        arguments = self._arguments
        return [
            f"data.train={self._folder}/data/*.parquet",
            "data.eval=null",
            f"data.batch_size={arguments.batch}",
            f"embedding.dim={_DIM}",
            f"training.mode={mode}",
            f"training.global_batch={2 * arguments.batch * max(1, arguments.workers // 2)}",
            f"cluster.workers={arguments.workers}",
            f"cluster.servers={arguments.servers}",
            "cluster.start_timeout_seconds=300",
            "run.progress_every_seconds=0.25",
            f"run.dir={run}",
        ]

    @property
    def budget(self) -> int:
        return sum(self._budgets.values()) * self._arguments.servers


def figures(run: Path, result: dict[str, Any]) -> dict[str, Any]:
    """Return the speed of the second half, what it took, and where rows were asked for in it."""
    lines = [json.loads(text) for text in (run / "metrics.jsonl").open()]
    all_samples = lines[-1]["samples"]
    begin = next(line for line in lines if line["samples"] >= all_samples / 2)
    end = next(line for line in lines if line["samples"] == all_samples)
    seconds, samples = end["time"] - begin["time"], end["samples"] - begin["samples"]
    before, after = ([*_tables(line)] for line in (begin, end))
    names = ("memory_hits", "cache_hits", "disk_reads", "prefetched", "prefetched_lost",
             "disk_bytes_written")  # fmt: skip
    return {
        **{name: sum(t[name] for t in after) - sum(t[name] for t in before) for name in names},
        "memory_rows": sum(table["memory_rows"] for table in after),
        "rows": sum(table["rows"] for table in result["tables"].values()),
        "samples": samples,
        "speed": samples / seconds if seconds else 0.0,
        "cpu": {
            role: 1e6 * (sum(end["cpu_seconds"][role]) - sum(begin["cpu_seconds"][role]))
            / max(samples, 1)
            for role in end["cpu_seconds"]
        },
        "digest": result["model_digest"],
    }  # fmt: skip


def _tables(line: dict[str, Any]) -> Iterable[dict[str, int]]:
    return line.get("tiers", {}).values()


def main(argv: list[str] | None = None) -> int:
    arguments = parse(argv)
    folder = Path(tempfile.mkdtemp(prefix="tiers-training-", dir=arguments.path))
    try:
        jobs = Jobs(arguments, folder)
        for mode in arguments.modes.split(","):
            measure(arguments, jobs, mode)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return 0


def measure(arguments: argparse.Namespace, jobs: Jobs, mode: str) -> None:
    """Train all cases in turns, and print what each took."""
    cases = _CASES if arguments.without_prefetch else _CASES[:2]
    found: dict[str, list[dict[str, Any]]] = {case: [] for case in cases}
    for _ in range(arguments.repeats):
        for case in cases:
            found[case].append(jobs(case, mode))
    memory = found["memory"]
    for case, runs in found.items():
        fields: dict[str, Any] = {
            "runs": [each["speed"] for each in runs],
            "cpu_seconds_per_million": {
                role: median(each["cpu"][role] for each in runs) for role in runs[0]["cpu"]
            },
        }
        if mode == "sync":
            fields["same_model"] = all(each["digest"] == memory[0]["digest"] for each in runs)
        if case != "memory":
            fields |= _of_disk(runs[-1], jobs.budget)
        emit(f"{mode} {case}", median(each["speed"] for each in runs), "samples/s", **fields)
    for case, runs in found.items():
        if case == "memory":
            continue
        # Those of a turn met the same load.
        ratios = [
            one["speed"] / max(base["speed"], 1) for one, base in zip(runs, memory, strict=True)
        ]
        by_cpu = [
            sum(base["cpu"].values()) / max(sum(one["cpu"].values()), 1e-9)
            for one, base in zip(runs, memory, strict=True)
        ]
        emit(f"{mode} {case}, of memory", median(ratios), "", target=_TARGET,
             turns=ratios, by_cpu=median(by_cpu))  # fmt: skip


def _of_disk(run: dict[str, Any], budget: int) -> dict[str, Any]:
    asked = sum(run[name] for name in ("memory_hits", "cache_hits", "disk_reads"))
    reads = run["disk_reads"] + run["prefetched"]
    return {
        "rows": run["rows"],
        "rows_in_memory": run["memory_rows"] / run["rows"],
        "budget_bytes": budget,
        "values_bytes": run["rows"] * _ROW_BYTES,
        "disk_reads_a_sample": reads / max(run["samples"], 1),
        "bytes_written_a_sample": run["disk_bytes_written"] / max(run["samples"], 1),
        "read_when_asked": run["disk_reads"] / max(asked, 1),
        "reads_that_were_ahead": run["prefetched"] / max(reads, 1),
        "ahead_and_lost": run["prefetched_lost"] / max(run["prefetched"], 1),
    }


if __name__ == "__main__":
    raise SystemExit(main())
