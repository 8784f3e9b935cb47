"""Measure ways to carry dense parameters and gradients in sync: one JSON line for each.

    python benchmarks/dense_exchange.py --ways servers --dense 1_000_000
    python benchmarks/dense_exchange.py --mbit 400            # root: nodes with slow links
    python benchmarks/dense_exchange.py --quick               # small: see that it runs

Servers are real, workers make up their gradients. All ways but `servers` take torch. What each
line means: docs/performance.md.
"""

import argparse
import os
import sys
from contextlib import ExitStack, closing
from statistics import median

from bench.command_line import finish, some_of
from bench.dense_fleet import RunningFleet, places_of
from bench.dense_ways import WAYS, Fleet
from bench.lines import MEGA, emit
from bench.nodes import Nodes

_QUICK = {"dense": 5000, "steps": 2, "workers": 2, "servers": ("1", "2"), "batches": 4}
_SERVERS = tuple(str(count) for count in range(1, 65))


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--ways", type=some_of(WAYS), default=WAYS, help=",".join(WAYS))
    parser.add_argument("--workers", type=int, default=4, help="(%(default)s)")
    parser.add_argument(
        "--servers", type=some_of(_SERVERS), default=("1", "2", "4"), help="one after another"
    )
    parser.add_argument("--beside", action="store_true", help="servers are on workers' nodes")
    parser.add_argument("--batches", type=int, default=4, help="of a step (%(default)s)")
    parser.add_argument("--dense", type=int, default=10_000_000, help="parameters (%(default)s)")
    parser.add_argument("--steps", type=int, default=5, help="measured (%(default)s)")
    parser.add_argument("--mbit", type=int, help="of each node's link, each way; takes root")
    parser.add_argument("--quick", action="store_true", help="small sizes: see that it runs")
    arguments = parser.parse_args(argv)
    if arguments.quick:
        parser.set_defaults(**_QUICK)
        arguments = parser.parse_args(argv)
    for name in ("workers", "batches", "dense", "steps", "mbit"):
        value = getattr(arguments, name)
        if value is not None and value < 1:
            parser.error(f"--{name} must be >= 1, got {value}")
    if arguments.batches % arguments.workers:
        parser.error("--batches must be a multiple of --workers")
    if arguments.beside and max(map(int, arguments.servers)) > arguments.workers:
        parser.error("--beside takes no more --servers than --workers")
    return arguments


def measure(fleet: Fleet, arguments: argparse.Namespace) -> None:
    """Run one fleet and print its line."""
    count = fleet.workers + (0 if arguments.beside else fleet.servers)
    with ExitStack() as stack:
        nodes = None
        if arguments.mbit is not None:
            nodes = stack.enter_context(Nodes(count, arguments.mbit))
        places = places_of(nodes, count)
        servers = places[: fleet.servers] if arguments.beside else places[fleet.workers :]
        running = stack.enter_context(
            closing(RunningFleet(fleet, places[: fleet.workers], servers))
        )
        running.run(1, first=0)
        before = [] if nodes is None else [nodes.bytes_of(node) for node in range(count)]
        cpu = running.cpu_seconds()
        seconds = running.run(arguments.steps, first=1)
        cpu = running.cpu_seconds() - cpu
        after = [] if nodes is None else [nodes.bytes_of(node) for node in range(count)]
        (digest,) = running.digests(arguments.steps + 1)
    mb = [
        tuple((now - then) / MEGA / arguments.steps for now, then in zip(*pair, strict=True))
        for pair in zip(after, before, strict=True)
    ]
    worker_nodes, server_nodes = mb[: fleet.workers], mb[fleet.workers :]
    emit(
        "dense_step",
        1000 * median(seconds),
        "ms",
        way=fleet.way,
        workers=fleet.workers,
        servers=fleet.servers,
        beside=arguments.beside,
        batches=fleet.batches,
        dense=fleet.dense,
        mbit=arguments.mbit,
        min=1000 * min(seconds),
        max=1000 * max(seconds),
        cpu_ms=1000 * cpu / arguments.steps,
        worker_node_mb=_most(worker_nodes),
        server_node_mb=_most(server_nodes),
        digest=digest,
    )


def _most(nodes: list[tuple[float, ...]]) -> list[float] | None:
    """Return what the busiest node received, and what the busiest sent, in MB of a step."""
    return [round(max(figures), 1) for figures in zip(*nodes, strict=True)] if nodes else None


def run(arguments: argparse.Namespace) -> None:
    emit(
        "machine",
        None,
        "",
        cores=len(os.sched_getaffinity(0)),
        load=os.getloadavg()[0],
        steps=arguments.steps,
    )
    for servers in arguments.servers:
        for way in arguments.ways:
            fleet = Fleet(
                way=way,
                workers=arguments.workers,
                servers=int(servers),
                batches=arguments.batches,
                dense=arguments.dense,
            )
            measure(fleet, arguments)


def main(argv: list[str] | None = None) -> int:
    arguments = parse(argv)
    return finish(lambda: run(arguments))


if __name__ == "__main__":
    sys.exit(main())
