"""Measure standbys: what they cost a job, and how long a promotion takes; one JSON line a figure.

    python benchmarks/standbys.py                  # 400,000 samples, jobs in turns, three times
    python benchmarks/standbys.py --quick          # little data, once: see that it runs

The same job in `sync` runs without standbys and with them, and with them while a server is ended
by SIGKILL, each as a process of its own. What each line means: docs/performance.md.
"""

import argparse
import os
import sys
import tempfile
from pathlib import Path
from statistics import median

import numpy as np

from bench.command_line import finish
from bench.lines import emit
from bench.watched_jobs import Ran, job_of, train, write_samples

KILL_AT = 0.3  # of the steps


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--samples", type=int, default=400_000, help="default: %(default)s")
    parser.add_argument("--keys", type=int, default=200_000, help="default: %(default)s")
    parser.add_argument("--batch", type=int, default=512, help="default: %(default)s")
    parser.add_argument("--repeats", type=int, default=3, help="default: %(default)s")
    parser.add_argument("--quick", action="store_true", help="small sizes: see that it runs")
    arguments = parser.parse_args(argv)
    if arguments.quick:
        parser.set_defaults(samples=40_000, keys=5_000, repeats=1)
        arguments = parser.parse_args(argv)
    if arguments.samples < 20 * arguments.batch or min(arguments.repeats, arguments.keys) < 1:
        parser.error("--samples must be >= 20 batches, --keys and --repeats >= 1")
    return arguments


def measure(folder: Path, arguments: argparse.Namespace) -> None:
    """Print all figures."""
    data = folder / "train.parquet"
    keys = np.random.default_rng(0).zipf(1.2, arguments.samples) % arguments.keys
    write_samples(data, keys)
    runs: dict[str, list[Ran]] = {"without": [], "with": [], "killed": []}
    kill_at = int(KILL_AT * arguments.samples / (2 * arguments.batch))
    for repeat in range(arguments.repeats):
        for name, found in runs.items():
            job = job_of(
                data, folder / f"{name}-{repeat}", batch=arguments.batch,
                kill_at=kill_at if name == "killed" else None,
                cluster={"servers": 2, "standby": int(name != "without")},
                checkpoint={"every_seconds": None},
            )  # fmt: skip
            found.append(train(folder, job))
    digests = {ran.result["model_digest"] for found in runs.values() for ran in found}
    if len(digests) > 1:
        raise RuntimeError(f"the models differ: {sorted(digests)}")
    size = {"samples": arguments.samples, "batch": arguments.batch, "repeats": arguments.repeats}
    for name in ("without", "with"):
        results = [ran.result for ran in runs[name]]
        label = f"{name}_standbys"
        emit(label, median(r["samples_per_second"] for r in results), "samples/s", **size)
        workers = [ran.wire_bytes / arguments.samples for ran in runs[name]]
        emit(f"{label}_wire", median(workers), "bytes a sample", **size)
        memory = median(ran.servers_bytes for ran in runs[name])
        emit(f"{label}_memory", memory / 1e6, "MB of servers and standbys", **size)
    slower = [
        w.result["samples_per_second"] / s.result["samples_per_second"] - 1
        for w, s in zip(runs["without"], runs["with"], strict=True)
    ]
    emit("slower", median(slower), "of the rate with them", min=min(slower), max=max(slower))
    for ran in runs["killed"]:
        _emit_promotion(ran)


def _emit_promotion(ran: Ran) -> None:
    recovery, killed_at = ran.recovery()
    if not recovery["promoted"]:
        raise RuntimeError(f"no standby was promoted: {recovery}")
    noticed = recovery["time"] - killed_at
    emit("promotion", noticed + recovery["seconds"], "s from the kill to the next step", target=2.0,
         at_most=True, noticed_s=noticed, redone_steps=recovery["redone_steps"],
         standbys_at_the_end=len(ran.result["standbys"]))  # fmt: skip


def run(arguments: argparse.Namespace) -> None:
    emit("machine", None, "", cores=len(os.sched_getaffinity(0)), load=os.getloadavg()[0])
    with tempfile.TemporaryDirectory() as folder:
        measure(Path(folder), arguments)


def main(argv: list[str] | None = None) -> int:
    arguments = parse(argv)
    return finish(lambda: run(arguments))


if __name__ == "__main__":
    sys.exit(main())
