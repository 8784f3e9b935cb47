"""Rows of arriving files that can't be used: found before they are planned, and kept aside."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from worker.data.columns import columns_from_table
from worker.data.deleted_rows import pack, rows_kept, without
from worker.data.footers import open_source
from worker.data.open_file import open_file
from worker.data.plan import FilePlan
from worker.data.quarantine import keep_table
from worker.errors import DataError, UnreadableError
from worker.spec import FeatureSpec

MOST_REFUSED = 1000
"""A file with more bad rows than these is refused as a whole."""


def refused_rows(file: FilePlan, features: FeatureSpec) -> dict[int, str]:
    """Return the rows of a file that training would refuse, by position in the file, and why.

    Raises:
        DataError: it can't be read, or has more than `MOST_REFUSED` of them.
    """
    found: dict[int, str] = {}
    names = features.columns()
    opened = open_file(file, features)
    try:
        before = 0
        for group, rows in enumerate(file.row_group_rows):
            if rows:
                for table, first in opened.tables(group, names):
                    _look_through(table, features, (file.path, group), before + first, found)
            before += rows
    finally:
        opened.close()
    return found


def without_rows(file: FilePlan, refused: dict[int, str]) -> FilePlan:
    """Return the plan of a file that has all of its rows but some."""
    kept = without(np.array(sorted(refused), np.int64), sum(file.row_group_rows))
    return replace(file, row_group_rows=rows_kept(kept, file.row_group_rows), kept=pack(kept))


def keep_aside(folder: Path, file: FilePlan, refused: dict[int, str]) -> Path:
    """Write rows of a file into a folder, with where they were and why they were refused.

    Done again it gives the same file.

    Raises:
        OSError: the file can't be read, or the other not be written.
    """
    positions = sorted(refused)
    with open_source(file.path) as source:
        table = pq.read_table(source).take(pa.array(positions))
    for name, values in (
        ("_file", [file.path] * len(positions)),
        ("_row", positions),
        ("_reason", [refused[position] for position in positions]),
    ):
        table = table.append_column(name, pa.array(values))
    return keep_table(folder, f"{file.footer_digest[:16]}.parquet", table)


def _look_through(
    table: pa.Table,
    features: FeatureSpec,
    where: tuple[str, int],
    first: int,
    found: dict[int, str],
) -> None:
    """Add the rows of a table that are refused; each is found with those before it left out."""
    positions = np.arange(first, first + table.num_rows)
    while table.num_rows:
        try:
            columns_from_table(table, features, where=where)
            return
        except UnreadableError:
            raise
        except DataError as error:
            if error.row is None or len(found) == MOST_REFUSED:
                raise
            bad = error.row
            found[int(positions[bad])] = f"{error.what} ({error.column}): {error.got}"
        # What comes before it is right.
        table, positions = table.slice(bad + 1), positions[bad + 1 :]
