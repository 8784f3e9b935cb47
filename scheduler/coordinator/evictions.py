"""What a step evicts: the rules of the tables as numbers that every shard applies alike."""

from collections.abc import Sequence

from embedding import TableSpec, rows_per_bucket
from ps.messages.records import TableEviction
from scheduler.coordinator.clock import ScheduleClock


def evictions_due(
    tables: Sequence[TableSpec], clock: ScheduleClock, *, clock_before: int
) -> tuple[TableEviction, ...]:
    """Return what to evict from the tables one of whose periods ends within this step.

    Args:
        clock: after the step.
        clock_before: its value before the step.
    """
    if clock.value == clock_before:
        return ()
    due = []
    for number, table in enumerate(tables):
        rule = table.eviction
        if rule is None or clock.value // rule.every_steps == clock_before // rule.every_steps:
            continue
        lived = rule.steps_to_live
        eviction = TableEviction(
            table=number,
            min_version=0 if lived is None else clock.first_step_at(clock.value - lived),
            l2_weight_threshold=rule.l2_weight_threshold or 0.0,
            rows_per_bucket=rows_per_bucket(table),
            evict_first=rule.evict_first,
        )
        # As long as no row can be too old, time to live alone has nothing to do.
        if eviction.min_version or eviction.l2_weight_threshold or eviction.rows_per_bucket:
            due.append(eviction)
    return tuple(due)
