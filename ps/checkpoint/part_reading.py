"""Parts of files, read and held against their lists by threads that are ahead of who uses them."""

import threading
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
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
_RUN_BYTES = 4 << 20  # of parts that are read at once, so that threads wait for one another less

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
        one part. Those that lie one after another are read together.

        Raises:
            CheckpointError: bytes are not those that were written, or of other columns, or can't
                be read; it names the file.
        """
        ahead: deque[tuple[_Run, Future[list[Batch]]]] = deque()

        def next_ones() -> list[Batch]:
            run, reading = ahead.popleft()
            found = reading.result()
            if not ahead or ahead[0][0].file is not run.file:
                run.file.close()  # it is opened again where more of it is wanted
            return found

        runs = list(self._runs(directory, files))
        if not runs:  # as in most files of a delta: nothing is begun for them
            return
        num_readers = _READERS if isinstance(directory, Path) else _READERS_OF_STORES
        with ThreadPoolExecutor(num_readers, thread_name_prefix="parts") as readers:
            try:
                for run in runs:
                    while ahead and (
                        len(ahead) >= 2 * num_readers
                        or sum(held.num_bytes for held, _ in ahead) + run.num_bytes > _BYTES_AHEAD
                    ):
                        yield from next_ones()
                    ahead.append((run, readers.submit(self._read, run)))
                while ahead:
                    yield from next_ones()
            finally:
                readers.shutdown(cancel_futures=True)
                for run, _ in ahead:
                    run.file.close()

    def _runs(
        self, directory: Place, files: Iterable[tuple[FileEntry, Sequence[FilePart]]]
    ) -> Iterator["_Run"]:
        """Yield what is wanted, where it lies."""
        first, end = self.wanted
        for entry, parts in files:
            file, offset = _File(directory / entry.path, entry.bytes, self.schema), 0
            run: _Run | None = None
            for part in parts:
                if part.first < end and part.end > first:
                    if run is not None and not run.may_take(part, offset):
                        yield run
                        run = None
                    if run is None:
                        run = _Run(file, offset)
                    run.parts.append(part)
                    run.num_bytes += part.num_bytes
                offset += part.num_bytes
            if run is not None:
                yield run

    def _read(self, run: "_Run") -> list[Batch]:
        with naming(run.file.path):
            data = run.file.read(run.offset, run.num_bytes)
            found, at = [], 0
            for part in run.parts:
                piece = data.slice(min(at, data.size), part.num_bytes)
                found.append((part, self._rows_of(part, piece, run, at)))
                at += part.num_bytes
            return found

    def _rows_of(self, part: FilePart, messages: pa.Buffer, run: "_Run", at: int) -> pa.RecordBatch:
        """Return the rows that are wanted of a part, by its bytes."""
        if digest_of(memoryview(messages), self.format_version) != part.digest:
            raise damaged_part(run.file.path, run.offset + at, part)
        if run.offset + at == 0:
            messages = messages.slice(MAGIC_BYTES)
        for batch in batches_of(messages, self.schema, rows=part.rows):
            return self.rows_within(batch, part)
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


@dataclass(slots=True)
class _Run:
    """Parts of a file that lie one after another and are read at once."""

    file: "_File"
    offset: int
    num_bytes: int = 0
    parts: list[FilePart] = field(default_factory=list)

    def may_take(self, part: FilePart, offset: int) -> bool:
        """Whether a part that lies somewhere may be read with these."""
        is_next = offset == self.offset + self.num_bytes
        return is_next and self.num_bytes + part.num_bytes <= _RUN_BYTES


class _File:
    """A file that is opened by who first reads of it; several threads may."""

    def __init__(self, path: Place, num_bytes: int, schema: pa.Schema) -> None:
        self.path = path
        self._num_bytes = num_bytes
        self._schema = schema
        self._lock = threading.Lock()
        self._file: OpenFile | None = None

    def read(self, offset: int, num_bytes: int) -> pa.Buffer:
        with self._lock:
            if self._file is None:
                self._file = self._opened()
            file = self._file
        return file.read_buffer(offset, num_bytes)

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
