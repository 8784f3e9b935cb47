"""Measure a server that is killed and has no standby; one JSON line a figure.

    python benchmarks/recovery.py                  # 10,000,000 rows, about three minutes
    python benchmarks/recovery.py --quick          # few rows: see that it runs

A job trains a row for each of so many ids on one server and writes checkpoints meanwhile, a full
one and deltas on top of it; some steps after every id was met its server is ended by SIGKILL. What
each line means: docs/performance.md.
"""

import argparse
import os
import sys
import tempfile
from pathlib import Path

import numpy as np

from bench.command_line import finish
from bench.lines import emit
from bench.watched_jobs import job_of, train, write_samples

# Of the steps that it takes to meet every id once.
SAVE_EVERY, KILL_AT, END_AT = 0.2, 1.35, 1.4


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=10_000_000, help="default: %(default)s")
    parser.add_argument("--batch", type=int, default=2048, help="default: %(default)s")
    parser.add_argument("--quick", action="store_true", help="small sizes: see that it runs")
    arguments = parser.parse_args(argv)
    if arguments.quick:
        parser.set_defaults(rows=500_000, batch=512)
        arguments = parser.parse_args(argv)
    if arguments.batch < 1 or arguments.rows < 200 * arguments.batch:
        parser.error("--rows must be >= 200 batches")
    return arguments


def measure(folder: Path, rows: int, batch: int) -> None:
    """Train, kill, and print what the recovery took."""
    rng, steps = np.random.default_rng(0), rows // (2 * batch)
    keys = np.concatenate([rng.permutation(rows), rng.integers(0, rows, int(rows * END_AT) - rows)])
    write_samples(folder / "train.parquet", keys)
    job = job_of(
        folder / "train.parquet", folder / "run", batch=batch, kill_at=int(KILL_AT * steps),
        cluster={"servers": 1, "standby": 0},
        checkpoint={"every_steps": int(SAVE_EVERY * steps), "every_seconds": None, "keep": 1},
    )  # fmt: skip
    ran = train(folder, job)
    recovery, killed_at = ran.recovery()
    if not recovery["to_step"]:
        raise RuntimeError("no checkpoint was written before the server was killed")
    noticed = recovery["time"] - killed_at
    emit("recovery", noticed + recovery["seconds"], "s from the kill to the next step", target=15.0,
         at_most=True, noticed_s=noticed, rows=min(rows, recovery["to_step"] * 2 * batch),
         redone_steps=recovery["redone_steps"], servers_mb=ran.servers_bytes / 1e6)  # fmt: skip
    emit("rate", ran.result["samples_per_second"], "samples/s", batch=batch, global_batch=2 * batch)


def run(arguments: argparse.Namespace) -> None:
    emit("machine", None, "", cores=len(os.sched_getaffinity(0)), load=os.getloadavg()[0])
    with tempfile.TemporaryDirectory() as folder:
        measure(Path(folder), arguments.rows, arguments.batch)


def main(argv: list[str] | None = None) -> int:
    arguments = parse(argv)
    return finish(lambda: run(arguments))


if __name__ == "__main__":
    sys.exit(main())
