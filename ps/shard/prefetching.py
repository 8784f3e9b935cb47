"""Rows that a shard has on disk, read before they are pulled: a hint, which changes nothing."""

from ps.messages.pull_push import Prefetch
from ps.shard.message_checks import what_does_not_fit
from ps.shard.shard import Shard


def prefetch(shard: Shard, message: Prefetch, start: int, stop: int) -> bool:
    """Read rows of some keys of a hint that are on disk, ahead of the pull of them.

    Nothing that is read later depends on it. It may run beside pulls, not beside a write.

    Args:
        start, stop: which of the message's keys.

    Returns:
        whether the others are of use, too.

    Raises:
        TierError: the disk can't be read.
    """
    if not _is_of_use(shard, message):
        return False
    first = 0
    for table, size in zip(shard.tables, message.table_sizes, strict=True):
        keys = message.keys[max(start, first) : min(stop, first + size)]
        if keys.size:
            table.prefetch(keys)
        first += size
    return True


def _is_of_use(shard: Shard, message: Prefetch) -> bool:
    """Whether it is of this epoch and routing, of a batch to come, and fits the tables."""
    if shard.dead is not None or shard.fenced:
        return False
    named = message.recovery_epoch, message.routing_version
    if named != (shard.recovery_epoch, shard.routing.version):
        return False
    dims = [table.dim for table in shard.spec.tables]
    if what_does_not_fit(message, dims, shard.dense.size) is not None:
        return False
    return message.batch_id < 0 or shard.buffer.waits_for(message.batch_id, message.attempt)
