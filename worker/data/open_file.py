"""One open Parquet file of a plan: row groups decoded together, or in parts if they are large."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate

import pyarrow as pa
import pyarrow.parquet as pq

from worker.data.column_types import check_schema
from worker.data.deleted_rows import Kept, unpack
from worker.data.file_columns import FileColumn, named_schema, named_table, names_in_file
from worker.data.footers import Footer, open_source, read_footer, unreadable
from worker.data.plan import FilePlan
from worker.errors import DataError, UnreadableError
from worker.spec import FeatureSpec

MOST_PART_ROWS = 1 << 16
LEAST_PART_ROWS = 1 << 13
_WHOLE_BYTES = 128 << 20
_PART_BYTES = 32 << 20
_STREAM_BUFFER_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class OpenFile:
    """A Parquet file whose row groups are read by number.

    Columns have the names that the job has for them, and rows that the file's table no longer has
    are left out.
    """

    path: str
    columns: tuple[FileColumn, ...]
    _source: pa.NativeFile
    _footer: Footer
    _whole: pq.ParquetFile  # fetches all of a read's columns at once
    _streaming: pq.ParquetFile  # holds a buffer for each column
    _starts: tuple[int, ...]  # rows before each row group
    _kept: Kept | None

    @property
    def num_row_groups(self) -> int:
        return len(self._starts)

    def read(self, row_groups: Sequence[int], columns: Sequence[str]) -> pa.Table:
        """Decode some columns of row groups, one after the other.

        Raises:
            UnreadableError: the bytes of one of them can't be read or decoded; it names the first.
            DataError: they are compressed in a way that this build of pyarrow doesn't know.
        """
        names = names_in_file(columns, self.columns)
        try:
            table = self._whole.read_row_groups(list(row_groups), columns=names, use_threads=False)
            table.validate()
        except MemoryError:
            raise
        except Exception as error:  # whatever a decoder or the package behind a URL raises
            raise self._undecodable(row_groups[0], names, error) from error
        planned = [self._footer.row_group_rows[i] for i in row_groups]
        if table.num_rows != sum(planned):
            raise self._wrong_rows(row_groups[0], table.num_rows, sum(planned))
        table = named_table(table, columns, self.columns)
        if self._kept is None:
            return table
        ends = accumulate(planned)
        kept = [
            table.slice(end - rows, rows).filter(self._mask(self._starts[i], rows))
            for i, rows, end in zip(row_groups, planned, ends, strict=True)
        ]
        return pa.concat_tables(kept)

    def tables(self, row_group: int, columns: Sequence[str]) -> Iterator[tuple[pa.Table, int]]:
        """Decode some columns of a whole row group, a large one in parts.

        Yields:
            Rows, and the position of the first of them in the row group.
        """
        rows = self.part_rows(row_group, columns)
        if rows >= self._footer.row_group_rows[row_group]:
            yield self.read([row_group], columns), 0
        else:
            for number, table in enumerate(self.parts(row_group, columns, rows)):
                yield table, number * rows

    def part_rows(self, row_group: int, columns: Sequence[str]) -> int:
        """Return how many rows of a row group to decode at once: all of them but in a large one.

        It follows from the footer alone, so that every reader cuts a row group alike.
        """
        group = self._footer.metadata.row_group(row_group)
        roots = set(names_in_file(columns, self.columns))
        leaves = [group.column(i) for i in range(group.num_columns)]
        size = 8 * sum(x.num_values for x in leaves if x.path_in_schema.split(".")[0] in roots)
        if size <= _WHOLE_BYTES:
            return group.num_rows
        rows = MOST_PART_ROWS
        while rows > LEAST_PART_ROWS and rows * size > _PART_BYTES * group.num_rows:
            rows //= 2
        return rows

    def parts(self, row_group: int, columns: Sequence[str], rows: int) -> Iterator[pa.Table]:
        """Decode some columns of a row group, `rows` of its rows at a time, the last ones fewer.

        Memory is that of a part and of what is buffered for each column (about 3 MB), whatever the
        row group's size.

        Raises:
            UnreadableError, DataError: as `read`; parts before the damage have been given out.
        """
        names = names_in_file(columns, self.columns)
        planned = self._footer.row_group_rows[row_group]
        pending: list[pa.Table] = []
        read = waiting = 0
        batches = self._streaming.iter_batches(
            batch_size=rows, row_groups=[row_group], columns=names, use_threads=False
        )
        while read < planned:
            try:
                batch = next(batches)  # shorter where a dictionary ends
                batch.validate()
            except StopIteration:
                raise self._wrong_rows(row_group, read, planned) from None
            except MemoryError:
                raise
            except Exception as error:
                raise self._undecodable(row_group, names, error) from error
            table = named_table(pa.Table.from_batches([batch]), columns, self.columns)
            if self._kept is not None:
                table = table.filter(self._mask(self._starts[row_group] + read, batch.num_rows))
            read += batch.num_rows
            while waiting + table.num_rows >= rows:
                pending.append(table.slice(0, rows - waiting))
                yield pa.concat_tables(pending)
                table = table.slice(rows - waiting)
                pending, waiting = [], 0
            if table.num_rows:
                pending.append(table)
                waiting += table.num_rows
        if pending:
            yield pa.concat_tables(pending)

    def close(self) -> None:
        self._whole.close()
        self._streaming.close()
        self._source.close()

    def _mask(self, start: int, rows: int) -> pa.Array:
        assert self._kept is not None, "asked for where rows were deleted"
        return pa.array(self._kept[start : start + rows])

    def _wrong_rows(self, row_group: int, found: int, planned: int) -> UnreadableError:
        wrong = ValueError(f"it has {found} rows, the footer says {planned}")
        return unreadable("a row group can't be read", self.path, wrong, row_group)

    def _undecodable(self, row_group: int, names: Sequence[str], error: Exception) -> DataError:
        group = self._footer.metadata.row_group(row_group)
        for i in range(group.num_columns):
            leaf = group.column(i)
            root = leaf.path_in_schema.split(".")[0]
            if root in names and not _is_known(leaf.compression):
                return DataError(
                    what="a column's compression can't be read",
                    file=self.path,
                    column=root,
                    row_group=row_group,
                    got=leaf.compression,
                    remedy="Write the file again, compressed with zstd or snappy",
                )
        return unreadable("a row group can't be read", self.path, error, row_group)


def open_file(planned: FilePlan, features: FeatureSpec, *, dictionaries: bool = False) -> OpenFile:
    """Open a planned file that has the columns of `features`.

    With `dictionaries` strings come as such, so that each is hashed once; a table for the caller
    keeps the file's types.

    Raises:
        UnreadableError: it can't be opened, or is damaged.
        DataError: it is another file than the planned one, or may not be read.
    """
    path = planned.path
    source = open_source(path)
    try:
        try:
            footer = read_footer(source, path)
        except UnreadableError:
            planned.check_unchanged(source.size(), planned.footer_digest)
            raise
        planned.check_unchanged(footer.size, footer.digest)
        check_schema(named_schema(footer.schema, planned.columns), features, path)
        names = names_in_file(features.columns(), planned.columns)
        strings = [path for path in footer.byte_columns if path.split(".")[0] in names]

        def parquet(**options: int) -> pq.ParquetFile:
            return pq.ParquetFile(
                source,
                metadata=footer.metadata,
                read_dictionary=strings if dictionaries else [],
                page_checksum_verification=True,
                **options,
            )

        # One request for neighbouring columns, not one for each; or a bounded buffer for each.
        whole = parquet(pre_buffer=True)
        streaming = parquet(pre_buffer=False, buffer_size=_STREAM_BUFFER_BYTES)
    except BaseException:
        source.close()
        raise
    return OpenFile(
        path=path,
        columns=planned.columns,
        _source=source,
        _footer=footer,
        _whole=whole,
        _streaming=streaming,
        _starts=tuple(accumulate((0, *footer.row_group_rows)))[:-1],
        _kept=unpack(planned.kept, footer.metadata.num_rows) if planned.kept else None,
    )


def _is_known(compression: str) -> bool:
    try:
        return compression == "UNCOMPRESSED" or pa.Codec.is_available(compression.lower())
    except ValueError:
        return False
