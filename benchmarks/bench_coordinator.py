"""Measure the coordinator under simulated fleets: one JSON line for each, or a page's section.

python benchmarks/bench_coordinator.py
python benchmarks/bench_coordinator.py --workers 16 256 --markdown
"""

import argparse
import sys

from bench.fleets import CASES, measure, section
from runtime.strict_json import json_text


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    sizes = sorted({case["workers"] for case in CASES})
    parser.add_argument(
        "--workers", type=int, nargs="+", choices=sizes, default=sizes, help="default: all"
    )
    parser.add_argument("--markdown", action="store_true", help="tables at the end, no JSON lines")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    arguments = parse(argv)
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
