"""A change of mode on a running job: what stays of the work that is under way, and what is voided.

It waits for no one. Every batch that is not resolved gets a new step, as the new mode counts them;
an attempt stays valid where the new mode would have allowed its pull. What can't stay is given out
again: no sample is lost or repeated.
"""

from dataclasses import dataclass
from typing import Literal

from ps.messages.pull_push import ANY_STEP
from scheduler.coordinator.batches import Batch, Status
from scheduler.coordinator.ledger import Ledger
from scheduler.coordinator.modes.rules import SHIFTABLE, Mode, ModeRule

ShiftCause = Literal["job", "policy", "control"]


@dataclass(frozen=True, slots=True)
class Wish:
    """Somebody wants the job to go on in a mode."""

    mode: Mode
    cause: ShiftCause
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Shift:
    """One change of mode.

    Args:
        step: the first one in the new mode.
        samples: applied before it.
        seconds: of training before it.
        from_mode, to_mode: the modes.
        cause: who decided it.
        reason: in words.
        reissued: batches whose attempts were voided.
        sync_rate, gba_rate: predicted samples per second; None where nobody predicted.
        seconds_to_next_step: until every shard had applied the first step in the new mode; None
            before that.
    """

    step: int
    samples: int
    seconds: float
    from_mode: Mode
    to_mode: Mode
    cause: ShiftCause
    reason: str
    reissued: int
    sync_rate: float | None = None
    gba_rate: float | None = None
    seconds_to_next_step: float | None = None


def described(shift: Shift) -> str:
    """Say in a line what changed and why."""
    text = f"{shift.from_mode} to {shift.to_mode}, {shift.reason}"
    if shift.sync_rate is not None and shift.gba_rate is not None:
        text += f" (predicted samples/s: sync {shift.sync_rate:,.0f}, gba {shift.gba_rate:,.0f})"
    return text


def check_shift(before: Mode, after: Mode | Literal["auto"]) -> None:
    """Refuse what no running job can do; raises ValueError."""
    for mode in (before, after):
        if mode not in (*SHIFTABLE, "auto"):
            raise ValueError(
                f"mode {mode} is for comparison and fixed for a job's life; a running job can"
                f" change between {', '.join(SHIFTABLE)}"
            )


def shift(ledger: Ledger, rule: ModeRule, *, step: int) -> int:
    """Carry a ledger over to another mode; return how many batches have to be given out again.

    Args:
        rule: of the new mode.
        step: k, the step that comes next.
    """
    ledger.line_up(
        step=step,
        batch_is_step=rule.batch_is_step,
        # What could be used at once is not given out again for another step.
        goes_first=lambda batch: rule.at_step(step) != ANY_STEP and _fits(batch, step),
    )
    voided = [batch for batch in ledger.unresolved() if not _may_stay(batch, rule, step)]
    for batch in voided:
        ledger.give_again(batch, step=batch.step)
    return len(voided)


def _fits(batch: Batch, pulls_at: int) -> bool:
    """Whether a batch has ended in a way that a step which reads `pulls_at` can use."""
    if batch.status is Status.SKIPPED:
        return True
    return batch.result is not None and pulls_at in (ANY_STEP, batch.result.pull_step)


def _may_stay(batch: Batch, rule: ModeRule, step: int) -> bool:
    """Whether what was given out of a batch is what the new mode could have given out."""
    pulls_at = rule.at_step(batch.step)
    if batch.ended:
        return _fits(batch, pulls_at)
    if pulls_at == ANY_STEP:
        # A pull that waits for a later step would wait for those who are behind.
        return batch.pull_step <= step
    return batch.status is Status.PENDING and batch.attempt == batch.first_valid
