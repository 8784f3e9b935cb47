"""Whether numbers are finite: a gradient with NaN or infinity must not reach a row."""

from typing import Any

import numpy as np
import numpy.typing as npt
from numba import njit

Float32Array = npt.NDArray[np.float32]

_EXPONENT = np.uint32(0x7F800000)


@njit(cache=True, nogil=True)
def _all_finite(bits: npt.NDArray[np.uint32]) -> bool:
    bad = np.uint32(0)
    for i in range(bits.size):
        bad |= np.uint32((bits[i] & _EXPONENT) == _EXPONENT)
    return bool(bad == 0)


def all_finite(values: npt.NDArray[Any]) -> bool:
    """Whether a C-contiguous float32 array holds neither infinity nor NaN."""
    return bool(_all_finite(values.reshape(-1).view(np.uint32)))


def finite_rows(gradients: Float32Array) -> npt.NDArray[np.bool_]:
    """Return which rows of float32[n, dim] hold neither infinity nor NaN: bool[n]."""
    return np.asarray(np.isfinite(gradients).all(axis=1))
