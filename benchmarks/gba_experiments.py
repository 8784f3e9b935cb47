"""Run the experiments on modes, and write their page.

    python benchmarks/gba_experiments.py --out runs/gba                   # all of them
    python benchmarks/gba_experiments.py E1 E2 --seeds 2 --out runs/gba   # some
    python benchmarks/gba_experiments.py --quick --out runs/gba-quick     # see that it runs

Appends a JSON line for every finished run to OUT/results.jsonl and leaves out what is there: start
it again and it goes on. Generates the data if they are missing. Exits 2 where it can't be run as it
was called, 1 where a run failed.
"""

import argparse
import os
import platform
import signal
import sys
from pathlib import Path

import numpy as np

from bench.runs import Experiment, Results, Run, Scale, carry_out
from bench.training_data import generated
from experiments.ablation import E5
from experiments.beginning import E8
from experiments.bounds import E4
from experiments.fleets import E6
from experiments.more_beginnings import E9
from experiments.page import Facts, page, renewed
from experiments.parity import E1
from experiments.stale import E7
from experiments.stragglers import E2
from experiments.switching import E3
from experiments.training import TrainingRuns
from scheduler import TrainingError

# Real data sets that can be given: jobs/NAME.yaml trains on them.
REAL = ("criteo", "movielens")
TEST_ROWS = 250_000
EXPERIMENTS: dict[str, Experiment] = {e.name: e for e in (E1, E2, E3, E4, E5, E6, E7, E8, E9)}


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "only", nargs="*", metavar="EXPERIMENT", help=f"some of {', '.join(EXPERIMENTS)}"
    )
    parser.add_argument("--out", type=Path, default=Path("runs/gba"), help="default: %(default)s")
    parser.add_argument("--rows", type=int, default=2_000_000, help="default: %(default)s")
    parser.add_argument("--test-rows", type=int, default=TEST_ROWS, help="default: %(default)s")
    parser.add_argument("--seeds", type=int, default=3, help="default: %(default)s")
    for name in REAL:
        parser.add_argument(
            f"--{name}", type=Path, metavar="DIR", help=f"data for jobs/{name}.yaml: train/, test/"
        )
    parser.add_argument("--quick", action="store_true", help="train little: see that it runs")
    parser.add_argument(
        "--no-runs", action="store_true", help="only write the page, from what has been run"
    )
    parser.add_argument(
        "--page", type=Path, help="write results here; sections of other experiments stay"
    )
    arguments = parser.parse_args(argv)
    unknown = sorted(set(arguments.only) - set(EXPERIMENTS))
    if unknown:
        parser.error(f"there are {', '.join(EXPERIMENTS)}, got {unknown[0]!r}")
    for name in ("rows", "test_rows", "seeds"):
        if getattr(arguments, name) < 1:
            parser.error(f"--{name.replace('_', '-')} must be >= 1, got {getattr(arguments, name)}")
    for name in REAL:
        path = getattr(arguments, name)
        if path is not None and not (path / "train").is_dir():
            parser.error(f"--{name}: {path} holds no folder train")
    return arguments


def scale_of(arguments: argparse.Namespace) -> Scale:
    """Return the scale, and make the generated data set where it is missing."""
    data = generated(arguments.rows, arguments.test_rows)
    real = {name: path for name in REAL if (path := getattr(arguments, name)) is not None}
    return Scale(
        out=arguments.out,
        data=data,
        rows=arguments.rows,
        seeds=arguments.seeds,
        real=real,
        quick=arguments.quick,
    )


def facts_of(arguments: argparse.Namespace) -> Facts:
    """Return what the page says of the command and the machine."""
    options = [f"--{name} DIR" for name in REAL if getattr(arguments, name)]
    options += [f"--rows {arguments.rows}", f"--seeds {arguments.seeds}"]
    if arguments.test_rows != TEST_ROWS:
        options.append(f"--test-rows {arguments.test_rows}")
    options += ["--quick"] if arguments.quick else []
    return Facts(
        options=" ".join([*options, "--page docs/gba-experiments.md"]),
        machine=f"Measured on {os.cpu_count()} cores ({_cpu_model()}), Python"
        f" {platform.python_version()}, NumPy {np.__version__}.",
    )


def _cpu_model() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def main(argv: list[str] | None = None) -> int:
    arguments = parse(argv)
    # Stopped from outside, it ends the actors of the run that goes on.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    chosen = [EXPERIMENTS[name] for name in arguments.only or EXPERIMENTS]
    in_order = [experiment for experiment in EXPERIMENTS.values() if experiment in chosen]
    try:
        scale = scale_of(arguments)
        results = Results(arguments.out / "results.jsonl")
        train = TrainingRuns(arguments.out)

        def write_page() -> None:
            if arguments.page is not None:
                text = page(in_order, scale, results, facts_of(arguments))
                if arguments.page.exists():
                    text = renewed(arguments.page.read_text(), text)
                arguments.page.write_text(text.rstrip("\n") + "\n")

        def after(run: Run) -> None:
            print(f"finished {run.label()}", file=sys.stderr)
            write_page()

        for experiment in [] if arguments.no_runs else chosen:
            carry_out(experiment, scale, results, train, after)
        write_page()
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except TrainingError as error:
        print(f"error: a run failed: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("stopped; start the same command again to go on", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
