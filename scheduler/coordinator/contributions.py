"""What the batches of a step come to: its record's entries, and what becomes of each batch."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from ps.messages.records import Entry
from scheduler.coordinator.batches import Batch, Status
from scheduler.coordinator.state import Progress

# Looked up once, see `batches`.
_DONE, _APPLIED = Status.DONE, Status.APPLIED
_DROPPED, _SKIPPED = Status.DROPPED, Status.SKIPPED


@dataclass(slots=True)
class Contributions:
    """What a step is made of.

    Attributes:
        entries, skipped: of its record.
        divisor: N, samples of all entries; `applied`: of those with a positive weight.
        resolved: every batch, with what becomes of it.
        data_staleness, parameter_staleness: of each entry, in steps.
        scored: the batches that were scored before they were trained.
    """

    entries: list[Entry] = field(default_factory=list)
    skipped: list[int] = field(default_factory=list)
    divisor: int = 0
    applied: int = 0
    resolved: list[tuple[Batch, Status]] = field(default_factory=list)
    data_staleness: list[int] = field(default_factory=list)
    parameter_staleness: list[int] = field(default_factory=list)
    scored: list[Batch] = field(default_factory=list)


def contributions_of(
    batches: Sequence[Batch], *, step: int, weight_of: Callable[[int], float], progress: Progress
) -> Contributions:
    """Return what ended batches, in the order in which they are summed, make of a step.

    Args:
        weight_of: a contribution's weight by the staleness of its data.
        progress: to which their losses are added, one after the other.
    """
    made = Contributions()
    entries, resolved = made.entries, made.resolved
    for batch in batches:
        result = batch.result
        assert result is not None, "a step is made of ended batches"
        if batch.status is not _DONE:
            made.skipped.append(batch.batch_id)
            resolved.append((batch, _SKIPPED))
            continue
        staleness, samples = step - batch.step, result.samples
        weight = weight_of(staleness)
        entries.append(Entry(batch.batch_id, result.token.attempt, weight))
        made.divisor += samples
        progress.loss_sum += result.loss_sum
        progress.loss_samples += samples
        made.data_staleness.append(staleness)
        made.parameter_staleness.append(step - result.pull_step)
        if result.evaluation is not None:
            made.scored.append(batch)
        if weight > 0:
            made.applied += samples
            resolved.append((batch, _APPLIED))
        else:
            resolved.append((batch, _DROPPED))
    return made
