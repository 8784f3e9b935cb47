"""What stale gradients do to a job that begins from nothing, with staleness as an input.

Prints a JSON line for each case: the AUC, its difference to the first case with the same seeds and
the standard error of that, how long steps were at the end (share of the way to the optimum in the
direction that moves all logits), and Adagrad's sums of squares of dense parameters.

    python benchmarks/stale_gradients.py --data DIR --seeds 5

DIR is a data set in Criteo's layout with folders train and test; without it one is generated.
"""

import argparse
import math
import statistics
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import threadpoolctl

from bench.stale_replay import Replayed, Staleness, StaleReplay
from runtime.strict_json import json_text
from scheduler import ConfigError, JobConfig
from scheduler.driver.resolved import resolve
from worker.datasets.synthetic import CriteoLike, write_criteo_like
from worker.errors import DataError
from worker.step.preparing import Prepared

ROOT = Path(__file__).resolve().parents[1]


def _fresh(step: int, batch: int) -> int:
    return 0


def _all(steps: int) -> Staleness:
    return lambda step, batch: steps


def _share(share: float) -> Staleness:
    late = np.random.default_rng(7).random((1 << 12, 64)) < share
    return lambda step, batch: int(late[step % len(late), batch % 64])


def _first(steps: int) -> Staleness:
    return lambda step, batch: int(step < steps)


def _after(steps: int) -> Staleness:
    return lambda step, batch: int(step >= steps)


@dataclass(frozen=True, slots=True)
class Case:
    """How stale rows and dense parameters are."""

    name: str
    rows: Staleness
    dense: Staleness


def _both(name: str, staleness: Staleness) -> Case:
    return Case(name, staleness, staleness)


CASES = (
    _both("sync", _fresh),
    _both("all one step", _all(1)),
    _both("all two steps", _all(2)),
    Case("rows one step", _all(1), _fresh),
    Case("dense one step", _fresh, _all(1)),
    _both("a quarter of the batches one step", _share(0.25)),
    _both("half of the batches one step", _share(0.5)),
    _both("three quarters of the batches one step", _share(0.75)),
    _both("one step in the first 20 steps", _first(20)),
    _both("one step after 20 steps", _after(20)),
    _both("one step after 120 steps", _after(120)),
)


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


def config_of(arguments: argparse.Namespace, data: Path, seed: int) -> JobConfig:
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
        ],
    )


def generated(rows: int) -> Path:
    """Return a generated data set with at least so many rows to train."""
    data = Path("data") / f"criteo-like-{rows}-100000"
    if not (data / "about.json").exists():
        print(f"generating {rows:,} rows in {data}", file=sys.stderr)
        write_criteo_like(data, CriteoLike(rows=rows, test_rows=100_000))
    return data


def measure(
    arguments: argparse.Namespace, data: Path, tell: Callable[[str, list[Replayed]], None]
) -> None:
    """Replay every case with every seed; a case is told once all its seeds are through."""
    cases = [case for case in CASES if case.name in (arguments.cases or [c.name for c in CASES])]
    found: dict[str, list[Replayed]] = {case.name: [] for case in cases}
    for seed in range(1, arguments.seeds + 1):
        prepared: dict[int, Prepared] = {}
        specs = resolve(config_of(arguments, data, seed))
        whole = specs.plan.batches_per_epoch * specs.plan.epochs // arguments.m
        for case in cases:
            replay = StaleReplay(specs, prepared)
            steps = min(arguments.steps, whole)
            found[case.name].append(replay.run(steps, rows=case.rows, dense=case.dense))
            if seed == arguments.seeds:
                tell(case.name, found[case.name])


def main(argv: list[str] | None = None) -> int:
    arguments = parse(argv)
    rows = max(100_000, arguments.steps * arguments.m * arguments.batch)
    first: list[Replayed] = []

    def tell(name: str, replays: list[Replayed]) -> None:
        first[:] = first or replays
        differences = [one.auc - base.auc for one, base in zip(replays, first, strict=True)]
        error = math.nan
        if len(differences) > 1:
            error = statistics.stdev(differences) / math.sqrt(len(differences))
        line = {
            "case": name,
            "seeds": len(replays),
            "auc": round(statistics.mean(one.auc for one in replays), 5),
            "to_first": round(statistics.mean(differences), 5),
            "standard_error": None if math.isnan(error) else round(error, 5),
            "step_size": _rounded(statistics.mean(one.step_size for one in replays)),
            "dense_squares": statistics.mean(one.dense_squares for one in replays),
        }
        print(json_text(line), flush=True)

    try:
        data = arguments.data or generated(rows)
        with threadpoolctl.threadpool_limits(1):
            measure(arguments, data, tell)
    except (ConfigError, DataError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def _rounded(value: float) -> float | None:
    return None if math.isnan(value) else round(value, 2)


if __name__ == "__main__":
    sys.exit(main())
