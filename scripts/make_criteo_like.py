"""Write Criteo-like samples from a planted model, with the best possible AUC beside them.

    python scripts/make_criteo_like.py --rows 1000000 --out data/criteo-like

Prints one JSON line. The rows depend on --seed alone; see worker/planted.py for the model.
"""

import argparse
import sys
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn

from ps.strict_json import json_text
from worker.dataset_files import DatasetError
from worker.synthetic import CriteoLike, write_criteo_like


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, required=True, help="train rows")
    parser.add_argument("--test-rows", type=int, help="default: a tenth of the train rows")
    parser.add_argument("--files", type=int, default=8, help="train files (default: %(default)s)")
    parser.add_argument("--out", type=Path, required=True, help="directory of the data set")
    parser.add_argument("--seed", type=int, default=7, help="default: %(default)s")
    parser.add_argument("--row-group-rows", type=int, default=1 << 16, help="default: %(default)s")
    parser.add_argument("--overwrite", action="store_true", help="replace a data set in --out")
    return parser.parse_args(argv)


def write(args: argparse.Namespace) -> None:
    wanted = CriteoLike(
        rows=args.rows,
        test_rows=args.test_rows,
        files=args.files,
        seed=args.seed,
        row_group_rows=args.row_group_rows,
    )
    console = Console(stderr=True)
    columns = (BarColumn(), MofNCompleteColumn(), "rows", TimeRemainingColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        task = progress.add_task("rows", total=wanted.all_rows)
        about = write_criteo_like(
            args.out,
            wanted,
            overwrite=args.overwrite,
            on_rows=lambda rows: progress.advance(task, rows),
        )
    names = ("rows", "test_rows", "seed", "base_rate", "best_auc", "best_logloss")
    print(json_text({"out": str(args.out), **{name: about[name] for name in names}}))


def main(argv: list[str] | None = None) -> int:
    args = parse(argv)
    try:
        write(args)
    except DatasetError as error:
        print(f"make_criteo_like: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"make_criteo_like: cannot write {args.out}: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("make_criteo_like: interrupted, nothing was written", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
