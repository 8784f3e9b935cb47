"""The file of a table's rows that are not in memory: segments, written whole and read by records.

It has no name in its folder, so it is gone when the process ends, however that ends. A segment is
filled in a buffer and written by a thread of its own, past the page cache; what is in a buffer is
read there. Who fills the next segment waits only where all buffers are still being written.

Records that rows have left behind are room again once nothing of their segment lives. Where too
little is free, segments of which little lives are written anew. The file has room for 1/0.7 of what
lives; that much is asked of the disk before rows are added, so that a full one refuses these and
fails nothing later.
"""

import contextlib
import errno
import os
import tempfile
import weakref
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cache

import numpy as np
import numpy.typing as npt

from embedding.kernels.disk_reads import Layout, aligned, read_records
from embedding.table.reservation import reserve
from embedding.table.tier_slots import (
    BUFFER,
    FILLED,
    FREE,
    SEGMENT,
    WAYS,
    Segments,
    Slots,
    move_live,
)

Float32Array = npt.NDArray[np.float32]
Int64Array = npt.NDArray[np.int64]

BUFFERS = 4
BLOCK_BYTES = 4096
_MOST_RECORDS = 2**31 - 2  # a place has 32 bits, one of them the sign
_MOST_LIVE = 0.7  # of the records of all segments, beyond which the file has to grow
_GROWS_BY = 64 << 20  # bytes, so that the disk is asked rarely


class TierError(RuntimeError):
    """Rows on the disk can't be read or written."""


def layout_of(width: int) -> Layout:
    """Return how rows of so many float32 values lie in a file."""
    record = width + 1
    block = -(-4 * record // BLOCK_BYTES) * BLOCK_BYTES // 4
    return Layout(block // record, record, block)


class TierFile:
    """Records of rows, in a folder.

    Args:
        path: of the folder.
        width: float32 values of a row.
        segment_bytes: that are written at once, about.
        cached_rows: that were read and are kept, about.
        name: of the table, for errors.

    Raises:
        TierError: no file can be made there.
    """

    def __init__(
        self, path: str, width: int, *, segment_bytes: int, cached_rows: int, name: str
    ) -> None:
        self._path, self._name = path, name
        layout = layout_of(width)
        blocks = max(segment_bytes // (4 * layout.block_words), 1)
        self._words = blocks * layout.block_words
        per_segment = blocks * layout.per_block
        buffers = aligned(BUFFERS * self._words).reshape(BUFFERS, self._words)
        most = _MOST_RECORDS // per_segment
        sets = max(cached_rows // WAYS, 1)
        self.arrays = Segments(
            live=reserve(most, 1, np.int64).reshape(-1),
            buffer_of=reserve(most, 1, np.int64).reshape(-1),
            buffers=buffers,
            owners=buffers.view(np.int32),
            tags=reserve(sets, WAYS, np.int64),
            turns=np.zeros(sets, np.uint8),
            ahead=np.zeros((sets, WAYS), np.uint8),
            cached=reserve(sets * WAYS, width, np.float32),
            state=np.array([-1, -1, per_segment, 0, 0, 0], np.int64),
            layout=layout,
            per_segment=per_segment,
        )
        self._most = most
        self.num_segments = 0
        self._free: list[int] = []
        self._writes: list[Future[None] | None] = [None] * BUFFERS
        self._in_buffer = [-1] * BUFFERS
        self._image = aligned(self._words)
        self._file = _unnamed_file(path, name)
        self.bytes_written = 0
        weakref.finalize(self, os.close, self._file)

    @property
    def descriptor(self) -> int:
        """Of the file."""
        return self._file

    @property
    def nbytes(self) -> int:
        """Bytes of the disk."""
        return self.num_segments * self._words * 4

    @property
    def memory_bytes(self) -> int:
        """Bytes of buffers and cache."""
        arrays = self.arrays
        return arrays.buffers.nbytes + arrays.cached.nbytes + arrays.tags.nbytes + 4 * self._words

    def has_room(self, num_records: int) -> bool:
        """Return whether the file has room for so many live records."""
        return self._needed(num_records) <= self.num_segments

    def _needed(self, num_records: int) -> int:
        """Return the segments that so many live records take at most."""
        if num_records == 0:
            return 0
        return int(num_records / (_MOST_LIVE * self.arrays.per_segment)) + 2 * BUFFERS + 2

    def make_room(self, num_records: int) -> None:
        """Ask the disk for as much as so many live records take.

        Raises:
            MemoryError: it has no room for them; nothing has changed.
        """
        needed = self._needed(num_records)
        if needed > self._most:
            raise MemoryError(
                f"{self._name} can't have more than {_MOST_RECORDS:,} records on one server's disk."
                " Use more servers, or evict"
            )
        size = 4 * self._words
        more = min(needed // 2, _GROWS_BY // size)
        generous = min(needed + more, self._most)
        for wanted in (generous, needed):
            try:
                os.posix_fallocate(
                    self._file, self.num_segments * size, (wanted - self.num_segments) * size
                )
                break
            except OSError as error:
                refused = error
        else:
            raise MemoryError(
                f"{self._name} needs {needed * size:,} bytes below {self._path}"
                f" ({refused.strerror}), for {num_records:,} rows beyond tiers.memory_bytes. Make"
                " room there, raise memory_bytes, use more servers, or evict"
            ) from refused
        self.arrays.live[self.num_segments : wanted] = FREE
        self.arrays.buffer_of[self.num_segments : wanted] = -1
        self._free.extend(range(wanted - 1, self.num_segments - 1, -1))
        self.num_segments = wanted

    def read(self, records: Int64Array, values: Float32Array) -> None:
        """Read records from the disk: float32[n, width], written.

        Raises:
            TierError: they can't be read.
        """
        try:
            read_records(self._file, self.arrays.layout, records, values)
        except OSError as error:
            raise self._error("read", error) from error

    def open_next(self, slots: Slots) -> None:
        """Give the full segment to be written, and open another one to be filled.

        Raises:
            TierError: a segment before could not be written, or one can't be read.
        """
        self._open_free()
        # Two are left, into one of which what lives of others can be written.
        while len(self._free) < 2 and (segment := self._emptiest()) is not None:
            self._read_segment(segment)
            rows, start = self._image.view(np.int32), 0
            while start < self.arrays.per_segment:
                start = move_live(slots, self.arrays, segment, self._image, rows, start)
                if start < self.arrays.per_segment:
                    self._open_free()
            self._collect_free()

    def _open_free(self) -> None:
        state = self.arrays.state
        if state[SEGMENT] >= 0:
            self._write(int(state[SEGMENT]), int(state[BUFFER]))
        buffer = self._free_buffer()
        if not self._free:
            self._collect_free()
        segment = self._free.pop()
        self.arrays.live[segment] = 0
        self.arrays.buffer_of[segment] = buffer
        self._in_buffer[buffer] = segment
        state[SEGMENT], state[BUFFER], state[FILLED] = segment, buffer, 0

    def _collect_free(self) -> None:
        """Find the segments of which nothing lives any more."""
        live = self.arrays.live[: self.num_segments]
        there = np.flatnonzero((live == 0) & (self.arrays.buffer_of[: self.num_segments] < 0))
        live[there] = FREE
        self._free.extend(there[::-1].tolist())

    def _emptiest(self) -> int | None:
        """Return the segment of which least lives, of those that are written."""
        self._collect_free()
        if len(self._free) >= 2:
            return None
        live = self.arrays.live[: self.num_segments]
        written = (live >= 0) & (self.arrays.buffer_of[: self.num_segments] < 0)
        segment = int(np.argmin(np.where(written, live, self.arrays.per_segment + 1)))
        assert 0 <= live[segment] < self.arrays.per_segment, "room was made before"
        return segment

    def _free_buffer(self) -> int:
        """Return a buffer whose segment is written, the one that was longest ago."""
        buffer = (int(self.arrays.state[BUFFER]) + 1) % BUFFERS
        written, self._writes[buffer] = self._writes[buffer], None
        if written is not None:
            try:
                written.result()
            except OSError as error:
                raise self._error("write", error) from error
        if self._in_buffer[buffer] >= 0:
            self.arrays.buffer_of[self._in_buffer[buffer]] = -1
        return buffer

    def _write(self, segment: int, buffer: int) -> None:
        words = self.arrays.buffers[buffer]
        place = segment * words.nbytes
        self._writes[buffer] = _writing().submit(_write_all, self._file, words, place)
        self.bytes_written += words.nbytes

    def _read_segment(self, segment: int) -> None:
        try:
            count = os.preadv(self._file, [memoryview(self._image)], segment * self._image.nbytes)
            if count != self._image.nbytes:
                raise OSError(errno.EIO, "it ends before what was written to it")
        except OSError as error:
            raise self._error("read", error) from error

    def _error(self, what: str, error: OSError) -> TierError:
        return TierError(
            f"{self._name} can't {what} its rows below {self._path} ({error.strerror})."
            " Checkpoints are whole: see to the disk, or set another tiers.path, and go on from one"
        )


def check_folder(path: str) -> None:
    """Raise TierError where a folder can't have a file for rows."""
    os.close(_unnamed_file(path, "a table"))


def _unnamed_file(path: str, name: str) -> int:
    """Open a file that no folder lists, past the page cache where that can be.

    Raises:
        TierError: none can be made.
    """
    flags = os.O_RDWR | os.O_CLOEXEC
    direct = getattr(os, "O_DIRECT", 0)
    for extra in (direct, 0):
        with contextlib.suppress(OSError, AttributeError):
            return os.open(path, flags | os.O_TMPFILE | extra, 0o600)
    try:  # a file system without unnamed files
        file, path_of_file = tempfile.mkstemp(prefix="synchromesh-rows-", dir=path)
        try:
            with contextlib.suppress(OSError):
                file_direct = os.open(path_of_file, flags | direct)
                os.close(file)
                file = file_direct
        finally:
            os.unlink(path_of_file)
        return file
    except OSError as error:
        raise TierError(
            f"{name} can't have a file for rows in {path} ({error.strerror}): tiers.path must be a"
            " folder that is there and can be written, on each server's node"
        ) from error


@cache
def _writing() -> ThreadPoolExecutor:
    """The threads that write segments of all tables of this process."""
    return ThreadPoolExecutor(2, thread_name_prefix="tiers-write")


def _write_all(file: int, words: Float32Array, place: int) -> None:
    left = memoryview(words).cast("B")
    while left:
        count = os.pwrite(file, left, place)
        left, place = left[count:], place + count
