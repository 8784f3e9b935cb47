"""Kernels of the join of samples with labels: two rings of what came, each with an index by key.

An entry has a number that rises by one; of a ring those in [tail, head) are there. `slots` has, at
a place that follows from a key, one more than the number of the newest entry with that key, and
`before` the entry of the same key that came before an entry: it is over where that is below `tail`.
"""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from numba import njit

from embedding.kernels.mixing import mix64

WAITS, TRAINED_0, TRAINED_1 = 0, 1, 2
"""States of a sample."""

# Of a label: its value, and whether a sample had it.
MATCHED = 2


class Entries(NamedTuple):
    """What a ring has of its entries, at number & (size - 1).

    Args:
        keys: int64[size], a power of two.
        at: float64[size], when each arrived; never falls.
        before: int64[size].
        places: int64[size], of samples: file << 32 | row.
        states: uint8[size].
        slots: int64[2 * size].
    """

    keys: npt.NDArray[np.int64]
    at: npt.NDArray[np.float64]
    before: npt.NDArray[np.int64]
    places: npt.NDArray[np.int64]
    states: npt.NDArray[np.uint8]
    slots: npt.NDArray[np.int64]


class Out(NamedTuple):
    """What is handed on: places and labels, and how many of them are filled."""

    places: npt.NDArray[np.int64]
    labels: npt.NDArray[np.uint8]
    size: npt.NDArray[np.int64]  # [1]


# Positions in counts, int64[6].
JOINED, EXPIRED, AGAIN, LATE, REPEATED, ORPHANS = 0, 1, 2, 3, 4, 5


@njit(cache=True, nogil=True, inline="always")
def _slot_of(ring: Entries, key: np.int64) -> np.int64:
    """Return where the newest entry of a key is noted, or would be."""
    mask = np.int64(ring.slots.size - 1)
    inner = np.int64(ring.keys.size - 1)
    slot = np.int64(mix64(np.uint64(key))) & mask
    while ring.slots[slot] != 0 and ring.keys[(ring.slots[slot] - 1) & inner] != key:
        slot = (slot + 1) & mask
    return slot


@njit(cache=True, nogil=True, inline="always")
def _append(
    ring: Entries, number: np.int64, key: np.int64, at: float, place: np.int64, state: np.uint8
) -> None:
    inner = np.int64(ring.keys.size - 1)
    slot = _slot_of(ring, key)
    ring.before[number & inner] = ring.slots[slot] - 1
    ring.slots[slot] = number + 1
    ring.keys[number & inner] = key
    ring.at[number & inner] = at
    ring.places[number & inner] = place
    ring.states[number & inner] = state


@njit(cache=True, nogil=True, inline="always")
def _remove_oldest(ring: Entries, number: np.int64) -> None:
    """Take the oldest entry out of the index; what comes later of its key stays."""
    inner = np.int64(ring.keys.size - 1)
    mask = np.int64(ring.slots.size - 1)
    slot = _slot_of(ring, ring.keys[number & inner])
    if ring.slots[slot] != number + 1:
        return
    hole = slot
    ring.slots[hole] = 0
    while True:  # entries behind it move up, as far as they may
        slot = (slot + 1) & mask
        if ring.slots[slot] == 0:
            return
        home = np.int64(mix64(np.uint64(ring.keys[(ring.slots[slot] - 1) & inner]))) & mask
        if ((slot - home) & mask) >= ((slot - hole) & mask):
            ring.slots[hole] = ring.slots[slot]
            ring.slots[slot] = 0
            hole = slot


@njit(cache=True, nogil=True, inline="always")
def _hand_on(out: Out, place: np.int64, label: np.uint8) -> None:
    out.places[out.size[0]] = place
    out.labels[out.size[0]] = label
    out.size[0] += 1


@njit(cache=True, nogil=True, inline="always")
def _join(
    out: Out, place: np.int64, label: np.uint8, again: bool, counts: npt.NDArray[np.int64]
) -> None:
    """Hand a sample on with its label; where positives come again, as a negative before."""
    counts[JOINED] += 1
    if again and label == 1:
        counts[AGAIN] += 1
        _hand_on(out, place, 0)
    _hand_on(out, place, label)


@njit(cache=True, nogil=True)
def index_all(ring: Entries, tail: int, head: int) -> None:
    """Make the index of entries that are there anew."""
    inner = np.int64(ring.keys.size - 1)
    ring.slots[:] = 0
    for number in range(tail, head):
        slot = _slot_of(ring, ring.keys[number & inner])
        ring.before[number & inner] = ring.slots[slot] - 1
        ring.slots[slot] = number + 1


@njit(cache=True, nogil=True)
def add_samples(
    samples: Entries,
    sample_head: int,
    labels: Entries,
    label_tail: int,
    keys: npt.NDArray[np.int64],
    place: int,
    at: float,
    window: float,
    late: float,
    labels_until: float,
    again: bool,
    out: Out,
    counts: npt.NDArray[np.int64],
) -> None:
    """Add samples of one file, the first of which is at `place`, and give them the labels there."""
    inner = np.int64(labels.keys.size - 1)
    for i in range(keys.size):
        here = place + i
        newest = labels.slots[_slot_of(labels, keys[i])] - 1
        first, others, positive = np.int64(-1), 0, False
        number = newest
        while number >= label_tail:
            when = labels.at[number & inner]
            if when < at + window and when + window + late >= at:
                first = number
            number = labels.before[number & inner]
        number = newest
        while number >= label_tail:
            when = labels.at[number & inner]
            if when < at + window + late and when + window + late >= at:
                value = labels.states[number & inner] & 1
                labels.states[number & inner] |= MATCHED
                if number != first:
                    others += 1
                    positive |= value == 1
            number = labels.before[number & inner]
        state = WAITS
        if first >= 0:
            value = labels.states[first & inner] & 1
            state = TRAINED_0 + value
            _join(out, here, value, again, counts)
        elif labels_until >= at + window:
            state = TRAINED_0
            counts[EXPIRED] += 1
            _hand_on(out, here, 0)
        if state == TRAINED_0 and positive:
            state = TRAINED_1
            others -= 1
            counts[LATE] += 1
            if again:
                counts[AGAIN] += 1
                _hand_on(out, here, 1)
        counts[REPEATED] += others
        _append(samples, sample_head + i, keys[i], at, here, state)


@njit(cache=True, nogil=True)
def add_labels(
    samples: Entries,
    sample_tail: int,
    labels: Entries,
    label_head: int,
    keys: npt.NDArray[np.int64],
    values: npt.NDArray[np.uint8],
    at: float,
    window: float,
    late: float,
    again: bool,
    first: int,
    out: Out,
    counts: npt.NDArray[np.int64],
) -> int:
    """Add labels of one file, from the `first`, while there is room for what they hand on.

    Nothing waits whose window was over before `at`.

    Returns:
        How many were added by now.
    """
    inner = np.int64(samples.keys.size - 1)
    for i in range(first, keys.size):
        state = values[i]
        number = samples.slots[_slot_of(samples, keys[i])] - 1
        needed, start = 0, number
        while number >= sample_tail:
            needed += 2
            number = samples.before[number & inner]
        if out.size[0] + needed > out.places.size:
            return i
        number = start
        while number >= sample_tail:
            place = number & inner
            came = samples.at[place]
            if at < came + window + late and at + window + late >= came:
                state |= MATCHED
                if samples.states[place] == WAITS:
                    samples.states[place] = TRAINED_0 + values[i]
                    _join(out, samples.places[place], values[i], again, counts)
                elif samples.states[place] == TRAINED_0 and values[i] == 1:
                    samples.states[place] = TRAINED_1
                    counts[LATE] += 1
                    if again:
                        counts[AGAIN] += 1
                        _hand_on(out, samples.places[place], 1)
                else:
                    counts[REPEATED] += 1
            number = samples.before[number & inner]
        _append(labels, label_head + i - first, keys[i], at, 0, state)
    return keys.size


@njit(cache=True, nogil=True)
def expire(
    samples: Entries,
    due: int,
    head: int,
    until: float,
    window: float,
    out: Out,
    counts: npt.NDArray[np.int64],
) -> int:
    """Hand on as negatives what waits and whose window is over; return the first that is left."""
    inner = np.int64(samples.keys.size - 1)
    while due < head and samples.at[due & inner] + window <= until:
        if samples.states[due & inner] == WAITS:
            samples.states[due & inner] = TRAINED_0
            counts[EXPIRED] += 1
            _hand_on(out, samples.places[due & inner], 0)
        due += 1
    return due


@njit(cache=True, nogil=True)
def forget_samples(
    samples: Entries, tail: int, due: int, until: float, window: float, late: float
) -> int:
    """Remove samples that no label can come for any more; return the new tail."""
    inner = np.int64(samples.keys.size - 1)
    while tail < due and samples.at[tail & inner] + window + late <= until:
        _remove_oldest(samples, tail)
        tail += 1
    return tail


@njit(cache=True, nogil=True)
def forget_labels(
    labels: Entries,
    tail: int,
    head: int,
    until: float,
    window: float,
    late: float,
    counts: npt.NDArray[np.int64],
) -> int:
    """Remove labels that are of no sample to come, and count those that no sample had."""
    inner = np.int64(labels.keys.size - 1)
    while tail < head and labels.at[tail & inner] + window + late < until:
        counts[ORPHANS] += not labels.states[tail & inner] & MATCHED
        _remove_oldest(labels, tail)
        tail += 1
    return tail
