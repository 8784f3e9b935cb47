"""A set of int64 keys, asked and filled by the batch."""

import numpy as np
import numpy.typing as npt
from numba import njit

from embedding.kernels.mixing import mix64

Int64Array = npt.NDArray[np.int64]
BoolArray = npt.NDArray[np.bool_]

_LEAST_PLACES = 1 << 10


class KeySet:
    """Keys of any value; nine bytes a place, of which at most half are taken."""

    def __init__(self) -> None:
        self._places = np.empty(_LEAST_PLACES, np.int64)
        self._taken = np.zeros(_LEAST_PLACES, np.bool_)
        self._size = 0

    def __len__(self) -> int:
        return self._size

    def add(self, keys: Int64Array) -> None:
        """Add keys, int64[n]."""
        places = len(self._places)
        while 2 * (self._size + keys.size) > places:
            places *= 2
        if places > len(self._places):
            old, self._places = self._places[self._taken], np.empty(places, np.int64)
            self._taken = np.zeros(places, np.bool_)
            _add(self._places, self._taken, old)
        self._size += _add(self._places, self._taken, keys)

    def has(self, keys: Int64Array) -> BoolArray:
        """Return which of the keys, int64[n], are in it: bool[n]."""
        found = np.empty(keys.size, np.bool_)
        _has(self._places, self._taken, keys, found)
        return found


@njit(cache=True, nogil=True, inline="always")
def _place_of(places: Int64Array, taken: BoolArray, key: np.int64) -> np.int64:
    """Return the place where a key is, or is to be."""
    mask = np.uint64(places.size - 1)
    place = np.int64(mix64(np.uint64(key)) & mask)
    while taken[place] and places[place] != key:
        place = (place + 1) & np.int64(mask)
    return place


@njit(cache=True, nogil=True)
def _add(places: Int64Array, taken: BoolArray, keys: Int64Array) -> int:
    added = 0
    for key in keys:
        place = _place_of(places, taken, key)
        if not taken[place]:
            places[place], taken[place] = key, True
            added += 1
    return added


@njit(cache=True, nogil=True)
def _has(places: Int64Array, taken: BoolArray, keys: Int64Array, found: BoolArray) -> None:
    for i in range(keys.size):
        found[i] = taken[_place_of(places, taken, keys[i])]
