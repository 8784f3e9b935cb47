"""Arrays that are used again from batch to batch, so that the steady state allocates nothing."""

from typing import Generic, TypeVar

import numpy as np
import numpy.typing as npt

Scalar = TypeVar("Scalar", bound=np.generic)


class FreeList(Generic[Scalar]):
    """Arrays of one type: taken for a while, given back when nothing reads or writes them any more.

    What is never given back, as of a batch that was taken from its worker, is freed like any other
    array. Any thread may take and give.

    Args:
        dtype: of the elements.

    Example:
        free = FreeList(np.float32)
        sums = free.take(100)
        sums[:] = 0
        free.give(sums)
    """

    def __init__(self, dtype: type[Scalar]) -> None:
        self._dtype = dtype
        self._whole: list[npt.NDArray[Scalar]] = []

    def take(self, n: int) -> npt.NDArray[Scalar]:
        """Return an array[n] of arbitrary values."""
        try:
            whole = self._whole.pop()
        except IndexError:
            whole = np.empty(0, self._dtype)
        if whole.size < n:
            whole = np.empty(n + n // 4, self._dtype)  # batches differ in size
        return whole[:n]

    def give(self, *taken: npt.NDArray[Scalar]) -> None:
        """Take back arrays that `take` returned, or views of all of one."""
        for array in taken:
            whole = array.base
            assert isinstance(whole, np.ndarray), "not from a free list"
            assert all(free is not whole for free in self._whole), "given back twice"
            self._whole.append(whole)
