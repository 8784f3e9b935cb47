"""Show where each CPU millisecond of a training step goes: a bar for each function and stage.

    python benchmarks/profile_step.py                       # jobs/dlrm.yaml, batch 2048, one server
    python benchmarks/profile_step.py --servers 2 --batch 512 --json

One thread does what a worker does, one thing after another, with servers in processes of their own.
Worker functions have the CPU time that was spent in themselves and in compiled code that they call;
servers have their stages. Generates the data where they are missing. Exits 2 where it can't be run
as it was called.
"""

import argparse
import cProfile
import pstats
import sys
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table
from threadpoolctl import threadpool_limits

from bench.matrix_products import ProductsBound, layers_of
from bench.one_step import OneWorker
from bench.training_data import find_data
from bench.training_jobs import Case, job_of
from runtime.process_figures import ProcessFigures
from runtime.strict_json import json_text
from scheduler.driver.resolved import JobSpecs, resolve
from worker.models import build_model

ROOT = Path(__file__).resolve().parents[1]
SERVER_STAGES = ("pull", "push", "apply", "send")
# The first steps fill tables and buffers.
WARM_UP = 5
_BAR = 40


@dataclass(frozen=True, slots=True)
class Part:
    """Milliseconds of CPU a step, by the name of who takes them."""

    role: str
    name: str
    milliseconds: float


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch", type=int, default=2048, help="samples (%(default)s)")
    parser.add_argument("--servers", type=int, default=1, help="default: %(default)s")
    parser.add_argument("--steps", type=int, default=100, help="default: %(default)s")
    parser.add_argument("--data", type=Path, default=Path("data/criteo-like"), help="%(default)s")
    parser.add_argument("--least", type=float, default=1.0, help="percent shown (%(default)s)")
    parser.add_argument("--json", action="store_true", help="one JSON object a line, no chart")
    arguments = parser.parse_args(argv)
    for name in ("batch", "servers", "steps"):
        if getattr(arguments, name) < 1:
            parser.error(f"--{name} must be >= 1, got {getattr(arguments, name)}")
    return arguments


def profile(specs: JobSpecs, steps: int) -> list[Part]:
    """Train, and return all parts of a step, the largest first."""
    with OneWorker(specs) as worker, threadpool_limits(limits=1):
        for number in range(WARM_UP):
            worker.give_back(worker.step(number))
        before = [shard.stats().process for shard in worker.shards]
        profiler = cProfile.Profile(time.thread_time)
        profiler.enable()
        for number in range(WARM_UP, WARM_UP + steps):
            worker.give_back(worker.step(number))
        profiler.disable()
        after = [shard.stats().process for shard in worker.shards]
    parts = [Part("worker", *part) for part in _own_times(profiler, steps).items()]
    for index, (begin, end) in enumerate(zip(before, after, strict=True)):
        parts += _server_parts(f"server {index}", begin, end, steps)
    return sorted(parts, key=lambda part: -part.milliseconds)


def _own_times(profiler: cProfile.Profile, steps: int) -> Counter[str]:
    times: Counter[str] = Counter()
    for (file, _, name), entry in pstats.Stats(profiler).stats.items():  # type: ignore[attr-defined]
        path = Path(file)
        module = path.relative_to(ROOT).as_posix() if path.is_relative_to(ROOT) else ""
        times[f"{module}: {name}" if module else name] += 1e3 * entry[2] / steps
    return times


def _server_parts(role: str, begin: ProcessFigures, end: ProcessFigures, steps: int) -> list[Part]:
    """Return a server's stages, and what else it used: receiving, decoding, locks.

    It has a core for itself while the worker waits, so that the stages' times by the wall are CPU
    times; where they are not, because others use the machine, the rest comes out too small.
    """
    stages = {
        stage: 1e3 * (end.stage_seconds[stage] - begin.stage_seconds[stage]) / steps
        for stage in SERVER_STAGES
    }
    cpu = 1e3 * (end.cpu_seconds - begin.cpu_seconds) / steps
    stages["receive and rest"] = max(0.0, cpu - sum(stages.values()))
    return [Part(role, name, milliseconds) for name, milliseconds in stages.items()]


def shown(parts: list[Part], least: float) -> list[Part]:
    """Return the parts of at least so many percent of all, and one that sums up the others."""
    total = sum(part.milliseconds for part in parts)
    large = [part for part in parts if 100 * part.milliseconds >= least * total]
    others = total - sum(part.milliseconds for part in large)
    return [*large, Part("", "all others", others)]


def products_milliseconds(specs: JobSpecs) -> float:
    """Return the CPU time of a step's matrix products alone."""
    layers = layers_of(build_model(specs.model).parameters)
    return ProductsBound(layers, specs.data.batch_size, cores=1, seconds=0.5).cpu_milliseconds()


def show(parts: list[Part], products: float) -> None:
    """Draw the chart."""
    total = sum(part.milliseconds for part in parts)
    table = Table("", "", "ms", "%", "", box=None)
    for part in parts:
        bar = "█" * round(_BAR * part.milliseconds / max(p.milliseconds for p in parts))
        share = f"{100 * part.milliseconds / total:.1f}"
        table.add_row(part.role, part.name, f"{part.milliseconds:.2f}", share, bar)
    console = Console(width=None if sys.stdout.isatty() else 140)
    console.print(table)
    console.print(
        f"{total:.1f} ms of CPU a step; the matrix products alone take {products:.1f} ms"
        f" ({100 * products / total:.0f} %)"
    )


def main(argv: list[str] | None = None) -> int:
    arguments = parse(argv)
    try:
        data = find_data(arguments.data, (WARM_UP + arguments.steps) * arguments.batch)
        specs = resolve(job_of(Case(1, arguments.servers, "async", arguments.batch), data))
        parts = shown(profile(specs, arguments.steps), arguments.least)
        products = products_milliseconds(specs)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    if not arguments.json:
        show(parts, products)
        return 0
    for part in [*parts, Part("", "matrix products alone, within the above", products)]:
        line = {"role": part.role, "name": part.name, "ms": round(part.milliseconds, 3)}
        print(json_text(line))
    return 0


if __name__ == "__main__":
    sys.exit(main())
