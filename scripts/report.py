"""Show a run as a page: python scripts/report.py RUN_DIR [--out report.html]

Writes one HTML file with charts, figures, tables and the job file; it needs no network to be looked
at. Works on jobs that run or failed too. Needs the extra `report` (Bokeh). Exits 2 where the
directory is not a run's, 1 where the page can't be written.
"""

import argparse
import sys
from pathlib import Path

from ps.durable import write_text
from scheduler import RunDirectoryError


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Write a page that shows a run.")
    parser.add_argument("run", type=Path, metavar="RUN_DIR")
    parser.add_argument(
        "--out", type=Path, metavar="FILE", help="the page (default: RUN_DIR/report.html)"
    )
    args = parser.parse_args(argv)
    try:
        from scheduler.report.page import page_of
        from scheduler.report.reading import read_run
    except ModuleNotFoundError as error:
        if error.name is None or error.name.split(".")[0] != "bokeh":
            raise
        print("error: charts need Bokeh: pip install 'synchromesh[report]'", file=sys.stderr)
        return 2
    out: Path = args.out or args.run / "report.html"
    try:
        page = page_of(read_run(args.run))
    except (RunDirectoryError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    try:
        write_text(out, page)
    except OSError as error:
        print(f"error: {out} can't be written: {error.strerror or error}", file=sys.stderr)
        return 1
    print(out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
