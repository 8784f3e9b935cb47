"""Measure how long training pauses while servers come and go; one JSON line a figure.

    python benchmarks/moves.py                     # 100 k, 1 M and 10 M rows
    python benchmarks/moves.py --quick             # few rows: see that it runs
    python benchmarks/moves.py --skewed            # frequent ids on one server: how that evens out

A job of 26 tables makes rows of dim 16 with Adagrad and trains on, as fast as it can, while it is
given a third server and has it taken away again. With --skewed it keeps its two servers, one of
which has the frequent ids, and `cluster.rebalance: auto` moves buckets. What each line means:
docs/performance.md.
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
from embedding.kernels.mixing import NUM_BUCKETS, buckets_of

STEADY = 100_000  # samples of a file that is trained once all rows are there
FILES = 400  # of these: more than are trained
SETTLE_SECONDS = 3.0
TARGET_SECONDS = 1.0
MOST_SECONDS = 1200.0
WINDOW_SECONDS = 2.0  # of the load of servers
MOST_SKEW = 1.25  # above which buckets move


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
    parser.add_argument(
        "--skewed", action="store_true", help="frequent ids lie on one server: how that evens out"
    )
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


def write_samples(folder: Path, rows: int, tables: int, *, skewed: bool = False) -> None:
    """Write a file in which every key is there once, and many that draw from them (Zipf).

    Args:
        skewed: whether the most frequent of each twenty keys are the first server's of two.
    """
    folder.mkdir()
    rng = np.random.default_rng(1)
    of_table = rows // tables
    drawn = [zipf_numbers(of_table, STEADY, rng) for _ in range(tables)]
    keys = keys_of(np.arange(of_table))
    of_tables = [_hot_on_one(keys, numbers) if skewed else keys for numbers in drawn]
    _write(folder / "0-fill.parquet", [rng.permutation(keys) for keys in of_tables], rng)
    steady = folder / "1-steady-0.parquet"
    _write(steady, [keys[n] for keys, n in zip(of_tables, drawn, strict=True)], rng)
    for number in range(1, FILES):
        os.link(steady, folder / f"1-steady-{number}.parquet")


def _hot_on_one(
    keys: npt.NDArray[np.int64], numbers: npt.NDArray[np.int64]
) -> npt.NDArray[np.int64]:
    """Return the keys in an order in which the twentieth that is drawn most is the first server's.

    Args:
        numbers: places of keys that are drawn.
    """
    by_frequency = np.argsort(-np.bincount(numbers, minlength=keys.size), kind="stable")
    of_first = np.flatnonzero(buckets_of(keys) < NUM_BUCKETS // 2)[: max(1, keys.size // 20)]
    found = np.empty_like(keys)
    found[by_frequency] = np.concatenate([keys[of_first], np.delete(keys, of_first)])
    return found


def _write(path: Path, keys: list[npt.NDArray[np.int64]], rng: np.random.Generator) -> None:
    samples = keys[0].size
    columns = {
        "label": (rng.random(samples) < 0.25).astype(np.int8),
        "d1": rng.exponential(2.0, samples).astype(np.float32),
        **{f"c{table}": each for table, each in enumerate(keys)},
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


def measure_skew(folder: Path, rows: int, arguments: argparse.Namespace) -> None:
    """Have buckets move in one job until its servers are equally busy, and print what that was."""
    folder.mkdir()
    data = folder / "data"
    write_samples(data, rows, arguments.tables, skewed=True)
    job = job_of(data, folder / "run", arguments)
    scaling = {"window_seconds": WINDOW_SECONDS, "windows": 3, "hold_seconds": 600}
    job["cluster"] |= {"rebalance": "auto", "scaling": scaling}
    with started(folder, job, most_seconds=MOST_SECONDS) as running:
        wait(running, lambda lines: any(d["realised"] for d in _decisions(lines)))
        lines = running.metrics()
    (move,) = _moves(lines)
    decision = next(d for d in _decisions(lines) if d["realised"])
    moved = next(number for number, line in enumerate(lines) if line["server_moves"])
    emit(
        "load_of_the_busiest_server",
        decision["realised"],
        "x mean",
        target=MOST_SKEW,
        at_most=True,
        rows=rows,
        before=decision["skew"],
        predicted=decision["predicted"],
        buckets=move["buckets"],
        moved_rows=move["rows"],
        pause=move["pause_seconds"],
        shares_before=_shares(lines[moved // 2 : moved]),
        shares_after=_shares(lines[moved + 1 :]),
        samples_per_second_before=_rate(lines[moved // 2 : moved]),
        samples_per_second_after=_rate(lines[moved + 1 :]),
    )


def _decisions(lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [decision for line in lines for decision in line["rebalancings"]]


def _shares(lines: list[dict[str, Any]]) -> list[float]:
    """Return which share each server had of the bytes that all of them sent and received."""
    first, last = (
        np.add(line["wire_bytes"]["sent_by_servers"], line["wire_bytes"]["received_by_servers"])
        for line in (lines[0], lines[-1])
    )
    return [round(float(share), 3) for share in (last - first) / (last - first).sum()]


def _rate(lines: list[dict[str, Any]]) -> float:
    samples, seconds = (lines[-1][key] - lines[0][key] for key in ("samples", "train_seconds"))
    return float(samples / seconds)


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
            measured = measure_skew if arguments.skewed else measure
            measured(Path(folder) / str(rows), rows, arguments)


def main(argv: list[str] | None = None) -> int:
    arguments = parse(argv)
    return finish(lambda: run(arguments))


if __name__ == "__main__":
    sys.exit(main())
