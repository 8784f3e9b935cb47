"""Generated data sets of benchmarks, and how fast their files can be decoded."""

import json
import sys
from collections.abc import Callable
from pathlib import Path

import pyarrow.parquet as pq

from bench.training_jobs import Data
from scheduler.driver.resolved import JobSpecs
from worker.datasets.synthetic import CriteoLike, write_criteo_like

# So that a data set made for a small measurement serves others too; `make data` makes as many.
LEAST_ROWS = 1_000_000


class DataTooSmallError(ValueError):
    """The data set has fewer train rows than are wanted."""


def generated(rows: int, test_rows: int) -> Path:
    """Return the data set of so many rows, which is generated where there is none."""
    data = Path("data") / f"criteo-like-{rows}-{test_rows}"
    if not (data / "about.json").exists():
        print(f"generating {rows:,} rows in {data}", file=sys.stderr)
        write_criteo_like(data, CriteoLike(rows=rows, test_rows=test_rows))
    return data


def find_data(directory: Path, rows: int) -> Data:
    """Return the data set, which is generated where there is none.

    Raises:
        DataTooSmallError: there is one with fewer rows.
        OSError: it can't be read or written.
    """
    about = directory / "about.json"
    if not about.exists():
        made = max(rows, LEAST_ROWS)
        print(f"generating {made:,} rows in {directory}", file=sys.stderr)
        write_criteo_like(directory, CriteoLike(rows=made))
    found = json.loads(about.read_text())["rows"]
    if found < rows:
        raise DataTooSmallError(
            f"--data {directory} has {found} train rows, --rows is {rows}. Give a --data that does"
            " not exist yet, and it is generated there"
        )
    return Data(directory, rows)


def decoding(specs: JobSpecs, rows: int) -> tuple[Callable[[], None], int]:
    """Return a run that decodes a job's columns on one thread, and how many rows it decodes.

    Whole row groups, from the first on, until there are so many rows or the files end.
    """
    columns = specs.data.features.columns()
    groups: list[tuple[str, int]] = []
    total = 0
    for file in specs.plan.files:
        for number, size in enumerate(file.row_group_rows):
            if total < rows:
                groups.append((file.path, number))
                total += size

    def decode() -> None:
        for path, number in groups:
            with pq.ParquetFile(path) as parquet:
                parquet.read_row_group(number, columns=columns, use_threads=False)

    return decode, total
