"""Measure how long a job takes from its command to its first trained batch: JSON lines.

    python benchmarks/bench_startup.py
    python benchmarks/bench_startup.py --cold      # and once with no compiled kernels

Trains a few batches of jobs/dlrm.yaml by scripts/train.py on a Ray of its own, again and again, and
beside it what Ray takes alone. Generates the data where they are missing. Exits 2 where it can't be
run as it was called, 1 where a job failed. What each line means: docs/performance.md.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from itertools import pairwise
from pathlib import Path
from statistics import median

from bench.command_line import finish
from bench.lines import emit
from bench.training_data import find_data
from bench.training_jobs import JOB

ROOT = Path(__file__).resolve().parents[1]
TARGET_SECONDS = 15.0
BATCHES = 20
BATCH_SIZE = 2048
# Each ends with the moment of that name in result.json's `started_at`.
PHASES = ("imports", "plan", "ray", "servers", "coordinator", "workers", "first_batch")
Seconds = dict[str, float]


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=3, help="default: %(default)s")
    parser.add_argument("--workers", type=int, default=2, help="default: %(default)s")
    parser.add_argument("--servers", type=int, default=2, help="default: %(default)s")
    parser.add_argument("--data", type=Path, default=Path("data/criteo-like"), help="%(default)s")
    parser.add_argument("--cold", action="store_true", help="first, once with no kernels compiled")
    arguments = parser.parse_args(argv)
    for name in ("repeats", "workers", "servers"):
        if getattr(arguments, name) < 1:
            parser.error(f"--{name} must be >= 1, got {getattr(arguments, name)}")
    return arguments


def overrides(arguments: argparse.Namespace) -> list[str]:
    """Return what is changed of the job file: little is trained, nothing evaluated."""
    return [
        f"data.train={arguments.data.resolve()}/train/*.parquet",
        "data.eval=null",
        f"data.batch_size={BATCH_SIZE}",
        f"training.max_samples={BATCHES * BATCH_SIZE}",
        f"cluster.workers={arguments.workers}",
        f"cluster.servers={arguments.servers}",
    ]


def run(command: list[str], environment: dict[str, str]) -> str:
    """Return what a command prints; raises RuntimeError where it fails."""
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    if done.returncode != 0:
        raise RuntimeError(done.stderr[-2000:])
    return done.stdout


def started(job: list[str], environment: dict[str, str]) -> Seconds:
    """Run the job; return seconds by phase until its first batch was computed."""
    with tempfile.TemporaryDirectory(prefix="bench-startup-") as temporary:
        directory = Path(temporary) / "run"
        begin = time.time()
        run(
            [sys.executable, "scripts/train.py", JOB, *job, f"run.dir={directory}"],
            environment,
        )
        result = json.loads((directory / "result.json").read_text())
        batches = [json.loads(line) for line in (directory / "batches.jsonl").open()]
    first = min(batch["start"] + batch["seconds"] for batch in batches)
    moments = [begin, *result["started_at"].values(), first]
    seconds = [end - start for start, end in pairwise(moments)]
    return dict(zip(PHASES, seconds, strict=True))


def part(name: str, job: list[str], environment: dict[str, str]) -> Seconds:
    """Return what a part of a start takes in a process of its own, see bench/starting.py."""
    paths = os.pathsep.join(str(ROOT / each) for each in ("", "scripts", "benchmarks"))
    output = run(
        [sys.executable, "-m", "bench.starting", name, JOB, *job],
        {**environment, "PYTHONPATH": paths},
    )
    return json.loads(output.splitlines()[-1])


def middle(runs: list[Seconds]) -> Seconds:
    """Return the run with the median total: its phases belong together."""
    return sorted(runs, key=lambda seconds: sum(seconds.values()))[len(runs) // 2]


def emit_start(name: str, runs: list[Seconds], target: float | None) -> None:
    totals = [sum(seconds.values()) for seconds in runs]
    emit(
        name,
        median(totals),
        "s",
        target=target,
        at_most=True,
        min=min(totals),
        max=max(totals),
        repeats=len(runs),
        load=os.getloadavg()[0],
        seconds=middle(runs),
    )


def measure(arguments: argparse.Namespace, environment: dict[str, str]) -> None:
    find_data(arguments.data, BATCHES * BATCH_SIZE)
    job = overrides(arguments)
    if arguments.cold:
        with tempfile.TemporaryDirectory(prefix="bench-startup-") as empty:
            cold = {k: v for k, v in environment.items() if k != "NUMBA_CACHE_DIR"}
            emit_start("startup_cold", [started(job, {**cold, "XDG_CACHE_HOME": empty})], None)
    started(job, environment)  # now kernels are compiled
    starts, rays = [], []
    for _ in range(arguments.repeats):
        starts.append(started(job, environment))
        rays.append(part("ray", job, environment))
    emit_start("startup", starts, TARGET_SECONDS)
    total = median(sum(seconds.values()) for seconds in starts)
    alone = median(sum(seconds.values()) for seconds in rays)
    emit("ray_alone", alone, "s", share=alone / total, seconds=middle(rays))
    for role in ("server", "worker"):
        runs = [part(role, job, environment) for _ in range(arguments.repeats)]
        emit_start(f"{role}_alone", runs, None)


def main(argv: list[str] | None = None) -> int:
    arguments = parse(argv)
    # A Ray of its own, even where another one is running.
    environment = {k: v for k, v in os.environ.items() if k != "RAY_ADDRESS"}
    return finish(lambda: measure(arguments, environment))


if __name__ == "__main__":
    sys.exit(main())
