"""What makes a record impossible to apply, found before anything changes."""

import math

from embedding.optimizers import rule_for
from ps.messages import Record
from ps.spec import StoreSpec


def what_is_wrong(record: Record, spec: StoreSpec) -> str | None:
    """Say why no shard of a job could ever apply a record; None where it could."""
    batches = [entry.batch_id for entry in record.entries]
    if len(set(batches)) != len(batches):
        return "it names a batch twice"
    if not all(math.isfinite(e.weight) and e.weight >= 0 for e in record.entries):
        return "a weight is negative or not finite"
    if record.divisor < 0:
        return f"its divisor is {record.divisor}"
    evicting = [eviction.table for eviction in record.evict]
    if any(not 0 <= table < len(spec.tables) for table in evicting):
        return f"it evicts from a table that is not one of {len(spec.tables)}"
    if len(set(evicting)) != len(evicting):
        return "it evicts from a table twice"
    if any(e.rows_per_bucket < 0 or not e.l2_weight_threshold >= 0 for e in record.evict):
        return "a quota or threshold of eviction is negative or not a number"
    expected = [rule_for(optimizer, sparse=True).num_scalars for optimizer in spec.optimizers]
    if [len(numbers) for numbers in record.scalars] != expected:
        return f"its scalars are not those of the {len(expected)} optimizers"
    return None
