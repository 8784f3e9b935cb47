"""Rows of samples that wait for their labels, on the disk, so that any few of them are soon read.

A row of a Parquet file is read with thousands of others. What waits is therefore kept as Arrow IPC
files that are mapped into memory: a file for each of the stream's, until none of its rows waits.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from runtime.durable import make_folder, partial_path
from worker.data.columns import columns_from_table, join_keys
from worker.data.open_file import open_file
from worker.data.plan import FilePlan
from worker.data.task_join import UNKNOWN
from worker.errors import DataError
from worker.spec import FeatureSpec

_SUFFIX = ".arrow"

_Ints = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class _Mapped:
    """A file that is mapped: its batches, and the rows before each of them, and all."""

    batches: list[pa.RecordBatch]
    starts: _Ints


class WaitingRows:
    """Keeps copies of files' rows, and gives out some of them.

    Args:
        folder: for the copies; what is in it is its own. They can be made again from the files.
        features: whose columns are kept; `key` is one of them.
        plan_of: gives the file of a number.
    """

    def __init__(
        self, folder: Path, features: FeatureSpec, plan_of: Callable[[int], FilePlan]
    ) -> None:
        self._folder = folder
        self._features = features
        self._plan_of = plan_of
        self._mapped: dict[int, _Mapped] = {}

    def add(self, number: int, file: FilePlan) -> _Ints:
        """Copy the rows of a file; return the keys of all, int64[n].

        Raises:
            DataError: it can't be read, or a key is null or none.
            OSError: there is no room.
        """
        make_folder(self._folder)
        path = self._path(number)
        keys: list[_Ints] = []
        partial = partial_path(path)
        writer = None
        try:
            with pa.OSFile(str(partial), "wb") as sink:
                for table, group, first_row in tables_of(file, self._features):
                    keys.append(_keys(table, file, self._features, group, first_row))
                    table = _plain(table, file)
                    if writer is None:
                        writer = pa.ipc.new_file(sink, table.schema)
                    writer.write_table(table)
                if writer is not None:
                    writer.close()
            partial.rename(path)
        except BaseException:
            partial.unlink(missing_ok=True)
            raise
        return np.concatenate([np.empty(0, np.int64), *keys])

    def take(self, number: int, rows: _Ints) -> pa.Table:
        """Return rows of a file, int64[m] in rising order; one may be there twice."""
        mapped = self._mapped.get(number) or self._map(number)
        ends = np.searchsorted(rows, mapped.starts)
        parts = [
            batch.take(pa.array(rows[first:last] - start))
            for batch, start, first, last in zip(
                mapped.batches, mapped.starts[:-1], ends[:-1], ends[1:], strict=True
            )
            if first < last
        ]
        return pa.Table.from_batches(parts, mapped.batches[0].schema)

    def forget(self, below: int) -> None:
        """No rows of files with lower numbers are wanted any more."""
        for number in [number for number in self._mapped if number < below]:
            del self._mapped[number]
        for path, number in self._files():
            if number < below:
                path.unlink(missing_ok=True)

    def forget_from(self, number: int) -> None:
        """Files from a number on are others now."""
        self._mapped = {each: file for each, file in self._mapped.items() if each < number}
        for path, each in self._files():
            if each >= number:
                path.unlink(missing_ok=True)

    def _map(self, number: int) -> _Mapped:
        path = self._path(number)
        if not path.exists():
            self.add(number, self._plan_of(number))
        reader = pa.ipc.open_file(pa.memory_map(str(path)))
        batches = [reader.get_batch(i) for i in range(reader.num_record_batches)]
        starts = np.cumsum([0, *(batch.num_rows for batch in batches)], dtype=np.int64)
        self._mapped[number] = mapped = _Mapped(batches, starts)
        return mapped

    def _path(self, number: int) -> Path:
        return self._folder / f"{number:012d}{_SUFFIX}"

    def _files(self) -> list[tuple[Path, int]]:
        found = self._folder.glob(f"[0-9]*{_SUFFIX}")
        return [(path, int(path.stem)) for path in found if path.stem.isdecimal()]


def tables_of(file: FilePlan, features: FeatureSpec) -> Iterator[tuple[pa.Table, int, int]]:
    """Yield the rows of a file with their row group, and the first of them in it."""
    opened = open_file(file, features)
    try:
        for group, rows in enumerate(file.row_group_rows):
            if rows:
                for table, first in opened.tables(group, features.columns()):
                    yield table, group, first
    finally:
        opened.close()


def keys_in(file: FilePlan, features: FeatureSpec) -> _Ints:
    """Return the keys of all rows of a file, int64[n]; raises DataError, as `WaitingRows.add`."""
    found = [_keys(table, file, features, *place) for table, *place in tables_of(file, features)]
    return np.concatenate([np.empty(0, np.int64), *found])


def labels_in(file: FilePlan, features: FeatureSpec) -> tuple[_Ints, npt.NDArray[np.uint8]]:
    """Return the keys and labels of all rows of a file; raises DataError, as `keys_in`.

    Returns:
        int64[n], and uint8[n]; where features have several labels uint8[n, labels], UNKNOWN where a
        row has none.
    """
    shape = (0, len(features.tasks)) if features.tasks else 0
    keys, labels = [np.empty(0, np.int64)], [np.empty(shape, np.uint8)]
    only_labels = replace(features, key=None)
    for table, group, first in tables_of(file, features):
        where = (file.path, group)
        columns = columns_from_table(table, only_labels, where=where, first_row=first)
        found = np.where(np.isnan(columns.labels), np.float32(UNKNOWN), columns.labels)
        labels.append(found.astype(np.uint8))
        keys.append(_keys(table, file, features, group, first))
    return np.concatenate(keys), np.concatenate(labels)


def _keys(
    table: pa.Table, file: FilePlan, features: FeatureSpec, group: int, first_row: int
) -> _Ints:
    assert features.key is not None, "samples have a key"
    try:
        return join_keys(table, features.key, where=(file.path, group))
    except DataError as error:
        if error.row is not None:
            error.row += first_row
        raise


def _plain(table: pa.Table, file: FilePlan) -> pa.Table:
    """Return a table without dictionaries, of which each part of a file may have another."""
    schema = pa.schema([pa.field(each.name, _plain_type(each.type)) for each in table.schema])
    try:
        return table.cast(schema)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        raise DataError(
            what="a column has a type that can't be kept for its labels",
            file=file.path,
            got=str(error),
            remedy="Write plain integers, strings or lists of these",
        ) from error


def _plain_type(kind: pa.DataType) -> pa.DataType:
    if pa.types.is_dictionary(kind):
        return kind.value_type
    if pa.types.is_large_list(kind):
        return pa.large_list(_plain_type(kind.value_type))
    if pa.types.is_list(kind):
        return pa.list_(_plain_type(kind.value_type))
    return kind
