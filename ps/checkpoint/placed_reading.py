"""Read rows whose values are in extents: what is said of them, then the segments one by one."""

import itertools
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from embedding import TableSpec
from embedding.arrow import to_arrow
from embedding.kernels.mixing import buckets_of
from embedding.table.placed_rows import PlacedRows, entries_of_records, segment_records
from ps.checkpoint.checksums import digest_of
from ps.checkpoint.errors import CheckpointError
from ps.checkpoint.file_parts import FileEntry, FilePart, damaged_part, naming
from ps.checkpoint.part_reading import PartReading
from ps.checkpoint.placed import Segment, placed_schema
from runtime.places import OpenFile, Place, open_at

Int64Array = npt.NDArray[np.int64]

_READERS = 2
_READERS_OF_STORES = 16  # an answer takes a while there


@dataclass(frozen=True, slots=True)
class PlacedReading:
    """The rows of one shard's table that are in extents.

    Args:
        directory: of the checkpoint.
        shard: that wrote them.
        spec: of the table.
        index, parts: the file that says where they are.
        segments: of the extents, by number.
        format_version: of the checkpoint, which says what checksums are.
        has_read: is told of bytes that were read.
    """

    directory: Place
    shard: int
    spec: TableSpec
    index: FileEntry
    parts: Sequence[FilePart]
    segments: dict[int, Segment]
    format_version: int
    has_read: Callable[[int], None]

    @property
    def segment_bytes(self) -> int:
        """Of each segment; 0: there are none."""
        return next((each.part.num_bytes for each in self.segments.values()), 0)

    def batches(self, wanted: tuple[int, int]) -> Iterator[pa.RecordBatch]:
        """Yield the rows of buckets [first, end); a segment without one is not read.

        Raises:
            CheckpointError: a file is damaged, or can't be read; it names it.
        """
        for number, placed, data in self.segments_with(wanted):
            first = number * self.segments[number].part.rows
            entries = entries_of_records(self.spec, memoryview(data), placed, first)
            yield from to_arrow(entries, self.spec).to_batches()

    def segments_with(self, wanted: tuple[int, int]) -> Iterator[tuple[int, PlacedRows, pa.Buffer]]:
        """Yield segments with rows of some buckets: number, what is said of these, and its bytes.

        They are read, and held against their digests, by threads that are ahead.
        """
        readers = _READERS if isinstance(self.directory, Path) else _READERS_OF_STORES
        with (
            ThreadPoolExecutor(readers, thread_name_prefix="segments") as threads,
            ExitStack() as closing,
        ):
            files: dict[str, OpenFile] = {}
            ahead: deque[tuple[int, PlacedRows, Future[pa.Buffer]]] = deque()
            try:
                for number, placed in self._by_segment(wanted):
                    entry = self.segments[number].file
                    if entry.path not in files:
                        files[entry.path] = self._opened(entry)
                        closing.callback(files[entry.path].close)
                    reading = threads.submit(self._read, files[entry.path], number)
                    ahead.append((number, placed, reading))
                    if len(ahead) >= 3 * readers:
                        number, placed, reading = ahead.popleft()
                        yield number, placed, reading.result()
                while ahead:
                    number, placed, reading = ahead.popleft()
                    yield number, placed, reading.result()
            finally:
                threads.shutdown(cancel_futures=True)

    def _opened(self, entry: FileEntry) -> OpenFile:
        path = self.directory / entry.path
        with naming(path):
            file = open_at(path)
            if file.size != entry.bytes:
                file.close()
                raise CheckpointError(
                    f"{path} is damaged: it has {file.size} bytes, the manifest says {entry.bytes}"
                )
        return file

    def _read(self, file: OpenFile, number: int) -> pa.Buffer:
        segment = self.segments[number]
        path, part = self.directory / segment.file.path, segment.part
        with naming(path):
            data = file.read_buffer(segment.offset, part.num_bytes)
        self.has_read(part.num_bytes)
        if digest_of(memoryview(data), self.format_version) != part.digest:
            raise damaged_part(path, segment.offset, part)
        return data

    def _by_segment(self, wanted: tuple[int, int]) -> Iterator[tuple[int, PlacedRows]]:
        """Yield the numbers of segments, ascending, and what is said of some rows in each."""
        per_segment = self._per_segment()
        for found in self._groups(wanted):
            segments = found.records // per_segment
            cuts = np.flatnonzero(np.diff(segments)) + 1
            for start, end in itertools.pairwise([0, *cuts.tolist(), segments.size]):
                if start == end:
                    continue
                number = int(segments[start])
                if number not in self.segments:
                    raise CheckpointError(
                        f"{self.directory / self.index.path} has rows in segment {number}, of which"
                        " the checkpoint has no extent"
                    )
                yield number, found.take(slice(start, end))

    def _per_segment(self) -> int:
        some = next(iter(self.segments.values()), None)
        if some is None:
            return 1
        if segment_records(self.spec, some.part.num_bytes) != some.part.rows:
            raise CheckpointError(
                f"{self.directory / some.file.path} has segments of {some.part.num_bytes} bytes"
                f" with {some.part.rows} records, which can't be rows of table {self.spec.name}"
            )
        return some.part.rows

    def _groups(self, wanted: tuple[int, int]) -> Iterator[PlacedRows]:
        """Yield what is said of rows of some buckets, ascending by record."""
        path, before = self.directory / self.index.path, -1
        for group in sorted({(part.first, part.end) for part in self.parts}):
            reading = PartReading(placed_schema(self.spec), group, False, self.format_version)
            columns = []
            for part, batch in reading.batches(self.directory, [(self.index, self.parts)]):
                self.has_read(part.num_bytes)
                found = [batch.column(i).to_numpy() for i in range(batch.num_columns)]
                buckets = buckets_of(found[1])
                mine = (buckets >= wanted[0]) & (buckets < wanted[1])
                columns.append([column[mine] for column in found])
            records, keys, *usage = map(np.concatenate, zip(*columns, strict=True))
            frequency, version = usage or np.zeros((2, keys.size), np.int64)
            order = np.argsort(records)
            placed = PlacedRows(records, keys, frequency, version).take(order)
            if (np.diff(placed.records, prepend=before) <= 0).any():
                raise CheckpointError(f"{path} has two rows in one record")
            before = int(placed.records[-1]) if placed.records.size else before
            yield placed
