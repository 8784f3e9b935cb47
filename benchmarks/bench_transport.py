"""Measure the data plane by itself, transport beside transport: one JSON line for each figure.

    python benchmarks/bench_transport.py
    python benchmarks/bench_transport.py --only unix,shared_memory --batches 2048
    python benchmarks/bench_transport.py --quick                       # small: see that it runs

One worker process and one server process exchange what a real job exchanges for a batch. Generates
the data where they are missing. Exits 2 where it can't be run as it was called. What each line
means: docs/performance.md.
"""

import argparse
import os
import platform
import sys
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from importlib.metadata import version
from pathlib import Path
from statistics import median

import numpy as np

from bench.command_line import finish, some_of
from bench.exchanges import Exchange
from bench.lines import emit
from bench.transport_turns import TRANSPORTS, Turn, take_turn
from bench.wire_encodings import encodings

BATCHES = ("512", "2048", "8192")
PARTS = (*TRANSPORTS, "encodings")
# The batch of which --step-ms is the time.
STEP_BATCH = 2048
_QUICK = {"batches": ("512",), "rounds": 3, "repeats": 1, "steps": 3}


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batches", type=some_of(BATCHES), default=BATCHES, help=",".join(BATCHES))
    parser.add_argument("--only", type=some_of(PARTS), default=PARTS, help=",".join(PARTS))
    parser.add_argument("--rounds", type=int, default=100, help="in a turn (%(default)s)")
    parser.add_argument("--repeats", type=int, default=5, help="turns (%(default)s)")
    parser.add_argument(
        "--steps", type=int, default=8, help="batches the typical one is of (%(default)s)"
    )
    parser.add_argument("--keys", type=int, help="instead of those of the typical batch")
    parser.add_argument("--dense", type=int, help="dense parameters instead of the model's")
    parser.add_argument(
        "--step-ms",
        type=float,
        default=60.0,
        help=f"a worker's time for {STEP_BATCH} samples (%(default)s)",
    )
    parser.add_argument("--data", type=Path, default=Path("data/criteo-like"), help="%(default)s")
    parser.add_argument("--quick", action="store_true", help="small sizes: see that it runs")
    arguments = parser.parse_args(argv)
    if arguments.quick:
        parser.set_defaults(**_QUICK)
        arguments = parser.parse_args(argv)
    for name in ("rounds", "repeats", "steps", "keys", "dense"):
        value = getattr(arguments, name)
        if value is not None and value < 1:
            parser.error(f"--{name} must be >= 1, got {value}")
    if not 0 < arguments.step_ms < float("inf"):
        parser.error(f"--step-ms must be > 0, got {arguments.step_ms}")
    return arguments


def emit_machine(arguments: argparse.Namespace) -> None:
    """Print what all figures depend on."""
    emit(
        "machine",
        None,
        "",
        cores=len(os.sched_getaffinity(0)),
        load=os.getloadavg()[0],
        python=platform.python_version(),
        numpy=np.__version__,
        pyarrow=version("pyarrow"),
        ray=version("ray"),
        rounds=arguments.rounds,
        repeats=arguments.repeats,
    )


def emit_exchange(exchange: Exchange) -> None:
    """Print what is exchanged for a batch."""
    pull, pull_reply, push = exchange.bytes_of_messages
    emit(
        "exchange",
        pull + pull_reply + push,
        "bytes",
        batch=exchange.batch,
        keys=exchange.keys.size,
        dense=exchange.dense.size,
        pull_bytes=pull,
        pull_reply_bytes=pull_reply,
        push_bytes=push,
    )


@contextmanager
def ray_cluster() -> Iterator[None]:
    """A Ray as jobs start it, for as long as it is needed."""
    import ray

    from scheduler.driver.launch import start_ray
    from scheduler.job.config import ClusterConfig

    start_ray(ClusterConfig(), namespace="bench-transport")
    try:
        yield
    finally:
        ray.shutdown()


def measure(exchange: Exchange, arguments: argparse.Namespace) -> None:
    """Let the transports take turns, and print a line for each."""
    names = [name for name in TRANSPORTS if name in arguments.only]
    turns: dict[str, list[Turn]] = {name: [] for name in names}
    with ExitStack() as stack:
        opened = {name: stack.enter_context(closing(TRANSPORTS[name](exchange))) for name in names}
        for _ in range(arguments.repeats):
            for name, transport in opened.items():
                turns[name].append(take_turn(transport, arguments.rounds))
    step_ms = arguments.step_ms * exchange.batch / STEP_BATCH
    for name in names:
        emit_transport(name, turns[name], exchange, step_ms)


def emit_transport(name: str, turns: list[Turn], exchange: Exchange, step_ms: float) -> None:
    """Print a transport's line: medians of its turns."""
    medians = [turn.median_ms for turn in turns]
    value = median(medians)
    emit(
        "transport",
        value,
        "ms",
        transport=name,
        batch=exchange.batch,
        min=min(medians),
        max=max(medians),
        repeats=len(turns),
        p95=median(turn.p95_ms for turn in turns),
        client_cpu_ms=median(turn.client_cpu_ms for turn in turns),
        server_cpu_ms=median(turn.server_cpu_ms for turn in turns),
        machine_cpu_ms=median(turn.machine_cpu_ms for turn in turns),
        empty_call_ms=median(turn.empty_call_ms for turn in turns),
        bytes=sum(exchange.bytes_of_messages),
        share_of_step=value / step_ms,
    )


def run(arguments: argparse.Namespace) -> None:
    # It loads Ray; a server process loads this file too, and does without.
    from bench.typical_exchange import typical_exchange

    emit_machine(arguments)
    with ray_cluster() if "ray_call" in arguments.only else ExitStack():
        for batch in dict.fromkeys(arguments.batches):
            measured = typical_exchange(arguments.data, int(batch), arguments.steps)
            exchange = measured.resized(keys=arguments.keys, dense=arguments.dense)
            emit_exchange(exchange)
            measure(exchange, arguments)
            if "encodings" in arguments.only:
                encodings(measured, arguments.repeats)


def main(argv: list[str] | None = None) -> int:
    arguments = parse(argv)
    return finish(lambda: run(arguments))


if __name__ == "__main__":
    sys.exit(main())
