"""Measure libraries that answer HTTP, each with a fixed answer, in turns: a JSON line each.

    python benchmarks/server_libraries.py

Ours, and those of granian, uvicorn and aiohttp that are installed. The value is how many requests a
second one process answers, `cpu_microseconds` what each takes of it: docs/performance.md.
"""

import argparse
import importlib.util
import sys
from collections import defaultdict
from statistics import median

import psutil

from bench.command_line import finish, some_of
from bench.fixed_answers import LIBRARIES
from bench.http_load import http_request, run_load
from bench.lines import emit
from bench.serving_processes import fixed_server

BODIES = {"1 sample": 26 * 8 + 13 * 4, "64 samples": 64 * (26 * 8 + 13 * 4)}
CLIENTS = (1, 8)


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=2.0, help="of each (%(default)s)")
    parser.add_argument("--repeats", type=int, default=3, help="turns (%(default)s)")
    parser.add_argument(
        "--libraries",
        type=some_of(LIBRARIES),
        default=LIBRARIES,
        help="names with commas between them (default: all)",
    )
    arguments = parser.parse_args(argv)
    if arguments.seconds <= 0 or arguments.repeats < 1:
        parser.error("--seconds must be > 0, --repeats >= 1")
    return arguments


def main(argv: list[str] | None = None) -> int:
    arguments = parse(argv)
    return finish(lambda: run(arguments))


def run(arguments: argparse.Namespace) -> None:
    found = [
        name
        for name in arguments.libraries
        if name == "ours" or importlib.util.find_spec(name) is not None
    ]
    cases = [(size, clients) for size in BODIES for clients in CLIENTS]
    seen: dict[tuple[str, str, int], list[tuple[float, float, float]]] = defaultdict(list)
    for _ in range(arguments.repeats):
        for name in found:
            with fixed_server(name) as (port, process):
                for size, clients in cases:
                    seen[name, size, clients].append(
                        _asked(port, process, BODIES[size], clients, arguments.seconds)
                    )
    for (name, size, clients), figures in seen.items():
        rate, cost, p99 = (median(each) for each in zip(*figures, strict=True))
        emit(
            "server_library",
            rate,
            "1/s",
            library=name,
            request=size,
            clients=clients,
            cpu_microseconds=cost,
            p99_ms=p99,
        )


def _asked(
    port: int, process: psutil.Process, num_bytes: int, clients: int, seconds: float
) -> tuple[float, float, float]:
    """Return requests a second, microseconds of CPU of each, and the p99 in milliseconds."""
    request = http_request("/", bytes(num_bytes))
    run_load(port, request, clients=clients, seconds=0.1)
    before = sum(process.cpu_times()[:2])
    load = run_load(port, request, clients=clients, seconds=seconds)
    used = sum(process.cpu_times()[:2]) - before
    return load.rate, 1e6 * used / len(load.milliseconds), load.p99


if __name__ == "__main__":
    sys.exit(main())
