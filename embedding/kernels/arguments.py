"""Checks of the arrays that are handed to kernels: once per call, so that kernels need none."""

from typing import Any

import numpy as np
import numpy.typing as npt


def read_only(array: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Return an array as contiguous and not writable, without a copy where it can be had.

    To Numba that is part of the type: inputs that are always of one type compile a kernel once,
    whether they come from a message or were made here.
    """
    flags = array.flags
    if not (flags.c_contiguous and flags.aligned):
        array = array.copy()
    elif not flags.writeable:
        return array
    array = array.view()
    array.flags.writeable = False
    return array


def input_array(name: str, array: Any, dtype: np.dtype[Any], shape: tuple[int, ...]) -> Any:
    """Return a checked input, see `read_only`; ValueError if its type or shape is another."""
    _check(name, array, dtype, shape)
    return read_only(array)


def output_array(name: str, array: Any, dtype: np.dtype[Any], shape: tuple[int, ...]) -> Any:
    """Return a checked output; ValueError if type or shape is another or it can't be written."""
    _check(name, array, dtype, shape)
    if not array.flags.carray:
        raise ValueError(f"{name} is written, so it must be writable, C-contiguous and aligned")
    return array


def _check(name: str, array: Any, dtype: np.dtype[Any], shape: tuple[int, ...]) -> None:
    if not isinstance(array, np.ndarray) or array.dtype != dtype or array.shape != shape:
        got = f"{array.dtype}{list(array.shape)}" if isinstance(array, np.ndarray) else type(array)
        raise ValueError(f"{name} must be {dtype}{list(shape)}, got {got}")
