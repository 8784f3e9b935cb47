"""Which rows of a table are in memory and which in a file: arrays, and the kernels that move them.

A row's *place* says where its values are: 0 nowhere, s + 1 in slot s of memory, -(n + 1) in record
n of the file. Records are written one after another into segments and never changed: a row that is
brought into memory leaves its record behind, and one that leaves memory gets a new one. In front of
each record stands its row, so that what lives of a segment is known by reading it.

What leaves memory is decided by a clock: a hand goes round the slots, and takes a row whose heat is
0, else the heat falls by one. Each update of a row in memory raises its heat by one, up to a most.
"""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from numba import njit

from embedding.kernels.disk_reads import Layout
from embedding.kernels.mixing import mix64

Int32Array = npt.NDArray[np.int32]
Int64Array = npt.NDArray[np.int64]
UInt8Array = npt.NDArray[np.uint8]
Float32Array = npt.NDArray[np.float32]

NUM_FREE, HAND = range(2)  # places in the state of slots
# Places in the state of the file.
SEGMENT, BUFFER, FILLED, NUM_LIVE, NUM_AHEAD, NUM_LOST = range(6)
WAYS = 4  # records that one set of the cache holds
FREE = -1  # as the live records of a segment: it may be written
_PINNED, _HEAT = np.uint8(0x80), np.uint8(0x7F)


class Slots(NamedTuple):
    """Rows in memory.

    Args:
        places: int32[rows].
        owners: int32[slots], the row in each, -1: none.
        heats: uint8[slots].
        free: int32[slots]: those without a row, in the first places.
        state: int64[2]: how many these are, and where the clock's hand is.
    """

    places: Int32Array
    owners: Int32Array
    heats: UInt8Array
    free: Int32Array
    state: Int64Array


class Segments(NamedTuple):
    """The file's segments, and those that are in memory because they are not yet written.

    Args:
        live: int64[segments], records of each that are some row's; FREE: it may be written.
        buffer_of: int64[segments]: the buffer that holds all of a segment, or -1.
        buffers: float32[buffers, words of a segment].
        owners: int32, the same memory.
        tags: int64[sets, WAYS]: records in the cache plus one, 0: none.
        turns: uint8[sets]: which goes next.
        ahead: uint8[sets, WAYS]: 1 where a record was read before it was asked for, until it is.
        cached: float32[sets * WAYS, width].
        state: int64[6]: the segment that is being filled, its buffer, records in it, live records
            in all segments, how many of the cache are ahead, and how many were when they left it.
        layout: of records.
        per_segment: records.
    """

    live: Int64Array
    buffer_of: Int64Array
    buffers: Float32Array
    owners: Int32Array
    tags: Int64Array
    turns: UInt8Array
    ahead: UInt8Array
    cached: Float32Array
    state: Int64Array
    layout: Layout
    per_segment: int


@njit(cache=True, nogil=True, inline="always")
def take_slot(slots: Slots, row: np.int64) -> np.int64:
    """Return a slot for a row that has none; there is one free."""
    slots.state[NUM_FREE] -= 1
    slot = slots.free[slots.state[NUM_FREE]]
    slots.owners[slot], slots.heats[slot] = row, 0
    slots.places[row] = slot + 1
    return np.int64(slot)


@njit(cache=True, nogil=True)
def touch(slots: Slots, rows: Int64Array, most: int, away: Int64Array) -> int:
    """Warm and pin rows that are in memory; write the others that are anywhere, return how many.

    Args:
        rows: int64[n]; -1: none.
        most: heat that a row may have.
        away: int64[n], written from the first place on.
    """
    count = 0
    for row in rows:
        if row >= 0:
            place = slots.places[row]
            if place > 0:
                heat = min(int(slots.heats[place - 1] & _HEAT) + 1, most)
                slots.heats[place - 1] = np.uint8(heat) | _PINNED
            else:
                away[count] = row
                count += place != 0
    return count


@njit(cache=True, nogil=True)
def unpin(slots: Slots, rows: Int64Array) -> None:
    """Let rows leave memory again."""
    for row in rows:
        if row >= 0 and slots.places[row] > 0:
            slots.heats[slots.places[row] - 1] &= _HEAT


@njit(cache=True, nogil=True, inline="always")
def _word_of(layout: Layout, number: np.int64) -> np.int64:
    """Return where a record begins in its segment."""
    block, at = number // layout.per_block, number % layout.per_block
    return block * layout.block_words + at * layout.record_words


@njit(cache=True, nogil=True, inline="always")
def _set_of(segments: Segments, record: np.int64) -> np.int64:
    return np.int64(mix64(np.uint64(record)) % np.uint64(segments.tags.shape[0]))


@njit(cache=True, nogil=True, inline="always")
def _way_of(segments: Segments, place: np.int64, record: np.int64) -> np.int64:
    """Return which record of a set of the cache one is, -1: none."""
    found = np.int64(-1)
    for way in range(WAYS):
        if segments.tags[place, way] == record + 1:
            found = np.int64(way)
    return found


@njit(cache=True, nogil=True, inline="always")
def _uncache(segments: Segments, record: np.int64) -> None:
    """Drop a record from the cache, where it is there."""
    place = _set_of(segments, record)
    way = _way_of(segments, place, record)
    if way >= 0:
        segments.tags[place, way] = 0
        segments.state[NUM_AHEAD] -= segments.ahead[place, way]
        segments.ahead[place, way] = 0


@njit(cache=True, nogil=True, inline="always")
def _append(
    slots: Slots, segments: Segments, row: np.int64, values: Float32Array, at: np.int64
) -> None:
    """Write a row to the segment that is being filled, which has room."""
    state = segments.state
    record = state[SEGMENT] * segments.per_segment + state[FILLED]
    word = _word_of(segments.layout, state[FILLED])
    segments.owners[state[BUFFER], word] = row
    for c in range(values.shape[1]):
        segments.buffers[state[BUFFER], word + 1 + c] = values[at, c]
    slots.places[row] = -(record + 1)
    segments.live[state[SEGMENT]] += 1
    state[FILLED] += 1
    state[NUM_LIVE] += 1
    _uncache(segments, record)  # what was in this record before may still be there


@njit(cache=True, nogil=True, inline="always")
def _leave(segments: Segments, record: np.int64) -> None:
    """Leave a record behind."""
    segments.live[record // segments.per_segment] -= 1
    segments.state[NUM_LIVE] -= 1


@njit(cache=True, nogil=True)
def demote(slots: Slots, segments: Segments, memory: Float32Array, needed: int) -> bool:
    """Write rows until so many slots are free; return False where the segment was full before."""
    state, heats = slots.state, slots.heats
    while state[NUM_FREE] < needed:
        if segments.state[FILLED] == segments.per_segment:
            return False
        slot = state[HAND]
        state[HAND] = slot + 1 if slot + 1 < heats.size else 0
        row = np.int64(slots.owners[slot])
        if row < 0 or heats[slot] & _PINNED != 0:
            continue
        if heats[slot] > 0:
            heats[slot] -= 1
            continue
        _append(slots, segments, row, memory, slot)
        slots.owners[slot] = -1
        slots.free[state[NUM_FREE]] = slot
        state[NUM_FREE] += 1
    return True


@njit(cache=True, nogil=True)
def promote(
    slots: Slots, segments: Segments, memory: Float32Array, rows: Int64Array, values: Float32Array
) -> None:
    """Give slots to rows that are in the file, and write their values there."""
    for i in range(rows.size):
        place = np.int64(slots.places[rows[i]])
        if place > 0:
            continue  # it came twice
        _leave(segments, -place - 1)
        _uncache(segments, -place - 1)  # so that what is asked for next has room there
        slot = take_slot(slots, rows[i])
        for c in range(values.shape[1]):
            memory[slot, c] = values[i, c]


@njit(cache=True, nogil=True)
def slots_to_write(
    slots: Slots, segments: Segments, rows: Int64Array, positions: Int64Array
) -> None:
    """Write the slot of each row, giving one to those that have none: what they held is lost."""
    for i in range(rows.size):
        place = np.int64(slots.places[rows[i]])
        if place > 0:
            positions[i] = place - 1
            continue
        if place < 0:
            _leave(segments, -place - 1)
        positions[i] = take_slot(slots, rows[i])


@njit(cache=True, nogil=True)
def release(slots: Slots, segments: Segments, rows: Int64Array) -> None:
    """Forget the values of rows, -1: none; a row may come twice."""
    for row in rows:
        if row < 0 or slots.places[row] == 0:
            continue
        place = np.int64(slots.places[row])
        slots.places[row] = 0
        if place < 0:
            _leave(segments, -place - 1)
        else:
            slots.owners[place - 1] = -1
            slots.heats[place - 1] = 0
            slots.free[slots.state[NUM_FREE]] = place - 1
            slots.state[NUM_FREE] += 1


@njit(cache=True, nogil=True)
def move_live(
    slots: Slots,
    segments: Segments,
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
    width = segments.cached.shape[1]
    for at in range(start, segments.per_segment):
        word = _word_of(segments.layout, at)
        row = np.int64(rows[word])
        record = segment * segments.per_segment + at
        if np.int64(slots.places[row]) != -(record + 1):
            continue
        if segments.state[FILLED] == segments.per_segment:
            return at
        _leave(segments, record)
        _append(slots, segments, row, values[word + 1 : word + 1 + width].reshape(1, width), 0)
    return segments.per_segment


@njit(cache=True, nogil=True)
def split(
    slots: Slots, rows: Int64Array, positions: Int64Array, away: Int64Array, records: Int64Array
) -> int:
    """Write where the values of rows are; -1 where there is no row, or they are elsewhere.

    Args:
        positions: int64[n], written: slots of memory.
        away: int64[n], written: places in `records` of what is in the file.
        records: int64[n], written from the first place on.

    Returns:
        how many records.
    """
    count = 0
    for i in range(rows.size):
        positions[i] = away[i] = -1
        if rows[i] >= 0:
            place = np.int64(slots.places[rows[i]])
            if place > 0:
                positions[i] = place - 1
            elif place < 0:
                away[i], records[count] = count, -place - 1
                count += 1
    return count


@njit(cache=True, nogil=True)
def from_memory(
    segments: Segments, records: Int64Array, values: Float32Array, missing: Int64Array
) -> int:
    """Copy records that are in a buffer or in the cache; write which are not, return how many.

    Args:
        values: float32[n, width], written.
        missing: int64[n], written from the first place on: numbers in `records`.
    """
    count = 0
    for i in range(records.size):
        record = records[i]
        buffer = segments.buffer_of[record // segments.per_segment]
        if buffer >= 0:
            word = _word_of(segments.layout, record % segments.per_segment) + 1
            for c in range(values.shape[1]):
                values[i, c] = segments.buffers[buffer, word + c]
            continue
        place = _set_of(segments, record)
        way = _way_of(segments, place, record)
        if way < 0:
            missing[count] = i
            count += 1
            continue
        segments.state[NUM_AHEAD] -= segments.ahead[place, way]
        segments.ahead[place, way] = 0
        for c in range(values.shape[1]):
            values[i, c] = segments.cached[place * WAYS + way, c]
    return count


@njit(cache=True, nogil=True)
def not_in_memory(segments: Segments, records: Int64Array, missing: Int64Array) -> int:
    """Write which records are in no buffer and not in the cache, as `from_memory` does."""
    count = 0
    for i in range(records.size):
        record = records[i]
        in_buffer = segments.buffer_of[record // segments.per_segment] >= 0
        if not in_buffer and _way_of(segments, _set_of(segments, record), record) < 0:
            missing[count] = i
            count += 1
    return count


@njit(cache=True, nogil=True)
def keep(
    segments: Segments,
    records: Int64Array,
    values: Float32Array,
    which: Int64Array,
    ahead: bool,
) -> None:
    """Put records that were read into the cache.

    Args:
        values: float32[n, width].
        which: int64[any], numbers in `records`.
        ahead: whether nobody has asked for them yet.
    """
    for i in which:
        record = records[i]
        place = _set_of(segments, record)
        if _way_of(segments, place, record) >= 0:
            continue  # read twice at once
        turn = _way_of(segments, place, np.int64(-1))  # one that is free
        if turn < 0:
            turn = np.int64(segments.turns[place])
            segments.turns[place] = (turn + 1) % WAYS
            segments.state[NUM_AHEAD] -= segments.ahead[place, turn]
            segments.state[NUM_LOST] += segments.ahead[place, turn]
        segments.tags[place, turn] = record + 1
        segments.ahead[place, turn] = ahead
        segments.state[NUM_AHEAD] += ahead
        for c in range(values.shape[1]):
            segments.cached[place * WAYS + turn, c] = values[i, c]
