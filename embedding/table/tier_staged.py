"""What was read of a table's file and is still there, in slots of memory: the rows of a pull.

They are read ahead of a pull, or by one, and the gradients of their keys come next: an apply then
gives them the slot in which they lie (`tier_segments.bring_staged`). Until then their place is the
record; nothing that is seen depends on what is staged. Which record is in which slot is a table of
sets by the record's hash.

How many slots are kept for it follows from what is wanted: as many as were taken, or missed, at one
time before the last updates, a sixteenth of all at least and half of them at most. What nobody has
asked for or updated for a while leaves (`_sweep`), as that of batches which were dropped.
"""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from numba import njit

from embedding.kernels.lines import copy_row
from embedding.kernels.mixing import mix64
from embedding.table.tier_slots import NUM_FREE, Slots, free_slot

Int32Array = npt.NDArray[np.int32]
Int64Array = npt.NDArray[np.int64]
UInt8Array = npt.NDArray[np.uint8]
Float32Array = npt.NDArray[np.float32]

# Places in the state of what is staged.
NUM_STAGED, NUM_AHEAD, NUM_LOST, NUM_MISSED, RESERVED, NOW, SWEPT = range(7)
WAYS = 8
BYTES_A_SLOT = 7  # of memory, for which there are two thirds of an entry
_LIFE = 32  # applies
_SWEEPS = 32  # in so many applies all sets are looked at
_SPARE = 8  # one slot beside so many that are wanted, which is not for what is read ahead
_LEAST_PART = 16  # of all slots, which are kept at least
_SLOWLY = 16  # the part by which what is kept shrinks with an apply


class Staged(NamedTuple):
    """What is staged.

    Args:
        tags: int32[sets, WAYS]: records plus one, 0: none.
        slots: int32[sets, WAYS]: of memory, in which their values are.
        ahead: uint8[sets, WAYS]: 1 where a record was read before it was asked for, until it is.
        ages: uint8[sets, WAYS]: the apply, modulo 256, after which it was last read or asked for.
        state: int64[7]: how many are staged, and of these ahead; how many of the latter left unused
            so far; how many found no room since the last apply; slots to keep for all; the number
            of the apply; and the set up to which the last one swept.
    """

    tags: Int32Array
    slots: Int32Array
    ahead: UInt8Array
    ages: UInt8Array
    state: Int64Array


def staged_in(num_slots: int) -> Staged:
    """Return a table of what is staged in so many slots: nothing."""
    shape = (num_slots // 12 + 1, WAYS)
    return Staged(
        np.zeros(shape, np.int32),
        np.zeros(shape, np.int32),
        np.zeros(shape, np.uint8),
        np.zeros(shape, np.uint8),
        np.zeros(7, np.int64),
    )


@njit(cache=True, nogil=True, inline="always")
def most_staged(slots: Slots) -> np.int64:
    """Return how many may be staged at one time."""
    return np.int64(slots.owners.size // 2)


@njit(cache=True, nogil=True, inline="always")
def set_of(staged: Staged, record: np.int64) -> np.int64:
    return np.int64(mix64(np.uint64(record)) % np.uint64(staged.tags.shape[0]))


@njit(cache=True, nogil=True, inline="always")
def way_of(staged: Staged, place: np.int64, record: np.int64) -> np.int64:
    """Return which entry of a set a record has, -1: none."""
    found = np.int64(-1)
    for way in range(WAYS):
        if staged.tags[place, way] == record + 1:
            found = np.int64(way)
    return found


@njit(cache=True, nogil=True, inline="always")
def ask(staged: Staged, place: np.int64, way: np.int64) -> None:
    """Note that somebody asked for it."""
    staged.state[NUM_AHEAD] -= staged.ahead[place, way]
    staged.ahead[place, way] = 0
    staged.ages[place, way] = np.uint8(staged.state[NOW] & 255)


@njit(cache=True, nogil=True, inline="always")
def drop(staged: Staged, place: np.int64, way: np.int64) -> np.int64:
    """Forget an entry; return its slot, which is the caller's."""
    staged.tags[place, way] = 0
    staged.state[NUM_STAGED] -= 1
    staged.state[NUM_AHEAD] -= staged.ahead[place, way]
    staged.ahead[place, way] = 0
    return np.int64(staged.slots[place, way])


@njit(cache=True, nogil=True, inline="always")
def unstage(slots: Slots, staged: Staged, record: np.int64) -> None:
    """Drop a record that is left, where it is staged."""
    place = set_of(staged, record)
    way = way_of(staged, place, record)
    if way >= 0:
        free_slot(slots, drop(staged, place, way))


@njit(cache=True, nogil=True, inline="always")
def _oldest(staged: Staged, place: np.int64) -> np.int64:
    """Return the entry of a full set that was asked for longest ago, -1: it was of late."""
    found, age_of_it = np.int64(-1), np.int64(1)
    for way in range(WAYS):
        age = (staged.state[NOW] - staged.ages[place, way]) & 255
        if age > age_of_it:
            found, age_of_it = np.int64(way), age
    return found


@njit(cache=True, nogil=True)
def stage(
    slots: Slots,
    staged: Staged,
    memory: Float32Array,
    records: Int64Array,
    values: Float32Array,
    which: Int64Array,
    ahead: bool,
) -> None:
    """Keep records that were read, as far as there is room.

    Args:
        values: float32[n, width].
        which: int64[any], numbers in `records`.
        ahead: whether nobody has asked for them yet.
    """
    state, width = staged.state, memory.shape[1]
    words, copies = memory.reshape(-1), values.reshape(-1)
    for i in which:
        place = set_of(staged, records[i])
        if way_of(staged, place, records[i]) >= 0:
            continue  # read twice at once
        way = way_of(staged, place, np.int64(-1))  # one that is free
        if way < 0:
            way = _oldest(staged, place)
            if way >= 0:
                state[NUM_LOST] += staged.ahead[place, way]
                free_slot(slots, drop(staged, place, way))
        has_room = slots.state[NUM_FREE] > 0 and state[NUM_STAGED] < most_staged(slots)
        if way < 0 or not has_room:
            state[NUM_MISSED] += 1
            continue
        slots.state[NUM_FREE] -= 1
        slot = slots.free[slots.state[NUM_FREE]]
        copy_row(copies, i * width, width, words, slot * width)
        staged.tags[place, way] = records[i] + 1
        staged.slots[place, way] = slot
        staged.ahead[place, way] = ahead
        staged.ages[place, way] = np.uint8(state[NOW] & 255)
        state[NUM_STAGED] += 1
        state[NUM_AHEAD] += ahead


@njit(cache=True, nogil=True)
def room_ahead(slots: Slots, staged: Staged, wanted: int) -> int:
    """Return how many of those wanted may be read ahead; some are left to what is asked for."""
    left = staged.state[RESERVED] // (_SPARE + 1)
    free = min(slots.state[NUM_FREE], most_staged(slots) - staged.state[NUM_STAGED]) - left
    room = min(max(free, 0), wanted)
    staged.state[NUM_MISSED] += wanted - room
    return int(room)


@njit(cache=True, nogil=True)
def begin_apply(slots: Slots, staged: Staged) -> None:
    """Decide how many slots to keep, by what is staged and what was missed; sweep a part."""
    state = staged.state
    wanted = state[NUM_STAGED] + state[NUM_MISSED]
    wanted += wanted // _SPARE
    kept = max(wanted, state[RESERVED] - state[RESERVED] // _SLOWLY - 1, 0)
    state[RESERVED] = min(kept, most_staged(slots))
    state[NUM_MISSED] = 0
    state[NOW] += 1
    _sweep(slots, staged)


@njit(cache=True, nogil=True)
def to_keep_free(slots: Slots, staged: Staged) -> int:
    """Return how many slots are to be free for what will be read."""
    kept = max(staged.state[RESERVED], slots.owners.size // _LEAST_PART + 1)
    return int(max(kept - staged.state[NUM_STAGED], 0))


@njit(cache=True, nogil=True, inline="always")
def _sweep(slots: Slots, staged: Staged) -> None:
    """Drop what has been there for too long, in a part of the sets."""
    state, sets = staged.state, staged.tags.shape[0]
    for _ in range(sets // _SWEEPS + 1):
        place = state[SWEPT]
        state[SWEPT] = place + 1 if place + 1 < sets else 0
        for way in range(WAYS):
            if staged.tags[place, way] != 0:
                age = (state[NOW] - staged.ages[place, way]) & 255
                if age > _LIFE:
                    state[NUM_LOST] += staged.ahead[place, way]
                    free_slot(slots, drop(staged, place, np.int64(way)))
