"""What makes a record impossible to apply, found before anything changes."""

import math
from collections.abc import Sequence

from embedding.optimizers.rule import rule_for
from ps.messages.records import Entry, Record
from ps.spec import StoreSpec


def what_is_wrong(record: Record, spec: StoreSpec) -> str | None:
    """Say why no shard of a job could ever apply a record; None where it could."""
    wrong = what_is_wrong_in_sum(record.entries, record.divisor)
    if wrong is not None:
        return wrong
    if not {entry.batch_id for entry in record.entries}.isdisjoint(record.skipped):
        return "it names a batch that it skips"
    if record.applied_step > record.step:
        return f"it says that every shard has reached step {record.applied_step}"
    if not 0 <= record.dense_factor <= 1:
        return f"its dense factor is {record.dense_factor}"
    evicting = [eviction.table for eviction in record.evict]
    if any(not 0 <= table < len(spec.tables) for table in evicting):
        return f"it evicts from a table that is not one of {len(spec.tables)}"
    if len(set(evicting)) != len(evicting):
        return "it evicts from a table twice"
    if any(e.rows_per_bucket < 0 or not e.l2_weight_threshold >= 0 for e in record.evict):
        return "a quota or threshold of eviction is negative or not a number"
    for e in record.evict:
        table = spec.tables[e.table]
        if (e.min_version > 0 or e.rows_per_bucket > 0) and not table.track_usage:
            return f"it evicts by version or number from table {table.name}, which tracks no usage"
    expected = [rule_for(optimizer, sparse=True).num_scalars for optimizer in spec.optimizers]
    if [len(numbers) for numbers in record.scalars] != expected:
        return f"its scalars are not those of the {len(expected)} optimizers"
    if not all(math.isfinite(number) for numbers in record.scalars for number in numbers):
        return f"a scalar of an optimizer is not finite: {record.scalars}"
    return None


def what_is_wrong_in_sum(entries: Sequence[Entry], divisor: int) -> str | None:
    """Say why contributions can't be summed and divided as told; None where they can."""
    batches = [entry.batch_id for entry in entries]
    if len(set(batches)) != len(batches):
        return "it names a batch twice"
    if not all(math.isfinite(entry.weight) and entry.weight >= 0 for entry in entries):
        return "a weight is negative or not finite"
    if divisor < 0:
        return f"its divisor is {divisor}"
    return None
