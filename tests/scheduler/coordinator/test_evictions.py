"""When tables evict, and by which numbers."""

import pytest

from embedding.spec.eviction import Eviction
from embedding.spec.table import TableSpec
from ps.messages.records import TableEviction
from scheduler.coordinator.clock import ScheduleClock
from scheduler.coordinator.evictions import evictions_due


def run(eviction: Eviction | None, steps: int, *, samples: int = 10) -> dict[int, TableEviction]:
    """What each step of a job evicts from its second table; G is 10."""
    tables = (TableSpec(name="a", dim=1), TableSpec(name="b", dim=16, eviction=eviction))
    clock = ScheduleClock(10, remembered=10)
    found = {}
    for step in range(steps):
        before = clock.value
        clock.advance(samples, next_step=step + 1)
        for due in evictions_due(tables, clock, clock_before=before):
            assert due.table == 1
            found[step] = due
    return found


def test_a_table_without_rule_evicts_nothing() -> None:
    assert run(None, 20) == {}


@pytest.mark.parametrize("every", [1, 3, 5])
@pytest.mark.parametrize(
    "rule", [{"l2_weight_threshold": 0.5}, {"max_rows": 10**6}, {"max_bytes": 10**9}]
)
def test_a_rule_is_looked_at_whenever_the_clock_reaches_a_multiple(rule: dict, every: int) -> None:
    found = run(Eviction(**rule, every_steps=every), 11)

    assert list(found) == [step for step in range(11) if (step + 1) % every == 0]
    assert all(due.min_version == 0 for due in found.values())


def test_half_a_tick_a_step_makes_it_half_as_often() -> None:
    found = run(Eviction(l2_weight_threshold=0.5, every_steps=2), 12, samples=5)

    assert list(found) == [3, 7, 11]


def test_time_to_live_alone_waits_until_a_row_can_be_too_old() -> None:
    found = run(Eviction(steps_to_live=4, every_steps=2), 10)

    assert {step: due.min_version for step, due in found.items()} == {5: 2, 7: 4, 9: 6}


def test_a_row_lives_exactly_its_steps() -> None:
    """Updated by step v, at clock v, it survives an eviction at clock v + n, not the next one."""
    found = run(Eviction(steps_to_live=3, every_steps=1), 10)

    last_seen = 4
    survived = [step for step, due in found.items() if due.min_version <= last_seen]
    # Step s ends at clock s + 1.
    assert max(survived) + 1 == last_seen + 3


def test_the_record_carries_every_number_that_a_shard_needs() -> None:
    rule = Eviction(
        steps_to_live=2,
        l2_weight_threshold=0.25,
        max_rows=10**6,
        max_bytes=10**9,
        evict_first="least_recent",
        every_steps=5,
    )

    # Adagrad: 16 values and one slot each, 207 bytes a row: 1179 rows a bucket; of 10^6 rows, 244.
    assert run(rule, 5) == {4: TableEviction(1, 3, 0.25, 244, "least_recent")}
