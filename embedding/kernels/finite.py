"""Whether numbers are finite: a gradient with NaN or infinity must not reach a row."""

from typing import Any

import numpy as np
import numpy.typing as npt
from numba import njit

from embedding.kernels.arguments import read_only

Float32Array = npt.NDArray[np.float32]
UInt8Array = npt.NDArray[np.uint8]

_EXPONENT = np.uint32(0x7F800000)


@njit(cache=True, nogil=True)
def _all_finite(bits: npt.NDArray[np.uint32]) -> bool:
    largest = np.uint32(0)
    for i in range(bits.size):
        largest = max(largest, np.uint32(bits[i] & _EXPONENT))
    return bool(largest < _EXPONENT)


def all_finite(values: npt.NDArray[Any]) -> bool:
    """Whether a C-contiguous float32 array holds neither infinity nor NaN."""
    return bool(_all_finite(values.reshape(-1).view(np.uint32)))


def without_non_finite(
    keys: npt.NDArray[np.int64],
    gradients: Float32Array,
    has_gradient: UInt8Array,
    *,
    refuse: bool,
    table: str,
) -> tuple[UInt8Array, int]:
    """Leave out the gradients that hold NaN or infinity.

    Args:
        keys: int64[n].
        gradients: float32[n, dim].
        has_gradient: uint8[n], 0 where a gradient means nothing; empty: 1 each.
        refuse: raise instead, where there is one.
        table: its name, for the message.

    Returns:
        uint8[n], has_gradient without them, and how many they are.

    Raises:
        ValueError: one is not finite and `refuse` is set.
    """
    present = has_gradient != 0 if has_gradient.size else np.ones(keys.size, bool)
    bad = present & ~np.isfinite(gradients).all(axis=1)
    count = int(np.count_nonzero(bad))
    if refuse and count:
        raise ValueError(
            f"table {table}: the gradients of {count} of {keys.size} keys are not finite, the"
            f" first is that of key {keys[bad][0]}; nothing was applied. on_non_finite='skip'"
            " leaves such gradients out"
        )
    return read_only((present & ~bad).astype(np.uint8)), count
