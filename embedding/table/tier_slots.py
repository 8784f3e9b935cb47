"""Which rows of a table are in memory, in which slot, and which of them are to leave it.

A row's *place* says where its values are: 0 nowhere, s + 1 in slot s of memory, -(n + 1) in record
n of the file. A slot has a row, or what was read of a record (see `tier_staged`), or is free.

Each row has a *score*, wherever it is: how often it was updated, halved with each *epoch*, in which
as many rows come into memory as it holds several times over. A hand goes round the slots and takes
rows whose score is below a bound that rises where it finds few of them, and falls where it finds
many: so those stay in memory that are updated most often, and those that come and go leave early.
Where rows are to leave by when they were updated last, the score is 1 or 0 and the bound 1: the
hand takes a row that was not updated since it went by.
"""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from numba import njit

Int32Array = npt.NDArray[np.int32]
Int64Array = npt.NDArray[np.int64]
UInt8Array = npt.NDArray[np.uint8]

# Places in the state of slots.
NUM_FREE, HAND, BOUND, SEEN, TAKEN, EPOCH, BROUGHT = range(7)
SLOT_STATE = 7
_ROWS_OF_EPOCH = 8  # times as many as there are slots
_PART_SEEN = 8  # of the slots, after which the bound is looked at
_FEW, _MANY = 8, 2  # of those seen: one in so many was taken


class Slots(NamedTuple):
    """Rows in memory.

    Args:
        places: int32[rows].
        scores: uint8[rows], of those that are not in memory; in the high half the epoch in which a
            score was last raised.
        heats: uint8[slots], the same of the row in each: what the hand looks at lies in its order.
        owners: int32[slots], the row in each, -1: none.
        pinned: uint8[slots], 1: it may not leave.
        free: int32[slots]: those with nothing, in the first places.
        state: int64[7]: how many these are, where the clock's hand is, the score below which rows
            leave, how many the hand has seen and taken with that bound, the epoch, and how many
            rows have come in it.
    """

    places: Int32Array
    scores: UInt8Array
    heats: UInt8Array
    owners: Int32Array
    pinned: UInt8Array
    free: Int32Array
    state: Int64Array


@njit(cache=True, nogil=True, inline="always")
def take_slot(slots: Slots, row: np.int64) -> np.int64:
    """Return a slot for a row that has none; there is one free."""
    slots.state[NUM_FREE] -= 1
    slot = slots.free[slots.state[NUM_FREE]]
    own(slots, slot, row)
    return np.int64(slot)


@njit(cache=True, nogil=True, inline="always")
def own(slots: Slots, slot: np.int64, row: np.int64) -> None:
    """Give a slot that is not free to a row."""
    slots.owners[slot] = row
    slots.places[row] = slot + 1
    slots.heats[slot] = slots.scores[row]
    slots.state[BROUGHT] += 1


@njit(cache=True, nogil=True, inline="always")
def free_slot(slots: Slots, slot: np.int64) -> None:
    """Say that a slot has nothing."""
    slots.owners[slot] = -1
    slots.pinned[slot] = 0
    slots.free[slots.state[NUM_FREE]] = slot
    slots.state[NUM_FREE] += 1


@njit(cache=True, nogil=True, inline="always")
def _score(both: np.uint8, epoch: np.int64) -> np.int64:
    """Return what is left of a score in a later epoch."""
    number = np.int64(both)
    return (number & 15) >> ((epoch - (number >> 4)) & 15)


@njit(cache=True, nogil=True, inline="always")
def _raised(both: np.uint8, epoch: np.int64, most: int) -> np.uint8:
    return np.uint8(((epoch & 15) << 4) | min(_score(both, epoch) + 1, most))


@njit(cache=True, nogil=True)
def touch(slots: Slots, rows: Int64Array, most: int, away: Int64Array) -> int:
    """Raise the scores of rows, and pin those in memory; write the others, return how many.

    Args:
        rows: int64[n]; -1: none.
        most: score that a row may have; 1: what counts is when it was updated last.
        away: int64[n], written from the first place on.
    """
    count = 0
    if slots.state[BROUGHT] >= _ROWS_OF_EPOCH * slots.owners.size:
        slots.state[BROUGHT] = 0
        slots.state[EPOCH] += most > 1
    epoch = slots.state[EPOCH]
    for row in rows:
        if row < 0:
            continue
        slot = np.int64(slots.places[row]) - 1
        if slot >= 0:
            slots.pinned[slot] = 1
            slots.heats[slot] = _raised(slots.heats[slot], epoch, most)
        else:
            away[count] = row
            count += slots.places[row] != 0
            if most > 1:
                slots.scores[row] = _raised(slots.scores[row], epoch, most)
    return count


@njit(cache=True, nogil=True)
def unpin(slots: Slots, rows: Int64Array) -> None:
    """Let rows leave memory again."""
    for row in rows:
        if row >= 0 and slots.places[row] > 0:
            slots.pinned[slots.places[row] - 1] = 0


@njit(cache=True, nogil=True, inline="always")
def next_to_leave(slots: Slots, most: int) -> np.int64:
    """Move the hand by one slot; return this where its row is to leave, else -1."""
    state = slots.state
    slot = state[HAND]
    state[HAND] = slot + 1 if slot + 1 < slots.owners.size else 0
    if slots.owners[slot] < 0 or slots.pinned[slot] != 0:
        return np.int64(-1)
    state[SEEN] += 1
    if state[SEEN] > slots.owners.size // _PART_SEEN:
        if state[TAKEN] * _FEW < state[SEEN]:
            state[BOUND] = min(state[BOUND] + 1, most + 1)
        elif state[TAKEN] * _MANY > state[SEEN]:
            state[BOUND] = max(state[BOUND] - 1, 1)
        state[SEEN], state[TAKEN] = 1, 0
    score = _score(slots.heats[slot], state[EPOCH])
    if most == 1 and score > 0:
        slots.heats[slot] = 0
        return np.int64(-1)
    if score >= state[BOUND]:
        return np.int64(-1)
    state[TAKEN] += 1
    return np.int64(slot)


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
