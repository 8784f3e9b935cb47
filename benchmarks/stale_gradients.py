"""What stale gradients do to a job that begins from nothing, with staleness as an input.

Prints a JSON line for each case: the AUC, its difference to the case that it is compared with, with
the same seeds, and the standard error of that, how long steps were at the end (share of the way to
the optimum in the direction that moves all logits), and Adagrad's sums of squares of dense
parameters.

    python benchmarks/stale_gradients.py --data DIR --seeds 5

DIR is a data set in Criteo's layout with folders train and test; without it one is generated.
"""

import argparse
import math
import statistics
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import threadpoolctl

from bench.stale_cases import CASES, MIXED_STEPS, Case
from bench.stale_replay import Replayed, StaleReplay
from bench.training_data import generated
from runtime.strict_json import json_text
from scheduler import ConfigError, JobConfig
from scheduler.driver.resolved import resolve
from worker.errors import DataError
from worker.step.preparing import Prepared

ROOT = Path(__file__).resolve().parents[1]


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, help="default: generated rows")
    parser.add_argument("--job", type=Path, default=ROOT / "jobs" / "gba" / "dlrm.yaml")
    parser.add_argument("--batch", type=int, default=512, help="default: %(default)s")
    parser.add_argument("--m", type=int, default=4, help="batches of a step; default: %(default)s")
    parser.add_argument("--steps", type=int, default=240, help="default: %(default)s")
    parser.add_argument("--seeds", type=int, default=3, help="default: %(default)s")
    parser.add_argument("--cases", nargs="*", help="names; default: all")
    parser.add_argument("overrides", nargs="*", help="of the job file, KEY=VALUE")
    arguments = parser.parse_intermixed_args(argv)
    for name in ("batch", "m", "steps", "seeds"):
        if getattr(arguments, name) < 1:
            parser.error(f"--{name} must be >= 1, got {getattr(arguments, name)}")
    unknown = set(arguments.cases or ()) - {case.name for case in CASES}
    if unknown:
        parser.error(f"there is no case {sorted(unknown)[0]!r}: {', '.join(c.name for c in CASES)}")
    return arguments


def config_of(
    arguments: argparse.Namespace, data: Path, seed: int, overrides: Sequence[str] = ()
) -> JobConfig:
    """Return the job of a seed: initial values and order of the samples."""
    return JobConfig.from_yaml(
        str(arguments.job),
        [
            f"data.train={data.resolve()}/train/*.parquet",
            f"data.eval={data.resolve()}/test/*.parquet",
            f"data.batch_size={arguments.batch}",
            f"training.global_batch={arguments.m * arguments.batch}",
            "cluster.servers=1",
            f"seed={seed}",
            *arguments.overrides,
            *overrides,
        ],
    )


class Replays:
    """The cases of one seed, each replayed once."""

    def __init__(self, arguments: argparse.Namespace, data: Path, seed: int) -> None:
        self._arguments, self._data, self._seed = arguments, data, seed
        self._prepared: dict[int, Prepared] = {}
        self._found: dict[str, Replayed] = {}

    def of(self, case: Case) -> Replayed:
        """Return what a case gives."""
        if case.name not in self._found:
            config = config_of(self._arguments, self._data, self._seed, case.overrides)
            specs = resolve(config)
            whole = specs.plan.batches_per_epoch * specs.plan.epochs // self._arguments.m
            whole -= whole % MIXED_STEPS if whole > MIXED_STEPS else 0
            slots = [] if case.slots == "own" else self.of(_named("sync")).slots
            steps = min(self._arguments.steps, whole)
            self._found[case.name] = StaleReplay(specs, self._prepared).run(case, steps, slots)
            if case.name != "sync":
                self._found[case.name].slots.clear()
        return self._found[case.name]


def _named(name: str) -> Case:
    return next(case for case in CASES if case.name == name)


def line_of(case: Case, replays: list[Replayed], base: list[Replayed]) -> dict[str, object]:
    """Return what is printed of a case, and of the one that it is compared with; by seed."""
    differences = [one.auc - other.auc for one, other in zip(replays, base, strict=True)]
    error = None
    if len(differences) > 1:
        error = round(statistics.stdev(differences) / math.sqrt(len(differences)), 5)
    return {
        "case": case.name,
        "seeds": len(replays),
        "auc": round(statistics.mean(one.auc for one in replays), 5),
        "compared_with": case.base,
        "difference": round(statistics.mean(differences), 5),
        "standard_error": error,
        "differences": [round(difference, 5) for difference in differences],
        "step_size": _rounded(statistics.mean(one.step_size for one in replays)),
        "dense_squares": statistics.mean(one.dense_squares for one in replays),
    }


def measure(arguments: argparse.Namespace, data: Path) -> Iterator[dict[str, object]]:
    """Replay every case with every seed; yield a line for each once its last seed is through."""
    names = arguments.cases or [case.name for case in CASES]
    cases = [case for case in CASES if case.name in names]
    found: dict[str, list[tuple[Replayed, Replayed]]] = {case.name: [] for case in cases}
    for seed in range(1, arguments.seeds + 1):
        replays = Replays(arguments, data, seed)
        for case in cases:
            found[case.name].append((replays.of(case), replays.of(_named(case.base))))
            if seed == arguments.seeds:
                both = found[case.name]
                yield line_of(case, [one for one, _ in both], [base for _, base in both])


def main(argv: list[str] | None = None) -> int:
    arguments = parse(argv)
    rows = max(100_000, arguments.steps * arguments.m * arguments.batch)
    try:
        data = arguments.data or generated(rows, 100_000)
        with threadpoolctl.threadpool_limits(1):
            for line in measure(arguments, data):
                print(json_text(line), flush=True)
    except (ConfigError, DataError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def _rounded(value: float) -> float | None:
    return None if math.isnan(value) else round(value, 2)


if __name__ == "__main__":
    sys.exit(main())
