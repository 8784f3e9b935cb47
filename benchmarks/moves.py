"""Measure how long training pauses while servers come and go; one JSON line a figure.

    python benchmarks/moves.py                     # 100 k, 1 M and 10 M rows
    python benchmarks/moves.py --quick             # few rows: see that it runs

A job of 26 tables makes rows of dim 16 with Adagrad and trains on, as fast as it can, while it is
given a third server and has it taken away again. What each line means: docs/performance.md.
"""

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from bench.command_line import finish
from bench.job_process import JobProcess, started
from bench.keys import keys_of, zipf_numbers
from bench.lines import emit

STEADY = 100_000  # samples of a file that is trained once all rows are there
FILES = 400  # of these: more than are trained
SETTLE_SECONDS = 3.0
TARGET_SECONDS = 1.0
MOST_SECONDS = 1200.0


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--rows", type=_sizes, default=(100_000, 1_000_000, 10_000_000),
        help="of the model, sizes with commas between them; default: 100000,1000000,10000000",
    )  # fmt: skip
    parser.add_argument("--tables", type=int, default=26, help="default: %(default)s")
    parser.add_argument("--batch", type=int, default=2048, help="samples; default: %(default)s")
    parser.add_argument("--workers", type=int, default=2, help="default: %(default)s")
    parser.add_argument("--mode", default="gba", help="default: %(default)s")
    parser.add_argument("--repeats", type=int, default=1, help="default: %(default)s")
    parser.add_argument("--quick", action="store_true", help="few rows: see that it runs")
    arguments = parser.parse_args(argv)
    if arguments.quick:
        arguments.rows, arguments.batch, arguments.tables = (20_000,), 256, 2
    if min(arguments.batch, arguments.workers, arguments.repeats, arguments.tables) < 1:
        parser.error("--batch, --workers, --repeats and --tables must be >= 1")
    if min(arguments.rows) < arguments.tables * arguments.batch:
        parser.error(f"--rows must be >= the {arguments.tables * arguments.batch} keys of a batch")
    return arguments


def _sizes(text: str) -> tuple[int, ...]:
    return tuple(int(size) for size in text.split(","))


def write_samples(folder: Path, rows: int, tables: int) -> None:
    """Write a file in which every key is there once, and many that draw from them (Zipf)."""
    folder.mkdir()
    rng = np.random.default_rng(1)
    of_table = rows // tables
    fill = [rng.permutation(of_table) for _ in range(tables)]
    _write(folder / "0-fill.parquet", fill, rng)
    steady = folder / "1-steady-0.parquet"
    _write(steady, [zipf_numbers(of_table, STEADY, rng) for _ in range(tables)], rng)
    for number in range(1, FILES):
        os.link(steady, folder / f"1-steady-{number}.parquet")


def _write(path: Path, numbers: list[npt.NDArray[np.int64]], rng: np.random.Generator) -> None:
    samples = numbers[0].size
    columns = {
        "label": (rng.random(samples) < 0.25).astype(np.int8),
        "d1": rng.exponential(2.0, samples).astype(np.float32),
        **{f"c{table}": keys_of(each) for table, each in enumerate(numbers)},
    }
    pq.write_table(pa.table(columns), path, row_group_size=1 << 16, compression="zstd")


def job_of(data: Path, run: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    """Return the job, as a job file has it."""
    return {
        "seed": 3,
        "data": {
            "train": str(data / "*.parquet"), "dense": ["d1"],
            "sparse": [f"c{table}" for table in range(arguments.tables)],
            "batch_size": arguments.batch, "order": "sequential",
        },
        "embedding": {"dim": 16, "optimizer": {"type": "adagrad"}},
        "model": {"type": "dlrm", "bottom_mlp": [64, 16], "top_mlp": [64]},
        "training": {
            "mode": arguments.mode, "global_batch": arguments.workers * arguments.batch,
        },
        "cluster": {"workers": arguments.workers, "servers": 2, "start_timeout_seconds": 600},
        "checkpoint": {"every_seconds": None},
        "run": {"dir": str(run), "progress_every_seconds": 0.5},
    }  # fmt: skip


def wait(job: JobProcess, until: Callable[[list[dict[str, Any]]], bool]) -> None:
    """Wait until the lines of metrics say so.

    Raises:
        RuntimeError: the job has ended, or takes too long.
    """
    while job.runs():
        if until(job.metrics()):
            return
        time.sleep(0.2)
    raise RuntimeError(f"the job has ended: {job.said()}")


def measure(folder: Path, rows: int, arguments: argparse.Namespace) -> None:
    """Have servers come and go in one job, and print what that was."""
    folder.mkdir()
    data = folder / "data"
    write_samples(data, rows, arguments.tables)
    job = job_of(data, folder / "run", arguments)
    with started(folder, job, most_seconds=MOST_SECONDS) as running:
        there = rows // arguments.tables * arguments.tables
        wait(running, lambda lines: bool(lines) and sum(lines[-1]["rows"].values()) >= there)
        for servers in [3, 2] * arguments.repeats:
            time.sleep(SETTLE_SECONDS)
            before = running.metrics()
            number = len(_moves(before))
            running.control("servers", str(servers))
            wait(running, lambda lines, number=number: len(_moves(lines)) > number)  # type: ignore[misc]
            _emit(rows, arguments, _moves(running.metrics())[-1], before[-1]["samples_per_second"])


def _moves(lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [move for line in lines for move in line["server_moves"]]


def _emit(rows: int, arguments: argparse.Namespace, move: dict[str, Any], rate: float) -> None:
    emit(
        f"pause_{move['before']}_to_{move['after']}_servers",
        move["pause_seconds"],
        "s",
        target=TARGET_SECONDS,
        at_most=True,
        rows=rows,
        tables=arguments.tables,
        parts=move["pause_parts"],
        moved_rows=move["rows"] - move["rows_in_pause"],
        moved_bytes=move["bytes"] - move["bytes_in_pause"],
        rows_in_pause=move["rows_in_pause"],
        bytes_in_pause=move["bytes_in_pause"],
        rounds=move["rounds"],
        seconds=move["seconds"],
        samples_per_second_before=rate,
    )


def run(arguments: argparse.Namespace) -> None:
    emit("machine", None, "", cores=len(os.sched_getaffinity(0)), load=os.getloadavg()[0])
    for rows in arguments.rows:
        with tempfile.TemporaryDirectory() as folder:
            measure(Path(folder) / str(rows), rows, arguments)


def main(argv: list[str] | None = None) -> int:
    arguments = parse(argv)
    return finish(lambda: run(arguments))


if __name__ == "__main__":
    sys.exit(main())
