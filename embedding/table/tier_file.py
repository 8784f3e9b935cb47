"""The extents of a table's rows that are not in memory: segments, written whole, read by records.

A segment is filled in a buffer and written by a thread of its own, past the page cache; what is in
a buffer is read there. Who fills the next segment waits only where all buffers are still being
written. Segments follow one another in an extent, which is a file (see `tier_extents`).

Records that rows have left behind are room again once nothing of their extent lives. Where too
little is free, what lives of the extent of which least does is written anew, some segments with
each that is opened. There is room for 1/0.6 of what lives, and for three extents more; that much is
asked of the disk before rows are added, so that a full one refuses these and fails nothing later.
Only where somebody keeps extents (`Extent.keep`) others have to be asked for in their place, when
the table leaves them.
"""

import contextlib
import errno
import os
import threading
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cache
from pathlib import Path

import numpy as np
import numpy.typing as npt

from embedding.kernels.disk_reads import Layout, SegmentFiles, aligned, read_records
from embedding.table.reservation import reserve
from embedding.table.tier_extents import (
    Digest,
    Extent,
    HeldExtents,
    TierError,
    opened_extent,
    unnamed_file,
)
from embedding.table.tier_segments import (
    BUFFER,
    FILLED,
    FREE,
    SEGMENT,
    Segments,
    find_held,
    move_live,
)
from embedding.table.tier_slots import Slots
from embedding.table.tier_staged import Staged

Float32Array = npt.NDArray[np.float32]
Int32Array = npt.NDArray[np.int32]
Int64Array = npt.NDArray[np.int64]

BUFFERS = 4
BLOCK_BYTES = 4096
_MOST_RECORDS = 2**31 - 2  # a place has 32 bits, one of them the sign
_MOST_LIVE = 0.6  # of the records of all segments, beyond which there have to be more
_EXTENTS = 32  # that a table has about, so that it takes few descriptors
_LEAST_SEGMENTS, _MOST_EXTENT_BYTES = 4, 1 << 30  # of an extent
_MOVED_AT_ONCE = 4  # segments, of each of which at most _MOST_LIVE lives: more than one is gained
_WORTH_SEALING = 4  # an extent of which so many parts are one part written


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
        name: of the table, for errors.

    Attributes:
        digest: of what is written from now on; None: nobody may want to keep extents.

    Raises:
        TierError: no file can be made there.
    """

    def __init__(self, path: str, width: int, *, segment_bytes: int, name: str) -> None:
        self._path, self._name = path, name
        layout = layout_of(width)
        blocks = max(segment_bytes // (4 * layout.block_words), 1)
        self._words = blocks * layout.block_words
        per_segment = blocks * layout.per_block
        buffers = aligned(BUFFERS * self._words).reshape(BUFFERS, self._words)
        most = _MOST_RECORDS // per_segment
        self.arrays = Segments(
            live=reserve(most, 1, np.int64).reshape(-1),
            buffer_of=reserve(most, 1, np.int64).reshape(-1),
            buffers=buffers,
            owners=buffers.view(np.int32),
            state=np.array([-1, -1, per_segment, 0], np.int64),
            layout=layout,
            per_segment=per_segment,
        )
        self.files = SegmentFiles(
            files=reserve(most, 1, np.int64).reshape(-1),
            offsets=reserve(most, 1, np.int64).reshape(-1),
            blocks=blocks,
        )
        # Of each segment: its extent's number plus one, and its place below; 0: it has none.
        self._extent_of: Int64Array = reserve(most, 1, np.int64).reshape(-1)
        self._place_of: Int64Array = reserve(most, 1, np.int64).reshape(-1)
        self._extents: list[Extent | None] = [None]
        self._most = most
        self._touched = 0  # segments that ever had a file
        self._unused: list[int] = []  # those of them that have none
        self.num_segments = 0  # that have a file
        self._needs = 0  # as many as were wanted last
        self._largest = _LEAST_SEGMENTS
        self._next_number = 0
        self._free: list[Extent] = []
        self._num_in_free = 0  # segments of these
        self._open: Extent | None = None
        self._sealed: dict[int, Extent] = {}
        self._moving: Extent | None = None  # whose rows are being written anew
        self._writes: list[Future[bytes] | None] = [None] * BUFFERS
        self._in_buffer = [-1] * BUFFERS
        self.digest: Digest | None = None
        self.bytes_written = 0
        os.close(unnamed_file(path, name))

    @property
    def nbytes(self) -> int:
        """Bytes of the disk, without those of extents that it left and somebody keeps."""
        return self.num_segments * self._words * 4

    @property
    def memory_bytes(self) -> int:
        """Bytes of the buffers."""
        return self.arrays.buffers.nbytes

    # Room -------------------------------------------------------------------------------------

    def has_room(self, num_records: int) -> bool:
        """Return whether there is room for so many live records."""
        return sum(self._needed(num_records)) <= self.num_segments

    def _needed(self, num_records: int) -> tuple[int, int]:
        """Return the segments that so many live records take at most, and the three extents."""
        if num_records == 0:
            return 0, 0
        needed = int(num_records / (_MOST_LIVE * self.arrays.per_segment)) + 2 * BUFFERS + 2
        return needed, 3 * self._extent_segments(needed)

    def _extent_segments(self, needed: int) -> int:
        """Return the segments of an extent of a table that has so many."""
        most = max(_MOST_EXTENT_BYTES // (4 * self._words), 1)
        return min(max(needed // _EXTENTS, _LEAST_SEGMENTS), most)

    def make_room(self, num_records: int) -> None:
        """Ask the disk for as much as so many live records take.

        Raises:
            MemoryError: it has no room for them; nothing has changed.
        """
        needed = self._needed(num_records)
        if sum(needed) + self._extent_segments(needed[0]) > self._most:
            raise MemoryError(
                f"{self._name} can't have more than {_MOST_RECORDS:,} records on one server's disk."
                " Use more servers, or evict"
            )
        try:
            while self.num_segments < sum(needed):
                self._add_extent(self._extent_segments(needed[0]))
        except OSError as error:
            raise MemoryError(
                f"{self._name} needs {sum(needed) * 4 * self._words:,} bytes below {self._path}"
                f" ({error.strerror}), for {num_records:,} rows beyond tiers.memory_bytes"
                f"{self._kept_by_others()}. Make room there, raise memory_bytes, use more servers,"
                " or evict"
            ) from error
        self._needs = sum(needed)

    def _kept_by_others(self) -> str:
        kept = sum(each.written for each in self._sealed.values() if each.has_name)
        if not kept:
            return ""
        return f"; checkpoints keep {kept * 4 * self._words:,} of what it has"

    def _add_extent(self, num_segments: int) -> None:
        """Make an extent in which nothing is written.

        Raises:
            OSError: the disk has no room for it, or no more files can be open.
        """
        descriptor = unnamed_file(self._path, self._name)
        size = 4 * self._words
        try:
            os.posix_fallocate(descriptor, 0, num_segments * size)
        except OSError:
            os.close(descriptor)
            raise
        self._make_free(self._extent_of_file(descriptor, num_segments))

    def _extent_of_file(self, descriptor: int, num_segments: int) -> Extent:
        """Give the segments of a file their numbers."""
        again = self._unused[-num_segments:]
        del self._unused[-num_segments:]
        new = range(self._touched, self._touched + num_segments - len(again))
        self._touched += len(new)
        extent = Extent(self._next_number, descriptor, sorted([*again, *new]), self._place())
        self._name_segments(extent)
        self.files.files[extent.segments] = descriptor
        self.files.offsets[extent.segments] = np.arange(num_segments) * 4 * self._words
        self.arrays.buffer_of[extent.segments] = -1
        self.num_segments += num_segments
        self._largest = max(self._largest, num_segments)
        return extent

    def _place(self) -> int:
        """Return a place for an extent among all."""
        if None in self._extents[1:]:
            return self._extents.index(None, 1)
        self._extents.append(None)
        return len(self._extents) - 1

    def _name_segments(self, extent: Extent) -> None:
        self._extents[extent.place] = extent
        self._place_of[extent.segments] = extent.place
        self._extent_of[extent.segments] = extent.number + 1
        self._next_number = extent.number + 1

    def _make_free(self, extent: Extent) -> None:
        """Have nothing written in an extent, which may be a new one."""
        self._name_segments(extent)
        self.arrays.live[extent.segments] = FREE
        self.arrays.buffer_of[extent.segments] = -1
        self._free.append(extent)
        self._num_in_free += len(extent.segments)

    def _leave(self, segments: list[int]) -> None:
        """Have no file for some segments any more."""
        self.arrays.live[segments] = FREE
        self.files.files[segments] = -1
        self._extent_of[segments] = self._place_of[segments] = 0
        self._unused.extend(segments)
        self.num_segments -= len(segments)

    # Reads ------------------------------------------------------------------------------------

    def read(self, records: Int64Array, values: Float32Array) -> None:
        """Read records from the disk: float32[n, width], written.

        Raises:
            TierError: they can't be read.
        """
        try:
            read_records(self.files, self.arrays.layout, records, values)
        except OSError as error:
            raise self._error("read", error) from error

    # Writes -----------------------------------------------------------------------------------

    def open_next(self, slots: Slots, staged: Staged) -> None:
        """Give the full segment to be written, and open another one to be filled.

        Raises:
            TierError: a segment before could not be written, one can't be read, or the disk has no
                room for extents in the place of those that somebody keeps.
        """
        self._open_next()
        self._collect_free()
        self._replace_kept()
        moved = 0
        while self._num_free() < 2 * self._largest + 2:
            if moved >= _MOVED_AT_ONCE and self._num_free() >= self._largest + 2:
                return
            segment = self._next_to_move()
            if segment is None:
                return
            self._move(segment, slots, staged)
            moved += 1

    def _move(self, segment: int, slots: Slots, staged: Staged) -> None:
        """Write what lives of a segment anew."""
        with _images.lent(self._words) as image:
            self._read_segment(segment, image)
            rows, start = image.view(np.int32), 0
            while start < self.arrays.per_segment:
                start = move_live(slots, self.arrays, staged, segment, image, rows, start)
                if start < self.arrays.per_segment:
                    self._open_next()

    def _num_free(self) -> int:
        """Return how many segments can be opened."""
        rest = 0 if self._open is None else len(self._open.segments) - self._open.written
        return rest + self._num_in_free

    def _open_next(self) -> None:
        """Write the segment that is filled, as far as it is; open the one after it."""
        self._give_to_write()
        buffer = self._free_buffer()
        if self._open is None:
            if not self._free:
                self._collect_free()
            if not self._free:
                self._replace_kept()
            if not self._free:
                raise self._error("write", OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)))
            self._open = self._free.pop(0)
            self._num_in_free -= len(self._open.segments)
        segment = self._open.segments[self._open.written]
        self.arrays.live[segment] = 0
        self.arrays.buffer_of[segment] = buffer
        self._in_buffer[buffer] = segment
        state = self.arrays.state
        state[SEGMENT], state[BUFFER], state[FILLED] = segment, buffer, 0

    def _give_to_write(self) -> None:
        state, extent = self.arrays.state, self._open
        if state[SEGMENT] < 0 or extent is None:
            return
        segment, buffer = int(state[SEGMENT]), int(state[BUFFER])
        words = self.arrays.buffers[buffer]
        place = int(self.files.offsets[segment])
        writing = _writing().submit(_write, extent.descriptor, words, place, self.digest)
        self._writes[buffer] = writing
        extent.writes.append(writing)
        extent.written += 1
        self.bytes_written += words.nbytes
        state[SEGMENT], state[FILLED] = -1, self.arrays.per_segment
        if extent.written == len(extent.segments):
            self._seal(extent)

    def _seal(self, extent: Extent) -> None:
        self._sealed[extent.number] = extent
        self._open = None

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

    # What rows have left ----------------------------------------------------------------------

    def _live(self) -> Int64Array:
        """Return what lives of each extent, by its place among all."""
        live = np.maximum(self.arrays.live[: self._touched], 0)
        counts = np.bincount(self._place_of[: self._touched], live, len(self._extents))
        return counts.astype(np.int64)

    def _written(self) -> list[Extent]:
        """Return the extents of which all is written and nothing in a buffer."""
        held = {
            int(self._place_of[segment])
            for segment in self._in_buffer
            if segment >= 0 and self.arrays.buffer_of[segment] >= 0
        }
        return [each for each in self._sealed.values() if each.place not in held]

    def _collect_free(self) -> None:
        """Find the extents of which nothing lives any more."""
        if self._num_free() >= 2 * self._largest + 2:
            return
        live = self._live()
        for extent in self._written():
            if live[extent.place]:
                continue
            del self._sealed[extent.number]
            if extent is self._moving:
                self._moving = None
            if extent.holders or extent.has_name:
                self._leave(extent.segments)
                self._extents[extent.place] = None
            else:
                self._make_free(extent.renewed(self._next_number))

    def _replace_kept(self) -> None:
        """Ask for extents in the place of those that were left and are kept by somebody."""
        while self.num_segments < self._needs and self._num_free() < 2 * self._largest + 2:
            try:
                self._add_extent(self._largest)
            except OSError:
                return  # what is there may do; who finds nothing says so

    def _next_to_move(self) -> int | None:
        """Return a segment of which something lives, of the extent of which least does."""
        lives = self._moving_segments()
        if not lives:
            self._moving = None
            self._collect_free()
            self._replace_kept()
            extents, live = self._written(), self._live()
            shares = [live[each.place] / len(each.segments) for each in extents]
            if not extents or min(shares) >= self.arrays.per_segment:
                return None
            self._moving = extents[int(np.argmin(shares))]
            lives = self._moving_segments()
        return lives[0] if lives else None

    def _moving_segments(self) -> list[int]:
        if self._moving is None:
            return []
        segments = np.array(self._moving.segments)
        return list(segments[self.arrays.live[segments] > 0])

    def _read_segment(self, segment: int, image: Float32Array) -> None:
        try:
            file, place = int(self.files.files[segment]), int(self.files.offsets[segment])
            count = os.preadv(file, [memoryview(image)], place)
            if count != image.nbytes:
                raise OSError(errno.EIO, "it ends before what was written to it")
        except OSError as error:
            raise self._error("read", error) from error

    # What somebody wants to keep --------------------------------------------------------------

    def hold(self) -> HeldExtents | None:
        """Return the extents that are written, or given to be; they stay until they are released.

        The one that is being filled is among them where a quarter of it is. Nothing else may run
        beside this. None: there is no digest of what they hold.
        """
        if self.digest is None:
            return None
        extent = self._open
        if extent is not None and extent.written * _WORTH_SEALING >= len(extent.segments):
            self._give_to_write()
            if self._open is extent:
                rest = extent.segments[extent.written :]
                del extent.segments[extent.written :]
                with contextlib.suppress(OSError):
                    os.ftruncate(extent.descriptor, extent.written * 4 * self._words)
                self._leave(rest)
                self._seal(extent)
        extents = sorted(self._sealed.values(), key=lambda each: each.number)
        return HeldExtents(extents, 4 * self._words, self.arrays.per_segment)

    def can_adopt(self, path: Path, segment_bytes: int) -> bool:
        """Return whether an extent that was kept, of segments of some size, may be this table's."""
        try:
            is_near = os.stat(path).st_dev == os.stat(self._path).st_dev
        except OSError:
            return False
        return is_near and segment_bytes == 4 * self._words

    def adopt(self, path: Path, digests: list[bytes]) -> list[int]:
        """Take an extent that was kept as it lies; return the segments that it is.

        Nothing lives of it before `live` says so.

        Args:
            digests: of its segments.

        Raises:
            TierError: it can't be opened.
            MemoryError: there are more segments than records can be told apart in.
        """
        if self._touched + len(digests) > self._most:
            raise MemoryError(f"{self._name} can't have more than {_MOST_RECORDS:,} records")
        descriptor = opened_extent(path)
        if descriptor is None:
            raise TierError(f"{self._name} can't open {path}, in which a checkpoint has its rows")
        extent = self._extent_of_file(descriptor, len(digests))
        extent.digests, extent.has_name = digests, True
        extent.written = len(digests)
        self.arrays.live[extent.segments] = 0
        self._seal(extent)
        return extent.segments

    def end_adoption(self) -> None:
        """Ask the disk for what it takes to write beside the extents that were adopted.

        Raises:
            MemoryError: it has no room.
        """
        try:
            while self._num_free() < 2 * self._largest + 2:
                self._add_extent(self._largest)
        except OSError as error:
            raise MemoryError(f"{self._error('write', error)}") from error
        self._needs = max(self._needs, self.num_segments)

    def find_held(
        self, held: HeldExtents, places: Int32Array, rows: Int64Array, found: Int64Array
    ) -> None:
        """Write the records of rows as those of extents that are held follow one another.

        Args:
            places: of all rows, see `Slots`.
            found: int64[n], written; -1: a row is elsewhere.
        """
        find_held(
            places,
            rows,
            held.per_segment,
            self._extent_of,
            self.files.offsets,
            4 * self._words,
            held.numbers,
            held.first_segments,
            found,
        )

    def _error(self, what: str, error: OSError) -> TierError:
        return TierError(
            f"{self._name} can't {what} its rows below {self._path} ({error.strerror}"
            f"{self._kept_by_others()})."
            " Checkpoints are whole: see to the disk, or set another tiers.path, and go on from one"
        )


class _Images:
    """Memory for segments that are written anew: as many as there have been at once."""

    def __init__(self) -> None:
        self._free: list[Float32Array] = []
        self._guard = threading.Lock()

    @contextlib.contextmanager
    def lent(self, words: int) -> Iterator[Float32Array]:
        """Lend float32[words] that begins with a page."""
        with self._guard:
            image = self._free.pop() if self._free else aligned(words)
        if image.size < words:
            image = aligned(words)
        try:
            yield image[:words]
        finally:
            with self._guard:
                self._free.append(image)


_images = _Images()


@cache
def _writing() -> ThreadPoolExecutor:
    """The threads that write segments of all tables of this process."""
    return ThreadPoolExecutor(2, thread_name_prefix="tiers-write")


def _write(file: int, words: Float32Array, place: int, digest: Digest | None) -> bytes:
    """Write a segment; return its digest."""
    _write_all(file, words, place)
    return b"" if digest is None else digest(memoryview(words).cast("B"))


def _write_all(file: int, words: Float32Array, place: int) -> None:
    left = memoryview(words).cast("B")
    while left:
        count = os.pwrite(file, left, place)
        left, place = left[count:], place + count
