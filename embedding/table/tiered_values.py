"""The vectors and slots of a table of which only some are in memory; see `tier_slots`.

Pulls read and change nothing that is seen: what they read of the file stays in slots of memory that
are free, since the gradients of the same keys come next (`tier_staged`). So does what is prefetched
for a pull that is to come. An apply brings the rows that it updates into memory, where most of them
are by then, and writes others to the file until enough slots are free for what is read next. Which
ones those are changes no value.
"""

import threading
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from embedding.kernels.row_copy import copy_rows
from embedding.spec.tiers import Tiers
from embedding.table.precision import read_vectors
from embedding.table.reservation import reserve
from embedding.table.tier_extents import Digest, HeldExtents
from embedding.table.tier_file import BLOCK_BYTES, BUFFERS, TierFile, layout_of
from embedding.table.tier_segments import (
    NUM_LIVE,
    bring,
    bring_staged,
    demote,
    from_memory,
    not_in_memory,
    release,
    slots_to_write,
)
from embedding.table.tier_slots import BOUND, NUM_FREE, SLOT_STATE, Slots, split, touch, unpin
from embedding.table.tier_staged import (
    BYTES_A_SLOT,
    NUM_LOST,
    NUM_STAGED,
    begin_apply,
    room_ahead,
    stage,
    staged_in,
    to_keep_free,
)

Float32Array = npt.NDArray[np.float32]
Int64Array = npt.NDArray[np.int64]

PLACE_BYTES = 5  # of each row, wherever it is: its place and its score
_SLOT_BYTES = 10 + BYTES_A_SLOT  # row, score, whether it may leave, place among the free ones
_MOST_SCORE = {"frequency": 15, "recency": 1}
_MOST_AT_ONCE = 16384
_LEAST_SLOTS = 16


@dataclass(frozen=True, slots=True)
class TierFigures:
    """Where rows are, and where those were that were asked for; `reads` are of the disk.

    Args:
        memory_rows, disk_rows: rows in memory, and in the file.
        memory_bytes, disk_bytes: what these take, buffers and free room included.
        hits: rows that were read, or updated, in memory.
        cached: that were in a buffer, or read before.
        reads: that were read from the disk.
        bytes_written: to the disk.
        prefetched: rows that were read from the disk before they were asked for.
        prefetched_lost: of these, that were forgotten before they were.
    """

    memory_rows: int = 0
    disk_rows: int = 0
    memory_bytes: int = 0
    disk_bytes: int = 0
    hits: int = 0
    cached: int = 0
    reads: int = 0
    bytes_written: int = 0
    prefetched: int = 0
    prefetched_lost: int = 0


def shares_of(tiers: Tiers, width: int, *, name: str) -> tuple[int, int]:
    """Share a budget out: return slots of rows, and bytes of a segment.

    Raises:
        ValueError: it has no room for the rows that are worked on.
    """
    row_bytes, budget = 4 * width, tiers.memory_bytes
    block_bytes = 4 * layout_of(width).block_words
    segment_bytes = min(max(budget // 32, BLOCK_BYTES), 1 << 20)
    segment_bytes = -(-segment_bytes // block_bytes) * block_bytes
    slots = (budget - BUFFERS * segment_bytes) // (row_bytes + _SLOT_BYTES)
    if slots < _LEAST_SLOTS:
        raise ValueError(
            f"tiers.memory_bytes of {name} is {budget}, and has no room for {_LEAST_SLOTS} rows"
            f" of {row_bytes} bytes and {BUFFERS} buffers of {segment_bytes}; raise it"
        )
    return slots, segment_bytes


class TieredValues:
    """The values of `Rows`, by row.

    Reads may run beside one another, not beside a change.

    Args:
        width: float32 values of a row.
        capacity: rows that there can be.
        tiers: what memory may hold, and where the others are.
        name: of the table, for errors.

    Attributes:
        memory: float32[slots, width].
        slots: which row is where.
        at_once: rows that may be brought into memory together.

    Raises:
        ValueError: memory_bytes has no room for the rows that are worked on.
        TierError: no file can be made.
    """

    def __init__(self, width: int, capacity: int, tiers: Tiers, *, name: str) -> None:
        number, segment_bytes = shares_of(tiers, width, name=name)
        self._most_score = _MOST_SCORE[tiers.policy]
        self._width = width
        self._file = TierFile(tiers.path, width, segment_bytes=segment_bytes, name=name)
        self.memory: Float32Array = reserve(number, width, np.float32)
        self.slots = Slots(
            places=reserve(capacity, 1, np.int32).reshape(-1),
            scores=reserve(capacity, 1, np.uint8).reshape(-1),
            heats=np.zeros(number, np.uint8),
            owners=np.full(number, -1, np.int32),
            pinned=np.zeros(number, np.uint8),
            free=np.arange(number - 1, -1, -1, dtype=np.int32),
            state=np.zeros(SLOT_STATE, np.int64),
        )
        self.slots.state[NUM_FREE], self.slots.state[BOUND] = number, 1
        self._staged = staged_in(number)
        # With half of the slots at most for what is staged, there is room for all of these.
        self.at_once = min(_MOST_AT_ONCE, 3 * number // 8)
        # Of what is staged, of the slots that are free where nothing else is changed, of counts.
        self._guard = threading.Lock()
        self._hits = self._cached = self._reads = self._prefetched = 0

    # Reads ------------------------------------------------------------------------------------

    def read_vectors(
        self, rows: Int64Array, precision: int, vectors: Float32Array, *, evaluates: bool
    ) -> None:
        """Write the vectors, float32[n, dim], of rows, -1: none, for a pull.

        Args:
            evaluates: whether no gradients follow.

        Raises:
            TierError: the file can't be read; of any read.
        """
        positions, away, values = self._look(rows, stages=not evaluates, evaluates=evaluates)
        read_vectors(self.memory, positions, precision, vectors)
        if len(values):
            read_vectors(values, away, precision, vectors)

    def read(self, rows: Int64Array) -> Float32Array:
        """Return all values of rows: float32[n, width]."""
        found = np.empty((rows.size, self._width), np.float32)
        positions, away, values = self._look(rows, stages=False, evaluates=False)
        copy_rows(self.memory, positions, 0, found)
        if len(values):
            copy_rows(values, away, 0, found)
        return found

    def _look(
        self, rows: Int64Array, *, stages: bool, evaluates: bool
    ) -> tuple[Int64Array, Int64Array, Float32Array]:
        positions, away, records = np.empty((3, rows.size), np.int64)
        count = split(self.slots, rows, positions, away, records)
        hits = int(np.count_nonzero(positions >= 0))
        values = self._fetch(records[:count], hits, stages=stages, evaluates=evaluates)
        return positions, away, values

    def _fetch(
        self, records: Int64Array, hits: int, *, stages: bool, evaluates: bool = False
    ) -> Float32Array:
        """Return the values of records, from memory as far as they are there."""
        values = np.empty((records.size, self._width), np.float32)
        if not records.size:
            with self._guard:
                self._hits += hits
            return values
        missing = np.empty(records.size, np.int64)
        slots, segments, staged = self.slots, self._file.arrays, self._staged
        with self._guard:
            count = from_memory(
                slots, segments, staged, self.memory, records, values, missing, evaluates
            )
            missing = missing[:count]
            self._hits += hits
            self._cached += records.size - count
            self._reads += count
        if count:
            read = np.empty((count, self._width), np.float32)
            self._file.read(records[missing], read)
            values[missing] = read
            if stages:
                with self._guard:
                    stage(slots, staged, self.memory, records, values, missing, False)
        return values

    def prefetch(self, rows: Int64Array) -> None:
        """Read rows, -1: none, before they are asked for, as many as there is room for.

        Raises:
            TierError: the file can't be read.
        """
        slots, segments, staged = self.slots, self._file.arrays, self._staged
        positions, away, records = np.empty((3, rows.size), np.int64)
        records = records[: split(slots, rows, positions, away, records)]
        missing = np.empty(records.size, np.int64)
        with self._guard:
            count = not_in_memory(segments, staged, records, missing)
            missing = missing[: room_ahead(slots, staged, count)]
        if not missing.size:
            return
        records = records[missing]
        values = np.empty((records.size, self._width), np.float32)
        self._file.read(records, values)
        with self._guard:
            which = np.arange(records.size)
            stage(slots, staged, self.memory, records, values, which, True)
            self._prefetched += records.size

    # Changes ----------------------------------------------------------------------------------

    def make_room(self, num_rows: int) -> None:
        """Make room for so many rows in all.

        Raises:
            MemoryError: the disk has none; nothing has changed.
        """
        if not self.has_room(num_rows):
            self._file.make_room(self._most_records(num_rows))

    def has_room(self, num_rows: int) -> bool:
        """Return whether there is room for so many rows in all without asking the disk."""
        return self._file.has_room(self._most_records(num_rows))

    def _most_records(self, num_rows: int) -> int:
        # Rows leave memory before others that come in its place have left their records.
        beyond = num_rows - len(self.memory) + self.at_once
        return beyond + 2 * self.at_once if beyond > 0 else 0

    def bring(self, rows: Int64Array, num_new: int) -> None:
        """Bring rows, -1: none, into memory, and keep slots for others that will be made.

        There are at most `at_once` of both.

        Raises:
            TierError: the file can't be read or written.
        """
        slots, segments, staged = self.slots, self._file.arrays, self._staged
        away = np.empty(rows.size, np.int64)
        away = away[: touch(slots, rows, self._most_score, away)]
        hits = int(np.count_nonzero(rows >= 0)) - away.size
        begin_apply(slots, staged)
        try:
            rest = away[: bring_staged(slots, segments, staged, away)]
            self._cached += away.size - rest.size
            values = self._fetch(-(slots.places[rest].astype(np.int64) + 1), hits, stages=False)
            self._free_slots(rest.size + num_new)
            if rest.size:
                # What lives of a segment may have been written anew meanwhile, so by row.
                bring(slots, segments, staged, self.memory, rest, values)
        finally:
            unpin(slots, rows)

    def overwrite(self, rows: Int64Array) -> Int64Array:
        """Return the slots of rows, int64[n], whose values the caller writes; at most `at_once`."""
        touch(self.slots, rows, self._most_score, np.empty(rows.size, np.int64))
        try:
            self._free_slots(int(np.count_nonzero(self.slots.places[rows] <= 0)))
        finally:
            unpin(self.slots, rows)
        positions = np.empty(rows.size, np.int64)
        slots_to_write(self.slots, self._file.arrays, self._staged, rows, positions)
        return positions

    def release(self, rows: Int64Array) -> None:
        """Forget the values of rows, -1: none, that are removed."""
        release(self.slots, self._file.arrays, self._staged, rows)

    def _free_slots(self, number: int) -> None:
        """Have so many slots free, and those that are kept for what will be read."""
        segments, most = self._file.arrays, self._most_score
        number += to_keep_free(self.slots, self._staged)
        while not demote(self.slots, segments, self.memory, number, most):
            self._file.open_next(self.slots, self._staged)

    # What somebody wants to keep --------------------------------------------------------------

    def digest_segments(self, digest: Digest) -> None:
        """Compute a digest of what is written from now on, so that it can be kept."""
        self._file.digest = digest

    def hold(self) -> HeldExtents | None:
        """Return the extents that are there, see `TierFile.hold`."""
        return self._file.hold()

    def records_in(self, held: HeldExtents, rows: Int64Array) -> Int64Array:
        """Return where rows are in extents that are held, as their records follow one another.

        Returns:
            int64[n], -1 of a row that is elsewhere.
        """
        found = np.empty(rows.size, np.int64)
        self._file.find_held(held, self.slots.places, rows, found)
        return found

    def can_adopt(self, path: Path, segment_bytes: int) -> bool:
        """Return whether an extent can be taken as it lies, see `TierFile.can_adopt`."""
        return self._file.can_adopt(path, segment_bytes)

    def adopt_extent(self, path: Path, digests: list[bytes]) -> list[int]:
        """Take an extent as it lies, see `TierFile.adopt`."""
        return self._file.adopt(path, digests)

    def adopt(self, rows: Int64Array, segment: int, records: Int64Array) -> None:
        """Say of rows that have no values that these are in records of a segment.

        Args:
            records: int64[n], of those of the segment, each once.
        """
        arrays = self._file.arrays
        self.slots.places[rows] = -(segment * arrays.per_segment + records + 1)
        arrays.live[segment] += rows.size
        arrays.state[NUM_LIVE] += rows.size

    def end_adoption(self) -> None:
        """Make room for what is written from now on, see `TierFile.end_adoption`."""
        self._file.end_adoption()

    # Questions --------------------------------------------------------------------------------

    def figures(self) -> TierFigures:
        """Return where rows are."""
        with self._guard:
            staged = self._staged.state
            return TierFigures(
                memory_rows=self._num_used - int(staged[NUM_STAGED]),
                disk_rows=int(self._file.arrays.state[NUM_LIVE]),
                memory_bytes=self.nbytes,
                disk_bytes=self._file.nbytes,
                hits=self._hits,
                cached=self._cached,
                reads=self._reads,
                bytes_written=self._file.bytes_written,
                prefetched=self._prefetched,
                prefetched_lost=int(staged[NUM_LOST]),
            )

    @property
    def nbytes(self) -> int:
        """Bytes of memory that values and buffers have taken, at most."""
        return self._num_used * (4 * self._width + _SLOT_BYTES) + self._file.memory_bytes

    @property
    def _num_used(self) -> int:
        return len(self.memory) - int(self.slots.state[NUM_FREE])
