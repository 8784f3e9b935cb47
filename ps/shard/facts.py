"""What a shard knows of its job: of this another coordinator can be made."""

from dataclasses import dataclass

from ps.messages.records import Record
from runtime.first_steps import Run


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardFacts:
    """What a shard has seen of one recovery epoch.

    Args:
        recovery_epoch: that one.
        step: k, the next one that the shard would apply.
        log_begins: the first step of its log; `step` where that is empty.
        newest: the last record that it has applied, None where it applied none.
        resolved: (first, last + 1) of the batches that the records have resolved; in a later epoch
            those of before that lie above its low-water mark are missing.
        first_steps: of the clock values that began in this epoch, as far as the tables' time to
            live goes back.
    """

    recovery_epoch: int
    step: int
    log_begins: int
    newest: Record | None
    resolved: tuple[tuple[int, int], ...]
    first_steps: tuple[Run, ...]


@dataclass(slots=True)
class ShardCounts:
    """What a shard has seen, for reports."""

    contributions_superseded: int = 0
    gradients_of_evicted_keys: int = 0
    evicted: int = 0
