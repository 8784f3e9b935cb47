"""The value at a place, as sorting gives it, and no larger one before that place."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from embedding.kernels.selection import nth_lowest


@given(st.lists(st.integers(-(2**63), 2**63 - 1) | st.integers(-3, 3), min_size=1), st.data())
def test_the_value_at_a_place_is_that_of_the_sorted_ones(given: list[int], data: st.DataObject):
    n = data.draw(st.integers(0, len(given) - 1))
    values = np.array(given, np.int64)

    assert nth_lowest(values, n) == sorted(given)[n]
    assert values[n] == sorted(given)[n]
    assert sorted(values.tolist()) == sorted(given)
    assert values[: n + 1].max() == values[n]
    assert values[n:].min() == values[n]


@pytest.mark.parametrize("order", ["ascending", "descending", "equal", "two", "organ_pipe"])
def test_no_order_takes_longer_than_others_by_much(order: str) -> None:
    n = 1_000_000
    ascending = np.arange(n)
    values = {
        "ascending": ascending,
        "descending": ascending[::-1].copy(),
        "equal": np.zeros(n, np.int64),
        "two": ascending % 2,
        "organ_pipe": np.minimum(ascending, ascending[::-1]),
    }[order]

    for place in (0, n // 3, n - 1):  # each would take minutes by the square of their number
        assert nth_lowest(values.copy(), place) == np.sort(values)[place]
