"""Measure how the cost of a sample grows with the size of a job: one JSON line a point.

    python benchmarks/bench_growth.py                       # all curves
    python benchmarks/bench_growth.py --only rows,shards    # some of them
    python benchmarks/bench_growth.py --quick               # small: see that it runs

One axis is changed at a time. Workers and servers are processes of their own, without Ray; batches
are drawn in memory, and the model only adds up what it reads: what is measured is the sparse path.
Exits 2 where it can't be run as it was called, 1 where a process failed. What each line means:
docs/performance.md.
"""

import argparse
import os
import sys
from dataclasses import asdict, dataclass, replace
from statistics import median

from bench.command_line import some_of
from bench.growth_fleet import Cost, Fleet
from bench.growth_job import Point
from bench.lines import emit

MILLION = 1_000_000


@dataclass(frozen=True, slots=True)
class Axis:
    """A field of `Point`, the values that it takes, and what all its points have in common."""

    field: str
    values: tuple[int, ...]
    base: Point


BASE = Point()
AXES = (
    Axis("rows", (1 * MILLION, 10 * MILLION, 50 * MILLION), BASE),
    # Every table has at least one key of a sample, so all points have as many as the last needs.
    Axis("tables", (26, 100, 400), replace(BASE, keys=400)),
    Axis("dim", (8, 16, 32, 64, 128), BASE),
    Axis("keys", (26, 100, 300, 1000), BASE),
    Axis("shards", (1, 2, 4, 8), BASE),
    Axis("workers", (1, 2, 4, 8), BASE),
)
_QUICK = {"rows": 20_000, "batch": 128}


def parse(argv: list[str] | None) -> argparse.Namespace:
    names = tuple(axis.field for axis in AXES)
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", type=some_of(names), default=names, help=",".join(names))
    parser.add_argument("--repeats", type=int, default=3, help="default: %(default)s")
    parser.add_argument("--seconds", type=float, default=2.0, help="of a repeat (%(default)s)")
    parser.add_argument("--quick", action="store_true", help="small sizes: see that it runs")
    arguments = parser.parse_args(argv)
    if arguments.quick:
        parser.set_defaults(repeats=1, seconds=0.1)
        arguments = parser.parse_args(argv)
    for name in ("repeats", "seconds"):
        if not getattr(arguments, name) > 0:
            parser.error(f"--{name} must be > 0, got {getattr(arguments, name)}")
    return arguments


def points_of(axis: Axis, *, quick: bool) -> list[Point]:
    """Return the points of a curve; the small ones are the first two, of small tables."""
    if not quick:
        return [replace(axis.base, **{axis.field: value}) for value in axis.values]
    small = replace(axis.base, **_QUICK)
    values = (20_000, 200_000) if axis.field == "rows" else axis.values[:2]
    return [replace(small, **{axis.field: value}) for value in values]


def growth(before: float, after: float, ratio: float) -> float:
    """Return how much the cost grew, over how much the axis did: 1 in proportion, below 1 less."""
    return after / before / ratio


def measure(point: Point, *, repeats: int, seconds: float) -> tuple[list[Cost], float, float]:
    """Return what repeats cost, bytes of tables a row, and the most MB that a server had."""
    with Fleet(point) as fleet:
        fleet.train(seconds=seconds / 2)  # buffers grow to their size, kernels are loaded
        costs = [fleet.train(seconds=seconds) for _ in range(repeats)]
        servers = fleet.stats()
    tables = [table for server in servers for table in server.tables.values()]
    rows = sum(table.rows for table in tables)
    peak = max(server.process.peak_rss_bytes for server in servers)
    return costs, sum(table.bytes for table in tables) / rows, peak / 1e6


def curve(axis: Axis, arguments: argparse.Namespace) -> None:
    """Print every point of a curve, and the worst growth between two of them."""
    totals: list[float] = []
    growths: list[float] = []
    points = points_of(axis, quick=arguments.quick)
    values = [getattr(point, axis.field) for point in points]
    for number, point in enumerate(points):
        costs, bytes_per_row, peak = measure(
            point, repeats=arguments.repeats, seconds=arguments.seconds
        )
        sums = [cost.worker + cost.server for cost in costs]
        totals.append(median(sums))
        if number:
            ratio = values[number] / values[number - 1]
            growths.append(growth(totals[-2], totals[-1], ratio))
        emit(
            "cost",
            totals[-1],
            "us/sample",
            axis=axis.field,
            at=values[number],
            growth=growths[-1] if number else None,
            min=min(sums),
            max=max(sums),
            repeats=len(costs),
            cpu_us_per_sample={
                "worker": median(cost.worker for cost in costs),
                "server": median(cost.server for cost in costs),
            },
            wall_us_per_sample=median(cost.wall for cost in costs),
            bytes_per_row=bytes_per_row,
            server_peak_mb=peak,
            point=asdict(point),
        )
    emit("growth", max(growths), "worst", axis=axis.field, target=1.0, at_most=True)


def main(argv: list[str] | None = None) -> int:
    arguments = parse(argv)
    cores, load = len(os.sched_getaffinity(0)), os.getloadavg()[0]
    emit("machine", None, "", cores=cores, load=load, model="linear")
    try:
        for axis in AXES:
            if axis.field in arguments.only:
                curve(axis, arguments)
    except (RuntimeError, OSError, EOFError) as error:
        print(f"error: {error or 'a process ended; see above'}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
