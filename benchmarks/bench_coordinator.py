"""Measure the coordinator: one JSON line for each case, or a page's section.

python benchmarks/bench_coordinator.py
python benchmarks/bench_coordinator.py --workers 16 256 --markdown
python benchmarks/bench_coordinator.py --sockets --workers 64 1024 --relays 0 2
python benchmarks/bench_coordinator.py --sockets --workers 1024 4096 --relays 8 --bundle 32

Simulated fleets on a virtual clock, whose coordinator handles one report after the other; or, with
--sockets, a coordinator in a process of its own, to which workers report over sockets as fast as
they are answered, by so many relays (or, with --bundle, as relays would). There the CPU time that a
batch takes is what counts, as the workers take cores of this machine, too.
"""

import argparse
import sys

from bench.coordinator_load import measure_load
from bench.fleets import CASES, measure, section
from runtime.strict_json import json_text

SIZES = sorted({case["workers"] for case in CASES})
MODES = ("gba", "sync", "async")


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--workers", type=int, nargs="+", choices=SIZES, default=SIZES, help="default: all"
    )
    parser.add_argument("--markdown", action="store_true", help="tables at the end, no JSON lines")
    parser.add_argument("--sockets", action="store_true", help="over sockets instead")
    parser.add_argument(
        "--relays", type=int, nargs="+", default=[0, 2], help="with --sockets; default: 0 2"
    )
    parser.add_argument(
        "--bundle", type=int, help="with --sockets, play the relays, with so many reports a bundle"
    )
    parser.add_argument("--modes", nargs="+", choices=MODES, default=MODES, help="with --sockets")
    parser.add_argument(
        "--seconds", type=float, default=4.0, help="with --sockets, of each case; default: 4"
    )
    arguments = parser.parse_args(argv)
    if arguments.bundle is not None and min(arguments.relays, default=0) < 1:
        parser.error("--bundle takes --relays from 1")
    if min(arguments.relays) < 0 or arguments.seconds <= 0:
        parser.error("--relays takes numbers from 0, --seconds one above 0")
    if arguments.sockets and arguments.markdown:
        parser.error("--markdown is a page of simulated fleets: leave out --sockets")
    return arguments


def main(argv: list[str] | None = None) -> int:
    arguments = parse(argv)
    if arguments.sockets:
        for workers in arguments.workers:
            for mode in arguments.modes:
                for relays in arguments.relays:
                    row = measure_load(
                        mode,
                        workers=workers,
                        relays=relays,
                        seconds=arguments.seconds,
                        bundle=arguments.bundle,
                    )
                    print(json_text(row), flush=True)
        return 0
    rows = []
    for case in [case for case in CASES if case["workers"] in arguments.workers]:
        rows.append(measure(case))
        if not arguments.markdown:
            print(json_text(rows[-1]), flush=True)
    if arguments.markdown:
        print("\n".join(section(rows)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
