"""The frozen mix of a key: where a key lives, and every number drawn for it, comes from here.

The constants are part of the checkpoint format. A change of one moves every key to another bucket.
"""

import numpy as np
import numpy.typing as npt
from numba import njit

NUM_BUCKETS = 4096
BUCKET_BITS = 12

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_MULTIPLIER_1 = np.uint64(0xBF58476D1CE4E5B9)
_MULTIPLIER_2 = np.uint64(0x94D049BB133111EB)
_INVERSE_1 = np.uint64(0x96DE1B173F119089)
_INVERSE_2 = np.uint64(0x319642B2D24D8EC3)
_BUCKET_SHIFT = np.uint64(64 - BUCKET_BITS)
_30, _27, _31 = np.uint64(30), np.uint64(27), np.uint64(31)
_60, _54, _62 = np.uint64(60), np.uint64(54), np.uint64(62)


@njit(cache=True, nogil=True, inline="always")
def mix64(value: np.uint64) -> np.uint64:
    """Mix 64 bits so that every input bit reaches every output bit.

    Source: the finaliser of SplitMix64 (Steele, Lea and Flood 2014), variant 13 of Stafford.
    """
    z = np.uint64(value) + _GOLDEN
    z = (z ^ (z >> _30)) * _MULTIPLIER_1
    z = (z ^ (z >> _27)) * _MULTIPLIER_2
    return z ^ (z >> _31)


@njit(cache=True, nogil=True, inline="always")
def unmix64(value: np.uint64) -> np.uint64:
    """Return the one input that `mix64` turns into `value`."""
    z = np.uint64(value)
    z = (z ^ (z >> _31) ^ (z >> _62)) * _INVERSE_2
    z = (z ^ (z >> _27) ^ (z >> _54)) * _INVERSE_1
    return (z ^ (z >> _30) ^ (z >> _60)) - _GOLDEN


@njit(cache=True, nogil=True, inline="always")
def bucket_of(key: np.int64) -> np.int64:
    """Return the bucket of one key, in kernels."""
    return np.int64(mix64(np.uint64(key)) >> _BUCKET_SHIFT)


@njit(cache=True, nogil=True)
def _buckets(keys: npt.NDArray[np.int64], out: npt.NDArray[np.uint16]) -> None:
    for i in range(keys.size):
        out[i] = bucket_of(keys[i])


def buckets_of(keys: npt.NDArray[np.int64]) -> npt.NDArray[np.uint16]:
    """Return the bucket of each key: the top 12 bits of its mix.

    Args:
        keys: int64[n], any values.

    Returns:
        uint16[n], each below `NUM_BUCKETS`.
    """
    out = np.empty(keys.size, np.uint16)
    _buckets(np.ascontiguousarray(keys, np.int64), out)
    return out


def mix_text(text: str, seed: int = 0) -> int:
    """Mix a name and a seed into 64 bits: the seed of one table's initial values."""
    state = int(mix64(np.uint64(seed & 0xFFFFFFFFFFFFFFFF)))
    data = text.encode()
    for start in range(0, len(data), 8):
        word = int.from_bytes(data[start : start + 8], "little")
        state = int(mix64(np.uint64(state ^ word)))
    return int(mix64(np.uint64(state ^ len(data))))
