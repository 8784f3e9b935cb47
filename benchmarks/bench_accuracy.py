"""Measure what workers side by side cost in accuracy: AUC against one worker, paired by seed.

    python benchmarks/bench_accuracy.py                       # 1,750,000 rows, 250,000 for the test
    python benchmarks/bench_accuracy.py --modes gba --seeds 5
    python benchmarks/bench_accuracy.py --rows 16384          # small: see that it runs

One JSON line for every mode: the mean over the seeds of the AUC's difference to the sequential run,
which is one worker in sync with as large a global batch. Generates the data where they are missing.
Exits 2 where it can't be run as it was called, 1 where a job failed.
"""

import argparse
import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from statistics import mean, stdev

from bench.command_line import finish
from bench.lines import emit
from bench.runs import Run
from bench.training_data import find_data
from bench.training_jobs import JOB, Case, Data, overrides
from experiments.training import TrainingRuns
from worker.datasets.synthetic import CriteoLike, write_criteo_like

BATCH = 2048
# By how much the AUC may be lower than that of the sequential run.
TARGETS = {"gba": 0.001, "async": 0.002}


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--modes", default="gba,async", help="default: %(default)s")
    parser.add_argument("--seeds", type=int, default=3, help="default: %(default)s")
    parser.add_argument("--servers", type=int, default=1, help="default: %(default)s")
    parser.add_argument("--rows", type=int, default=1_750_000, help="default: %(default)s")
    parser.add_argument("--test-rows", type=int, help="default: a seventh of --rows")
    parser.add_argument("--data", type=Path, help="default: data/criteo-like-ROWS")
    arguments = parser.parse_args(argv)
    for name in ("seeds", "servers", "rows", "test_rows"):
        value = getattr(arguments, name)
        if value is not None and value < 1:
            parser.error(f"--{name.replace('_', '-')} must be >= 1, got {value}")
    for mode in arguments.modes.split(","):
        if mode not in TARGETS:
            parser.error(f"--modes knows {', '.join(TARGETS)}, got {mode!r}")
    arguments.data = arguments.data or Path(f"data/criteo-like-{arguments.rows}")
    arguments.test_rows = arguments.test_rows or max(1, arguments.rows // 7)
    return arguments


def pair_of(mode: str, servers: int) -> tuple[Case, Case, int]:
    """Return two workers in a mode, one worker that goes over the same steps, and M of both."""
    together = Case(2, servers, mode, BATCH)
    in_step = together.batches_per_step if mode == "gba" else 1
    return together, Case(1, 1, "sync", BATCH), in_step


def runs(case: Case, in_step: int, data: Data, seeds: int) -> Iterator[Run]:
    settings = overrides(case, data, cores=len(os.sched_getaffinity(0)), seconds=5.0)
    names = {"topology": case.topology, "mode": case.mode, "in_step": in_step}
    for seed in range(1, seeds + 1):
        step = f"training.global_batch={in_step * BATCH}"
        yield Run("accuracy", names, seed, JOB, (*settings, step))


def measure(mode: str, arguments: argparse.Namespace, data: Data, train: TrainingRuns) -> None:
    """Train both by every seed and print the line."""
    together, alone, in_step = pair_of(mode, arguments.servers)
    of_pair = [[train(run)["auc"] for run in runs(case, in_step, data, arguments.seeds)]
               for case in (together, alone)]  # fmt: skip
    differences = [one - other for one, other in zip(*of_pair, strict=True)]
    emit(
        "auc_difference",
        mean(differences),
        "",
        target=-TARGETS[mode],
        deviation=stdev(differences) if len(differences) > 1 else None,
        differences=[round(difference, 5) for difference in differences],
        auc=mean(of_pair[0]),
        auc_sequential=mean(of_pair[1]),
        mode=mode,
        topology=together.topology,
        batches_per_step=in_step,
        rows=data.rows,
        test_rows=arguments.test_rows,
        seeds=arguments.seeds,
    )


def run(arguments: argparse.Namespace) -> None:
    if not (arguments.data / "about.json").exists():
        wanted = CriteoLike(rows=arguments.rows, test_rows=arguments.test_rows)
        print(f"generating {wanted.rows:,} rows in {arguments.data}", file=sys.stderr)
        write_criteo_like(arguments.data, wanted)
    data = find_data(arguments.data, arguments.rows)
    with tempfile.TemporaryDirectory(prefix="bench-accuracy-") as out:
        train = TrainingRuns(Path(out))
        for mode in arguments.modes.split(","):
            measure(mode, arguments, data, train)


def main(argv: list[str] | None = None) -> int:
    arguments = parse(argv)
    return finish(lambda: run(arguments))


if __name__ == "__main__":
    sys.exit(main())
