"""What the machine could do at best: copying memory, gathering rows, updating rows in place.

The rows are a bare array as long and wide as a table's, reserved as a table reserves its own; the
row numbers are given, so nothing is looked up. Both kernels are written so that LLVM works on
vectors of values; scalar code, which is what small changes of them give, is half as fast.
"""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
from numba import njit

from bench.keys import Int64Array, Size
from embedding.kernels.prefetch import prefetch
from embedding.table.reservation import reserve

Float32Array = npt.NDArray[np.float32]

_AHEAD = 32  # rows: measured, 16, 32 and 64 are alike and 8 is slower
_LINE = 16  # float32 values in a cache line
_LEARNING_RATE = np.float32(0.02)


@njit(nogil=True, error_model="numpy")
def _gather(rows: Float32Array, positions: Int64Array, out: Float32Array) -> None:
    """out[i] = rows[positions[i], :width of out]."""
    dim = out.shape[1]  # not a constant: LLVM would unroll it into copies of single values
    for i in range(positions.size):
        if i + _AHEAD < positions.size:
            for c in range(0, dim, _LINE):
                prefetch(rows, positions[i + _AHEAD], c)
        row = positions[i]
        for c in range(dim):
            out[i, c] = rows[row, c]


@njit(nogil=True)
def _read_lines(lines: Int64Array, positions: Int64Array) -> int:
    """Return the sum of lines[positions[i], 0]."""
    total = 0
    for i in range(positions.size):
        if i + _AHEAD < positions.size:
            prefetch(lines, positions[i + _AHEAD], 0)
        total += lines[positions[i], 0]
    return total


@njit(nogil=True)
def _count(counters: Int64Array, positions: Int64Array) -> None:
    """Count each position, and note when it was last counted."""
    for i in range(positions.size):
        if i + _AHEAD < positions.size:
            prefetch(counters, positions[i + _AHEAD], 0)
        counters[positions[i], 0] += 1
        counters[positions[i], 1] = i


def read_modify_write_kernel(dim: int) -> Callable[..., None]:
    """Return kernel(rows, positions, gradients): Adagrad on rows of vector and accumulator.

    LLVM makes the arithmetic a loop over vectors only where a division by 0 raises nothing, where
    the accumulator's place is a constant, and where the number of values is not.
    """

    @njit(nogil=True, error_model="numpy")
    def update(rows: Float32Array, positions: Int64Array, gradients: Float32Array) -> None:
        for i in range(positions.size):
            if i + _AHEAD < positions.size:
                for c in range(0, 2 * dim, _LINE):
                    prefetch(rows, positions[i + _AHEAD], c)
            row = positions[i]
            for c in range(gradients.shape[1]):
                g = gradients[i, c]
                accumulator = rows[row, dim + c] + g * g
                rows[row, dim + c] = accumulator
                rows[row, c] -= _LEARNING_RATE * g / math.sqrt(accumulator)

    return update


class BareRows:
    """An array of rows, each a vector and its accumulator, and what can be done at best with it."""

    def __init__(self, size: Size) -> None:
        self.rows: Float32Array = reserve(size.rows, 2 * size.dim, np.float32)
        self.rows[:] = 0.1
        self._out = np.empty((size.batch, size.dim), np.float32)
        self._gradients = np.full((size.batch, size.dim), 0.01, np.float32)
        self._update = read_modify_write_kernel(size.dim)

    def gather(self, batches: list[Int64Array]) -> None:
        """Read the vectors of each batch of row numbers."""
        for positions in batches:
            _gather(self.rows, positions, self._out)

    def read_modify_write(self, batches: list[Int64Array]) -> None:
        """Update each batch of rows, which must be distinct."""
        for positions in batches:
            self._update(self.rows, positions, self._gradients)


class BareIndex:
    """Arrays as large as a table's index and its metadata: what it touches besides its rows."""

    def __init__(self, size: Size) -> None:
        num_lines = 1 << (size.rows // 3).bit_length()  # an index has some 3 keys a line
        self._lines: Int64Array = reserve(num_lines, 8, np.int64)
        self._counters = reserve(size.rows, 2, np.uint32)
        self._lines[:] = self._counters[:] = 0

    def read_lines(self, batches: list[Int64Array]) -> None:
        """Read a cache line for each row number, out of as many as a table's index has."""
        for positions in batches:
            _read_lines(self._lines, positions & (len(self._lines) - 1))

    def count(self, batches: list[Int64Array]) -> None:
        """Count in an array as large as a table's frequencies and versions."""
        for positions in batches:
            _count(self._counters, positions)


def copying(num_bytes: int) -> tuple[Callable[[], Any], Callable[[], Any]]:
    """Return copies of so many bytes: into memory that was touched, and into new memory."""
    source = np.ones(num_bytes // 8, np.int64)
    target = np.ones_like(source)
    return lambda: np.copyto(target, source), lambda: source.copy()
