"""Convert MovieLens (ml-1m or ml-latest, unpacked) to Parquet, split by time.

    python scripts/convert_movielens.py ml-1m --out data/ml-1m

Prints one JSON line.
"""

import argparse
import sys
from pathlib import Path

from ps.strict_json import json_text
from worker.convert import Layout, convert_movielens
from worker.dataset_files import DatasetError


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "input_dir", type=Path, metavar="INPUT_DIR", help="holds ratings.dat or .csv"
    )
    parser.add_argument("--out", type=Path, required=True, help="directory of the data set")
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
        rows = convert_movielens(args.input_dir, args.out, layout=layout)
    except DatasetError as error:
        print(f"convert_movielens: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"convert_movielens: cannot write {args.out}: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("convert_movielens: interrupted, nothing was written", file=sys.stderr)
        return 130
    print(json_text({"out": str(args.out), "rows": rows}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
