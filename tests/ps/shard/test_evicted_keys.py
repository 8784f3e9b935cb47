"""Remembered evictions against plain sets of them."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from ps.shard.evicted_keys import EvictedKeys

STEPS = st.lists(
    st.tuples(st.sets(st.integers(-5, 30), max_size=12), st.integers(0, 12)), max_size=12
)
EVERY_KEY = np.arange(-6, 32)


@given(STEPS)
def test_it_knows_what_each_step_evicted_until_it_may_forget(
    steps: list[tuple[set[int], int]],
) -> None:
    evicted, model, oldest = EvictedKeys(), dict[int, set[int]](), 0
    for step, (keys, back) in enumerate(steps):
        evicted.add(step, np.array(list(keys), np.int64))
        model[step] = keys
        oldest = max(oldest, step - back)
        evicted.forget(before=oldest)

        for since in range(oldest, step + 2):
            late = set().union(*(model[s] for s in range(since, step + 1)))
            found = evicted.evicted_since(since, EVERY_KEY)
            assert set(EVERY_KEY[found].tolist()) == late


def test_many_evictions_are_looked_up_in_a_few_runs() -> None:
    evicted = EvictedKeys()
    for step in range(1000):
        evicted.add(step, np.arange(step, step + 3))

    assert len(evicted._runs) <= 10
    assert evicted.evicted_since(999, np.array([998, 999, 1001, 1002])).tolist() == [
        False, True, True, False,
    ]  # fmt: skip


def test_what_no_one_may_ask_for_any_more_takes_no_memory() -> None:
    evicted = EvictedKeys()
    for step in range(100):
        evicted.add(step, np.arange(1000 * step, 1000 * step + 1000))
        evicted.forget(before=step - 4)

    assert len(evicted) <= 20_000
    evicted.forget(before=100)
    assert len(evicted) == 0
