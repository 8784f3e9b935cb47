"""Arrays that are taken, given back and taken again."""

import numpy as np
import pytest

from runtime.free_list import FreeList


def test_what_was_given_back_is_taken_again_also_for_fewer_and_slightly_more() -> None:
    free = FreeList(np.float32)
    first = free.take(100)
    free.give(first)

    for size in (100, 10, 120):
        again = free.take(size)
        assert again.shape == (size,)
        assert again.dtype == np.float32
        assert np.shares_memory(again, first)
        free.give(again)


def test_arrays_that_are_taken_share_nothing() -> None:
    free = FreeList(np.int64)
    taken = [free.take(10) for _ in range(3)]
    free.give(taken[1])

    taken[1] = free.take(10)

    assert not any(np.shares_memory(a, b) for a in taken for b in taken if a is not b)


def test_a_reshaped_array_can_be_given_back() -> None:
    free = FreeList(np.int64)
    taken = free.take(12)

    free.give(taken.reshape(3, 4))

    assert np.shares_memory(free.take(12), taken)


def test_an_array_is_given_back_once_and_to_where_it_is_from() -> None:
    free = FreeList(np.uint8)
    taken = free.take(10)
    free.give(taken)

    with pytest.raises(AssertionError, match="twice"):
        free.give(taken)
    with pytest.raises(AssertionError, match="not from"):
        free.give(np.empty(10, np.uint8))
