"""Measure an embedding variable beside the machine's own limits: one JSON line for each figure.

    python benchmarks/bench_embedding.py --rows 10_000_000
    python benchmarks/bench_embedding.py --smoke

What each line means: docs/performance.md.
"""

import argparse
import os
import platform
from collections.abc import Callable
from pathlib import Path

import numba
import numpy as np

from bench.beside_torch import FEATURES, beside_torch
from bench.figures import apply, limits, pull, threads
from bench.freezing import freeze
from bench.growing import growth, insert, memory
from bench.keys import Size
from bench.lines import emit
from bench.moving import evict, transfer
from bench.tables import Setting, compile_kernels
from embedding.table.machine_limits import physical_memory_bytes

GROUPS: dict[str, Callable[[Setting], None]] = {
    "limits": limits,
    "pull": pull,
    "apply": apply,
    "insert": insert,
    "growth": growth,
    "export": transfer,
    "freeze": freeze,
    "evict": evict,
    "threads": threads,
    "memory": memory,
    "torch": beside_torch,
}
_SMOKE = {"rows": 20_800, "batch": 2080, "repeats": 2}


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=10_000_000, help="default: %(default)s")
    parser.add_argument("--dim", type=int, default=16, help="default: %(default)s")
    parser.add_argument(
        "--batch", type=int, default=2048 * FEATURES, help="keys in a call (default: %(default)s)"
    )
    parser.add_argument("--repeats", type=int, default=5, help="default: %(default)s")
    parser.add_argument("--seed", type=int, default=7, help="default: %(default)s")
    parser.add_argument(
        "--track-usage",
        action="store_true",
        help="rows have a frequency and a version; default: as in jobs, where eviction needs them",
    )
    parser.add_argument("--only", default="", help=f"some of {','.join(GROUPS)}")
    parser.add_argument("--smoke", action="store_true", help="small sizes: see that it runs")
    arguments = parser.parse_args(argv)
    if arguments.smoke:
        parser.set_defaults(**_SMOKE)
        arguments = parser.parse_args(argv)
    arguments.only = [name for name in arguments.only.split(",") if name] or list(GROUPS)
    unknown = sorted(set(arguments.only) - set(GROUPS))
    if unknown:
        parser.error(f"--only knows {', '.join(GROUPS)}, got {unknown[0]!r}")
    for name in ("dim", "repeats"):
        if getattr(arguments, name) < 1:
            parser.error(f"--{name} must be >= 1, got {getattr(arguments, name)}")
    if arguments.batch < FEATURES:
        parser.error(f"--batch must be >= {FEATURES}, got {arguments.batch}")
    if arguments.rows < 10 * arguments.batch:
        parser.error(f"--rows must be >= 10 x --batch, got {arguments.rows}")
    return arguments


def emit_machine(size: Size) -> None:
    """Print what all figures depend on."""
    emit(
        "machine",
        None,
        "",
        cpu=_cpu_model(),
        cores=len(os.sched_getaffinity(0)),
        memory_gb=physical_memory_bytes() / 1e9,
        load=os.getloadavg()[0],
        python=platform.python_version(),
        numpy=np.__version__,
        numba=numba.__version__,
        rows=size.rows,
        dim=size.dim,
        batch=size.batch,
        seed=size.seed,
        track_usage=size.track_usage,
    )


def _cpu_model() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def main(argv: list[str] | None = None) -> int:
    arguments = parse(argv)
    size = Size(
        rows=arguments.rows,
        dim=arguments.dim,
        batch=arguments.batch,
        repeats=arguments.repeats,
        seed=arguments.seed,
        track_usage=arguments.track_usage,
    )
    emit_machine(size)
    compile_kernels(size)
    setting = Setting(size)
    for name in arguments.only:
        GROUPS[name](setting)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
