"""Fuzz from the command line: each kind in a process of its own, so that a crash is seen too.

python -m fuzzing                        a million inputs of all kinds
python -m fuzzing job-files -n 100000    of one kind
python -m fuzzing --checkpoint runs/x/checkpoints/full-000000000123 -n 10000
"""

import argparse
import sys
import tempfile
from pathlib import Path

from fuzzing.kinds import SHARES, checkpoint_kinds
from fuzzing.processes import run_apart


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("kinds", nargs="*", metavar="KIND", help=f"one of {', '.join(SHARES)}")
    parser.add_argument("-n", "--inputs", type=int, default=1_000_000, help="of all kinds together")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--seconds", type=float, help="most for each kind")
    parser.add_argument("--checkpoint", type=Path, help="damage copies of this one")
    options = parser.parse_args()
    if unknown := set(options.kinds) - set(SHARES):
        parser.error(f"no such kind: {', '.join(sorted(unknown))}; known: {', '.join(SHARES)}")
    kinds = options.kinds or (checkpoint_kinds() if options.checkpoint else list(SHARES))
    of_all = sum(SHARES[kind] for kind in kinds)
    failed = False
    for kind in kinds:
        with tempfile.TemporaryDirectory(prefix="fuzzing-") as work:
            outcome = run_apart(
                kind,
                seed=options.seed,
                inputs=round(options.inputs * SHARES[kind] / of_all),
                seconds=options.seconds,
                checkpoint=options.checkpoint,
                work=Path(work),
            )
        ends = ", ".join(f"{name} {n:,}" for name, n in outcome.ends.most_common())
        print(f"{kind}: {outcome.inputs:,} inputs in {outcome.seconds:.0f} s: {ends}", flush=True)
        for fault in outcome.faults.values():
            failed = True
            print(f"    seed {fault.seed} number {fault.number}: {fault.what}: {fault.where}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
