"""Read the batches of a plan from Parquet files: one row group at a time, only needed columns."""

from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from worker.batch import Bags, Batch
from worker.column_types import check_schema
from worker.columns import Columns, columns_from_table, concatenate
from worker.deleted_rows import Kept, unpack
from worker.errors import DataError, UnreadableError
from worker.file_columns import FileColumn, named_schema, named_table, names_in_file
from worker.footers import Footer, open_source, read_footer, unreadable
from worker.plan import FilePlan, Plan
from worker.spec import FeatureSpec

_OPEN_FILES = 32


@dataclass(frozen=True, slots=True)
class _OpenFile:
    """A Parquet file whose row groups are read by number."""

    path: str
    source: pa.NativeFile
    parquet: pq.ParquetFile
    footer: Footer
    columns: tuple[FileColumn, ...]
    kept: Kept | None

    def read(self, row_group: int, columns: Sequence[str]) -> pa.Table:
        """Decode some columns of a row group, by the names that the job has for them.

        Rows that the file's table no longer has are left out.

        Raises:
            UnreadableError: its bytes can't be read or decoded.
        """
        names = names_in_file(columns, self.columns)
        try:
            table = self.parquet.read_row_group(row_group, columns=names, use_threads=False)
            table.validate()
        except MemoryError:
            raise
        except Exception as error:  # whatever a decoder or the package behind a URL raises
            raise unreadable("a row group can't be read", self.path, error, row_group) from error
        planned = self.footer.row_group_rows[row_group]
        if table.num_rows != planned:
            wrong = ValueError(f"it has {table.num_rows} rows, the footer says {planned}")
            raise unreadable("a row group can't be read", self.path, wrong, row_group)
        table = named_table(table, columns, self.columns)
        if self.kept is None:
            return table
        start = sum(self.footer.row_group_rows[:row_group])
        return table.filter(pa.array(self.kept[start : start + planned]))

    def close(self) -> None:
        self.parquet.close()
        self.source.close()


class _RowGroup(NamedTuple):
    epoch: int  # 0 where all epochs have the same rows in the same order
    file: int
    row_group: int


class Reader:
    """Reads batches by id, for one thread.

    Row groups are decoded whole and kept while they fit, so that batches that follow each other in
    a lane decode each row group once.

    Args:
        plan: what the batch ids mean.
        features: the columns to read.
        on_bad_file: `fail` raises at a file or row group that can't be read; `skip` leaves its
            rows out of their batches.
        cache_bytes: limit of the decoded row groups that are kept, in bytes; the newest is kept in
            any case.
    """

    def __init__(
        self,
        plan: Plan,
        features: FeatureSpec,
        *,
        on_bad_file: Literal["fail", "skip"] = "fail",
        cache_bytes: int = 1 << 30,
    ) -> None:
        self._plan = plan
        self._features = features
        self._skip = on_bad_file == "skip"
        self._cache_bytes = cache_bytes
        self._cached: OrderedDict[_RowGroup, Columns] = OrderedDict()
        self._cached_bytes = 0
        self._open: OrderedDict[int, _OpenFile] = OrderedDict()
        # What was unreadable once stays so for this reader: a row group is never half skipped.
        self._bad: dict[tuple[int, int], UnreadableError] = {}

    def read(self, batch_id: int) -> tuple[Batch, int]:
        """Return a batch, and how many of its planned samples were skipped.

        The batch has `plan.rows_of(batch_id)` samples less the skipped ones, perhaps none. Its
        arrays are views of what the reader keeps: they are not to be written to.

        Raises:
            DataError: a file changed since it was planned; a value is refused; with `on_bad_file`
                `fail`, a file or row group can't be read (`UnreadableError`).
            IndexError: the plan has no such batch.
        """
        epoch = self._plan.epoch_of(batch_id) if self._plan.shuffle == "rows" else 0
        parts, skipped = [], 0
        for piece in self._plan.pieces(batch_id):
            try:
                columns = self._columns(_RowGroup(epoch, piece.file, piece.row_group))
            except UnreadableError:
                if not self._skip:
                    raise
                skipped += piece.stop - piece.start
            else:
                parts.append(columns.batch(piece.start, piece.stop))
        return concatenate(parts) if parts else _empty_batch(self._features), skipped

    def close(self) -> None:
        """Close the files and forget the row groups; the reader may be used again."""
        for file in self._open.values():
            file.close()
        self._open.clear()
        self._cached.clear()
        self._cached_bytes = 0

    def _columns(self, key: _RowGroup) -> Columns:
        columns = self._cached.get(key)
        if columns is not None:
            self._cached.move_to_end(key)
            return columns
        known = self._bad.get((key.file, key.row_group))
        if known is not None:
            raise known.with_traceback(None)
        try:
            columns = self._decode(key)
        except UnreadableError as error:
            self._bad[key.file, key.row_group] = error
            raise
        self._cached[key] = columns
        self._cached_bytes += columns.nbytes
        while self._cached_bytes > self._cache_bytes and len(self._cached) > 1:
            _, oldest = self._cached.popitem(last=False)
            self._cached_bytes -= oldest.nbytes
        return columns

    def _decode(self, key: _RowGroup) -> Columns:
        file = self._file(key.file)
        table = file.read(key.row_group, self._features.columns())
        where = (file.path, key.row_group)
        columns = columns_from_table(table, self._features, where=where)
        order = self._plan.row_order(*key)
        return columns if order is None else columns.take(order)

    def _file(self, index: int) -> _OpenFile:
        file = self._open.get(index)
        if file is not None:
            self._open.move_to_end(index)
            return file
        planned = self._plan.files[index]
        file = _open_file(planned, self._features, dictionaries=True)
        self._open[index] = file
        if len(self._open) > _OPEN_FILES:
            _, oldest = self._open.popitem(last=False)
            oldest.close()
        return file


def read_file(
    planned: FilePlan,
    features: FeatureSpec,
    batch_rows: int,
    *,
    keep: Sequence[str] = (),
) -> Iterator[tuple[pa.Table, Batch]]:
    """Read one file from its first row to its last, for prediction.

    Args:
        planned: the file, as a plan for these columns has it.
        features: what makes the batches; without a label for samples that have none.
        batch_rows: most samples in a batch; batches end with their row group.
        keep: further columns of the table that comes with each batch.

    Yields:
        The batch, and before it its rows as a table with the columns of `features` and `keep`.

    Raises:
        DataError: as `Reader.read`, and for a column that is missing or of an unusable type.
    """
    file = _open_file(planned, features)
    try:
        columns = list(dict.fromkeys([*features.columns(), *keep]))
        for row_group in range(len(file.footer.row_group_rows)):
            table = file.read(row_group, columns)
            whole = columns_from_table(table, features, where=(file.path, row_group))
            for start in range(0, whole.num_rows, batch_rows):
                stop = min(start + batch_rows, whole.num_rows)
                yield table.slice(start, stop - start), whole.batch(start, stop)
    finally:
        file.close()


def _open_file(
    planned: FilePlan, features: FeatureSpec, *, dictionaries: bool = False
) -> _OpenFile:
    """Open a planned file that has the columns of `features`.

    With `dictionaries` strings come as such, so that each is hashed once; a table for the caller
    keeps the file's types.
    """
    path = planned.path
    source = open_source(path)
    try:
        try:
            footer = read_footer(source, path)
        except UnreadableError:
            _check_unchanged(planned, source.size(), planned.footer_digest)
            raise
        _check_unchanged(planned, footer.size, footer.digest)
        check_schema(named_schema(footer.schema, planned.columns), features, path)
        names = names_in_file(features.columns(), planned.columns)
        parquet = pq.ParquetFile(
            source,
            metadata=footer.metadata,
            read_dictionary=_string_columns(footer, names) if dictionaries else [],
            pre_buffer=True,  # one request for neighbouring columns, not one for each
            page_checksum_verification=True,
        )
    except BaseException:
        source.close()
        raise
    kept = unpack(planned.kept, footer.metadata.num_rows) if planned.kept else None
    return _OpenFile(path, source, parquet, footer, planned.columns, kept)


def _string_columns(footer: Footer, names: Sequence[str]) -> list[str]:
    return [path for path in footer.byte_columns if path.split(".")[0] in names]


def _check_unchanged(planned: FilePlan, size: int, digest: str) -> None:
    if (size, digest) == (planned.size, planned.footer_digest):
        return
    resized = f"got {size} bytes, expected {planned.size}"
    raise DataError(
        what="a file changed since it was planned",
        file=planned.path,
        got=resized if size != planned.size else "its footer is another one",
        remedy="Restore the file, or start a new run",
    )


def _empty_batch(features: FeatureSpec) -> Batch:
    return Batch(
        np.empty(0, np.float32),
        np.empty((0, len(features.dense)), np.float32),
        tuple(
            Bags(
                np.empty(0, np.int64),
                None,
                np.empty(0, np.float32) if feature.weights is not None else None,
            )
            for feature in features.sparse
        ),
    )
