"""Parts of files, read and held against their lists by threads that are ahead of who uses them."""

import threading
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from embedding.kernels.mixing import buckets_of
from ps.checkpoint.checksums import digest_of
from ps.checkpoint.file_parts import (
    CheckpointError,
    FileEntry,
    FilePart,
    check_part,
    check_schema,
    damaged_part,
    naming,
)
from ps.checkpoint.part_rows import bounds_of_rows
from ps.checkpoint.record_batches import batches_of
from runtime.places import OpenFile, Place, open_at

MAGIC_BYTES = 8
"""Before the first message of an Arrow file."""

_MAX_SCHEMA_BYTES = 1 << 20
_READERS = 2
_READERS_OF_STORES = 16  # an answer takes a while there
_BYTES_AHEAD = 32 << 20

Batch = tuple[FilePart, pa.RecordBatch]


@dataclass(frozen=True, slots=True)
class PartReading:
    """How the parts of some files are read.

    Args:
        schema: of the files.
        wanted: buckets, of dense/ blocks, [first, end).
        in_order: whether rows must be sorted, and each be there once.
        format_version: of the checkpoint, which says what checksums are.
    """

    schema: pa.Schema
    wanted: tuple[int, int]
    in_order: bool
    format_version: int

    def batches(
        self, directory: Place, files: Iterable[tuple[FileEntry, Sequence[FilePart]]]
    ) -> Iterator[Batch]:
        """Yield the parts that hold what is wanted, in order, and of each the rows that are.

        A file without such a part is not opened. Parts are read while others are used: 32 MiB, or
        one part.

        Raises:
            CheckpointError: bytes are not those that were written, or of other columns, or can't
                be read; it names the file.
        """
        ahead: deque[tuple[_File, int, Future[Batch]]] = deque()

        def next_one() -> Batch:
            file, _, reading = ahead.popleft()
            found = reading.result()
            if not ahead or ahead[0][0] is not file:
                file.close()  # it is opened again where more of it is wanted
            return found

        num_readers = _READERS if isinstance(directory, Path) else _READERS_OF_STORES
        with ThreadPoolExecutor(num_readers, thread_name_prefix="parts") as readers:
            try:
                for file, offset, part in self._places(directory, files):
                    while ahead and (
                        len(ahead) >= 2 * num_readers
                        or sum(held for _, held, _ in ahead) + part.num_bytes > _BYTES_AHEAD
                    ):
                        yield next_one()
                    reading = readers.submit(self._read, file, offset, part)
                    ahead.append((file, part.num_bytes, reading))
                while ahead:
                    yield next_one()
            finally:
                readers.shutdown(cancel_futures=True)
                for file, _, _ in ahead:
                    file.close()

    def _places(
        self, directory: Place, files: Iterable[tuple[FileEntry, Sequence[FilePart]]]
    ) -> Iterator[tuple["_File", int, FilePart]]:
        """Yield where what is wanted lies."""
        first, end = self.wanted
        for entry, parts in files:
            file, offset = _File(directory / entry.path, entry.bytes, self.schema), 0
            for part in parts:
                if part.first < end and part.end > first:
                    yield file, offset, part
                offset += part.num_bytes

    def _read(self, file: "_File", offset: int, part: FilePart) -> Batch:
        with naming(file.path):
            data = file.read(offset, part.num_bytes)
            if digest_of(data, self.format_version) != part.digest:
                raise damaged_part(file.path, offset, part)
            messages = pa.py_buffer(data)
            if offset == 0:
                messages = messages.slice(MAGIC_BYTES)
            for batch in batches_of(messages, self.schema, rows=part.rows):
                return part, self.rows_within(batch, part)
            raise ValueError("a part has no rows")

    def rows_within(self, batch: pa.RecordBatch, part: FilePart | None = None) -> pa.RecordBatch:
        """Return the rows of a batch that are wanted; copied where they lie apart.

        Raises:
            ValueError: rows are not in order, or not of the part.
        """
        column = batch.column(0).to_numpy()
        by_key = self.schema.names[0] == "key"
        lowest, highest = bounds_of_rows(column, by_key=by_key, in_order=self.in_order)
        if part is not None:
            check_part(part, column.size, lowest, highest)
        first, end = self.wanted
        if first <= lowest and highest < end:
            return batch
        numbers = buckets_of(column) if by_key else column
        if self.in_order:
            start, stop = np.searchsorted(numbers, self.wanted)
            return batch.slice(start, stop - start)
        return batch.filter(pa.array((numbers >= first) & (numbers < end)))


class _File:
    """A file that is opened by who first reads of it; several threads may."""

    def __init__(self, path: Place, num_bytes: int, schema: pa.Schema) -> None:
        self.path = path
        self._num_bytes = num_bytes
        self._schema = schema
        self._lock = threading.Lock()
        self._file: OpenFile | None = None

    def read(self, offset: int, num_bytes: int) -> bytes:
        with self._lock:
            if self._file is None:
                self._file = self._opened()
            file = self._file
        return file.read(offset, num_bytes)

    def close(self) -> None:
        with self._lock:
            if self._file is not None:
                self._file.close()
                self._file = None

    def _opened(self) -> OpenFile:
        file = open_at(self.path)
        try:
            if file.size != self._num_bytes:
                raise CheckpointError(
                    f"{self.path} is damaged: it has {file.size} bytes, the manifest says"
                    f" {self._num_bytes}"
                )
            # Nothing else is parsed before it is known to be right.
            head = file.read(MAGIC_BYTES, _MAX_SCHEMA_BYTES)
            check_schema(self.path, pa.ipc.read_schema(pa.py_buffer(head)), self._schema)
        except BaseException:
            file.close()
            raise
        return file
