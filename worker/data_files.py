"""The files that a job's data are: files, folders and patterns, and tables of Delta and Iceberg."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import pyarrow as pa

from worker.file_columns import FileColumn, constant
from worker.patterns import expand, folder_values

Columns = Callable[[pa.Schema, Sequence[str]], tuple[FileColumn, ...]]


@dataclass(frozen=True, slots=True)
class DataFile:
    """A file, and what is known of it before it is opened.

    Args:
        path: local path or URL.
        columns: gives, for the file's schema and the names that are wanted, those columns that the
            file has by another name or not at all; raises DataError for a name that can't be had.
        table: the table that lists the file, with its version; None: no table does.
        size: of the file in bytes, where the table says it.
        rows: of the file, where the table says it.
    """

    path: str
    columns: Columns
    table: str | None = None
    size: int | None = None
    rows: int | None = None


def find_files(patterns: Sequence[str]) -> list[DataFile]:
    """Return the files that patterns name, in the order of the patterns.

    Args:
        patterns: as `worker.patterns.expand` takes them.

    Raises:
        StorageError: a pattern names no file, or a store can't be opened or listed.
    """
    if isinstance(patterns, str):
        patterns = [patterns]
    found: list[DataFile] = []
    for pattern in patterns:
        found += (DataFile(path, _from_folders(path)) for path in expand([pattern]))
    return found


def _from_folders(path: str) -> Columns:
    """Columns that the folders of a path say; those that the file has itself are its own."""
    values = folder_values(path)

    def columns(schema: pa.Schema, names: Iterable[str]) -> tuple[FileColumn, ...]:
        return tuple(
            constant(name, values[name], pa.string())
            for name in names
            if name in values and name not in schema.names
        )

    return columns
