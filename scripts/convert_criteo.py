"""Convert Criteo's tab-separated files (Kaggle train.txt, 1 TB day_N[.gz]) to Parquet.

    python scripts/convert_criteo.py train.txt --out data/criteo

Prints one JSON line.
"""

import argparse
import sys
from pathlib import Path

from ps.strict_json import json_text
from worker.convert import Layout, convert_criteo
from worker.dataset_files import DatasetError


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("inputs", nargs="+", type=Path, metavar="INPUT", help="read in this order")
    parser.add_argument("--out", type=Path, required=True, help="directory of the data set")
    split = parser.add_mutually_exclusive_group()
    split.add_argument(
        "--test-fraction", type=float, default=0.1, help="last rows, default: %(default)s"
    )
    split.add_argument(
        "--no-split", dest="test_fraction", action="store_const", const=None, help="all to train/"
    )
    layout = Layout()
    parser.add_argument("--row-group-rows", type=int, default=layout.row_group_rows)
    parser.add_argument("--rows-per-file", type=int, default=layout.rows_per_file)
    parser.add_argument("--overwrite", action="store_true", help="replace a data set in --out")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    args = parse(argv)
    try:
        layout = Layout(
            row_group_rows=args.row_group_rows,
            rows_per_file=args.rows_per_file,
            overwrite=args.overwrite,
        )
        rows = convert_criteo(
            args.inputs, args.out, test_fraction=args.test_fraction, layout=layout
        )
    except DatasetError as error:
        print(f"convert_criteo: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"convert_criteo: cannot write {args.out}: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("convert_criteo: interrupted, nothing was written", file=sys.stderr)
        return 130
    print(json_text({"out": str(args.out), "rows": rows}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
