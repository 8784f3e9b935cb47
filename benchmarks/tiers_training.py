"""Measure what a job loses whose tables are larger than memory: one JSON line for each figure.

    python benchmarks/tiers_training.py --path /ssd   # with room for values 10 times the budget
    python benchmarks/tiers_training.py --quick       # small: see that it runs

The DLRM of jobs/dlrm.yaml trains ids that are Zipf, twice over: by tables in memory, with tiers,
and with tiers whose rows are not read ahead, in turns. Measured is the second time, when every row
is there. What each line means: docs/performance.md.
"""

import argparse
import json
import shutil
import tempfile
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


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--samples", type=int, default=600_000, help="default: %(default)s")
    parser.add_argument("--ids", type=int, default=200_000, help="of a column (%(default)s)")
    parser.add_argument("--batch", type=int, default=2048, help="of a worker (%(default)s)")
    parser.add_argument("--times", type=float, default=10, help="rows over budget (%(default)s)")
    parser.add_argument("--modes", default="sync,gba", help="in turns (%(default)s)")
    parser.add_argument("--workers", type=int, default=2, help="default: %(default)s")
    parser.add_argument("--servers", type=int, default=1, help="default: %(default)s")
    parser.add_argument("--repeats", type=int, default=3, help="default: %(default)s")
    parser.add_argument("--path", default=tempfile.gettempdir(), help="folder on the disk")
    parser.add_argument("--quick", action="store_true", help="small sizes: see that it runs")
    arguments = parser.parse_args(argv)
    if arguments.quick:
        parser.set_defaults(samples=4096, ids=3000, batch=256, modes="sync", repeats=1)
        arguments = parser.parse_args(argv)
    for name in ("samples", "ids", "batch", "workers", "servers", "repeats"):
        if getattr(arguments, name) < 1:
            parser.error(f"--{name} must be >= 1, got {getattr(arguments, name)}")
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
        self._budgets: dict[str, int] = {}

    def __call__(self, case: str, mode: str) -> dict[str, Any]:
        """Train one case; return its figures."""
        run = self._folder / "run"
        job = JobConfig.from_yaml(JOB, self._overrides(mode, run)).model_dump()
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
        if not self._budgets:
            self._budgets = self._budgets_of(result["tables"])
        found = figures(run, result)
        shutil.rmtree(run)
        return found

    def _overrides(self, mode: str, run: Path) -> list[str]:
        arguments = self._arguments
        return [
            f"data.train={self._folder}/data/*.parquet",
            "data.eval=null",
            "data.epochs=2",
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

    def _budgets_of(self, tables: dict[str, Any]) -> dict[str, int]:
        """Return the budget of each table on each server: a part of what its values take."""
        share = _ROW_BYTES / self._arguments.times / self._arguments.servers
        wanted = {name: int(table["rows"] * share) for name, table in tables.items()}
        return {name: max(budget, MIN_MEMORY_BYTES) for name, budget in wanted.items()}

    @property
    def budget(self) -> int:
        return sum(self._budgets.values()) * self._arguments.servers


def figures(run: Path, result: dict[str, Any]) -> dict[str, Any]:
    """Return the samples/s of the second epoch, and where rows were that were asked for."""
    lines = [json.loads(text) for text in (run / "metrics.jsonl").open()]
    all_samples = lines[-1]["samples"]
    begin = next(line for line in lines if line["samples"] >= all_samples / 2)
    end = next(line for line in lines if line["samples"] == all_samples)
    seconds = end["time"] - begin["time"]
    tables = result["tables"].values()
    names = ("rows", "memory_rows", "memory_hits", "cache_hits", "disk_reads", "prefetched")
    found = {name: sum(table.get(name, 0) for table in tables) for name in names}
    found["prefetched_lost"] = sum(table.get("prefetched_lost", 0) for table in tables)
    found["speed"] = (end["samples"] - begin["samples"]) / seconds if seconds else 0.0
    cpu = [sum(map(sum, line["cpu_seconds"].values())) for line in (begin, end)]
    found["cpu"] = 1e6 * (cpu[1] - cpu[0]) / max(end["samples"] - begin["samples"], 1)
    found["digest"] = result["model_digest"]
    return found


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
    found: dict[str, list[dict[str, Any]]] = {case: [] for case in _CASES}
    for _ in range(arguments.repeats):
        for case in _CASES:
            found[case].append(jobs(case, mode))
    base = median(each["speed"] for each in found["memory"])
    for case, runs in found.items():
        last = runs[-1]
        speed = median(each["speed"] for each in runs)
        fields: dict[str, Any] = {
            "of_memory": speed / base if base else 0.0,
            "runs": [each["speed"] for each in runs],
            "cpu_seconds_per_million": median(each["cpu"] for each in runs),
        }
        if mode == "sync":
            fields["same_model"] = last["digest"] == found["memory"][-1]["digest"]
        if case != "memory":
            asked = sum(last[name] for name in ("memory_hits", "cache_hits", "disk_reads"))
            reads = last["disk_reads"] + last["prefetched"]
            fields |= {
                "rows": last["rows"],
                "rows_in_memory": last["memory_rows"] / last["rows"],
                "budget_bytes": jobs.budget,
                "values_bytes": last["rows"] * _ROW_BYTES,
                "read_when_asked": last["disk_reads"] / asked,
                "reads_that_were_ahead": last["prefetched"] / max(reads, 1),
                "ahead_and_lost": last["prefetched_lost"] / max(last["prefetched"], 1),
            }
        emit(f"{mode} {case}", speed, "samples/s", **fields)


if __name__ == "__main__":
    raise SystemExit(main())
