"""The segments of a table's file, and the kernels that move rows between it and memory.

Records are written one after another into segments and never changed: a row that is brought into
memory leaves its record behind, and one that leaves memory gets a new one. In front of each record
stands its row, so that what lives of a segment is known by reading it.
"""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from numba import njit

from embedding.kernels.disk_reads import Layout
from embedding.kernels.lines import copy_row
from embedding.table.tier_slots import (
    NUM_FREE,
    Slots,
    free_slot,
    next_to_leave,
    own,
    take_slot,
)
from embedding.table.tier_staged import Staged, ask, drop, set_of, unstage, way_of

Int32Array = npt.NDArray[np.int32]
Int64Array = npt.NDArray[np.int64]
Float32Array = npt.NDArray[np.float32]

# Places in the state of the file.
SEGMENT, BUFFER, FILLED, NUM_LIVE = range(4)
FREE = -1  # as the live records of a segment: it may be written


class Segments(NamedTuple):
    """The file's segments, and those that are in memory because they are not yet written.

    Args:
        live: int64[segments], records of each that are some row's; FREE: it may be written.
        buffer_of: int64[segments]: the buffer that holds all of a segment, or -1.
        buffers: float32[buffers, words of a segment].
        owners: int32, the same memory.
        state: int64[4]: the segment that is being filled, its buffer, records in it, and live
            records in all segments.
        layout: of records.
        per_segment: records.
    """

    live: Int64Array
    buffer_of: Int64Array
    buffers: Float32Array
    owners: Int32Array
    state: Int64Array
    layout: Layout
    per_segment: int


@njit(cache=True, nogil=True, inline="always")
def _word_of(layout: Layout, number: np.int64) -> np.int64:
    """Return where a record begins in its segment."""
    block, at = number // layout.per_block, number % layout.per_block
    return block * layout.block_words + at * layout.record_words


@njit(cache=True, nogil=True, inline="always")
def _append(
    slots: Slots,
    segments: Segments,
    row: np.int64,
    values: Float32Array,
    at: np.int64,
    buffers: Float32Array,
    owners: Int32Array,
) -> None:
    """Write a row, which begins at values[at], to the segment that is filled and has room.

    Args:
        buffers, owners: those of segments, flat.
    """
    state, layout = segments.state, segments.layout
    word = state[BUFFER] * segments.buffers.shape[1] + _word_of(layout, state[FILLED])
    owners[word] = row
    copy_row(values, at, layout.record_words - 1, buffers, word + 1)
    slots.places[row] = -(state[SEGMENT] * segments.per_segment + state[FILLED] + 1)
    segments.live[state[SEGMENT]] += 1
    state[FILLED] += 1
    state[NUM_LIVE] += 1


@njit(cache=True, nogil=True, inline="always")
def _leave(slots: Slots, segments: Segments, staged: Staged, record: np.int64) -> None:
    """Leave a record behind."""
    unstage(slots, staged, record)
    _forget(segments, record)


@njit(cache=True, nogil=True, inline="always")
def _forget(segments: Segments, record: np.int64) -> None:
    segments.live[record // segments.per_segment] -= 1
    segments.state[NUM_LIVE] -= 1


@njit(cache=True, nogil=True)
def demote(slots: Slots, segments: Segments, memory: Float32Array, needed: int, most: int) -> bool:
    """Write rows until so many slots are free; return False where the segment was full before.

    Args:
        most: score that a row may have, see `touch`.
    """
    width, words = memory.shape[1], memory.reshape(-1)
    buffers, owners = segments.buffers.reshape(-1), segments.owners.reshape(-1)
    while slots.state[NUM_FREE] < needed:
        if segments.state[FILLED] == segments.per_segment:
            return False
        slot = next_to_leave(slots, most)
        if slot >= 0:
            row = np.int64(slots.owners[slot])
            slots.scores[row] = slots.heats[slot]
            _append(slots, segments, row, words, slot * width, buffers, owners)
            free_slot(slots, slot)
    return True


@njit(cache=True, nogil=True)
def bring_staged(slots: Slots, segments: Segments, staged: Staged, rows: Int64Array) -> int:
    """Give rows that are staged the slots in which they are, and pin them; a row may come twice.

    Args:
        rows: int64[n], of the file; those that are not staged are moved to the first places.

    Returns:
        how many these are.
    """
    count = 0
    for row in rows:
        if slots.places[row] > 0:
            continue  # it came twice
        record = -np.int64(slots.places[row]) - 1
        place = set_of(staged, record)
        way = way_of(staged, place, record)
        if way < 0:
            rows[count] = row
            count += 1
            continue
        slot = drop(staged, place, way)
        own(slots, slot, row)
        slots.pinned[slot] = 1
        _forget(segments, record)
    return count


@njit(cache=True, nogil=True)
def bring(
    slots: Slots,
    segments: Segments,
    staged: Staged,
    memory: Float32Array,
    rows: Int64Array,
    values: Float32Array,
) -> None:
    """Give free slots to rows of the file, and write their values there."""
    width, words, copies = memory.shape[1], memory.reshape(-1), values.reshape(-1)
    for i in range(rows.size):
        place = np.int64(slots.places[rows[i]])
        if place > 0:
            continue  # it came twice
        _leave(slots, segments, staged, -place - 1)
        slot = take_slot(slots, rows[i])
        copy_row(copies, i * width, width, words, slot * width)


@njit(cache=True, nogil=True)
def slots_to_write(
    slots: Slots, segments: Segments, staged: Staged, rows: Int64Array, positions: Int64Array
) -> None:
    """Write the slot of each row, giving one to those that have none: what they held is lost."""
    for i in range(rows.size):
        place = np.int64(slots.places[rows[i]])
        if place > 0:
            positions[i] = place - 1
            continue
        if place < 0:
            _leave(slots, segments, staged, -place - 1)
        positions[i] = take_slot(slots, rows[i])


@njit(cache=True, nogil=True)
def release(slots: Slots, segments: Segments, staged: Staged, rows: Int64Array) -> None:
    """Forget the values of rows, -1: none; a row may come twice."""
    for row in rows:
        if row < 0 or slots.places[row] == 0:
            continue
        place = np.int64(slots.places[row])
        slots.places[row], slots.scores[row] = 0, 0
        if place < 0:
            _leave(slots, segments, staged, -place - 1)
        else:
            free_slot(slots, place - 1)


@njit(cache=True, nogil=True)
def move_live(
    slots: Slots,
    segments: Segments,
    staged: Staged,
    segment: int,
    values: Float32Array,
    rows: Int32Array,
    start: int,
) -> int:
    """Write what lives of a segment anew, from record `start` on; return where there was no room.

    Args:
        values: float32[words], all of the segment.
        rows: int32, the same memory.
    """
    buffers, owners = segments.buffers.reshape(-1), segments.owners.reshape(-1)
    for at in range(start, segments.per_segment):
        word = _word_of(segments.layout, at)
        row = np.int64(rows[word])
        record = segment * segments.per_segment + at
        if np.int64(slots.places[row]) != -(record + 1):
            continue
        if segments.state[FILLED] == segments.per_segment:
            return at
        _leave(slots, segments, staged, record)
        _append(slots, segments, row, values, word + 1, buffers, owners)
    return segments.per_segment


@njit(cache=True, nogil=True)
def from_memory(
    slots: Slots,
    segments: Segments,
    staged: Staged,
    memory: Float32Array,
    records: Int64Array,
    values: Float32Array,
    missing: Int64Array,
    evaluates: bool,
) -> int:
    """Copy records that are in a buffer or staged; write which are not, return how many.

    Args:
        values: float32[n, width], written.
        missing: int64[n], written from the first place on: numbers in `records`.
        evaluates: whether what was read ahead is done with: no gradients follow.
    """
    count, width, copies = 0, values.shape[1], values.reshape(-1)
    words, buffers, of_buffer = (
        memory.reshape(-1),
        segments.buffers.reshape(-1),
        segments.buffers.shape[1],
    )
    for i in range(records.size):
        record = records[i]
        buffer = segments.buffer_of[record // segments.per_segment]
        if buffer >= 0:
            word = _word_of(segments.layout, record % segments.per_segment) + 1
            copy_row(buffers, buffer * of_buffer + word, width, copies, i * width)
            continue
        place = set_of(staged, record)
        way = way_of(staged, place, record)
        if way < 0:
            missing[count] = i
            count += 1
            continue
        slot = np.int64(staged.slots[place, way])
        copy_row(words, slot * width, width, copies, i * width)
        if evaluates and staged.ahead[place, way] != 0:
            free_slot(slots, drop(staged, place, way))
        else:
            ask(staged, place, way)
    return count


@njit(cache=True, nogil=True)
def not_in_memory(
    segments: Segments, staged: Staged, records: Int64Array, missing: Int64Array
) -> int:
    """Write which records are in no buffer and not staged, as `from_memory` does."""
    count = 0
    for i in range(records.size):
        record = records[i]
        in_buffer = segments.buffer_of[record // segments.per_segment] >= 0
        if not in_buffer and way_of(staged, set_of(staged, record), record) < 0:
            missing[count] = i
            count += 1
    return count


@njit(cache=True, nogil=True)
def find_held(
    places: Int32Array,
    rows: Int64Array,
    per_segment: int,
    extent_of: Int64Array,
    offsets: Int64Array,
    segment_bytes: int,
    held: Int64Array,
    first_segments: Int64Array,
    found: Int64Array,
) -> None:
    """Write which records rows are of extents that are held, as these follow one another.

    Args:
        extent_of, offsets: int64[segments]: the number of each one's extent plus one, and where it
            begins there.
        held: int64[extents], ascending: their numbers.
        first_segments: int64[extents + 1], how many segments those before have.
        found: int64[rows], written; -1: a row is in none of them.
    """
    for i in range(rows.size):
        found[i] = -1
        record = -np.int64(places[rows[i]]) - 1
        if record < 0:
            continue
        segment = record // per_segment
        number = extent_of[segment] - 1
        low, high = 0, held.size
        while low < high:
            middle = (low + high) // 2
            if held[middle] < number:
                low = middle + 1
            else:
                high = middle
        if low < held.size and held[low] == number:
            at = first_segments[low] + offsets[segment] // segment_bytes
            found[i] = at * per_segment + record % per_segment
