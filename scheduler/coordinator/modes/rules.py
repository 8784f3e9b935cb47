"""Mode rules: which ended batches make the next step, what they weigh, and what a pull reads.

A rule is a few pure functions over the ledger; the step protocol around it is the same for all
modes. docs/modes.md says what each mode is for.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Literal, get_args

from ps.messages.pull_push import ANY_STEP
from scheduler.coordinator.batches import Batch, Status
from scheduler.coordinator.ledger import Ledger
from scheduler.coordinator.modes.stale_weights import Cutoff, StaleWeight, weight_of

Mode = Literal["sync", "gba", "async", "ssp", "backup"]
MODES: tuple[Mode, ...] = get_args(Mode)
OnStale = Literal["drop", "reissue"]

# The modes that a running job may change to and from; the others are for comparison.
SHIFTABLE: tuple[Mode, ...] = ("sync", "gba", "async")

# Chosen by the rule in docs/modes.md: with a global batch of one local batch for each worker and
# two prefetched batches, workers that are up to three times slower than the others are kept.
STALENESS_BOUND = 6


@dataclass(frozen=True, slots=True, kw_only=True)
class ModeOptions:
    """What modes can be set to; each option is one mode's.

    Args:
        staleness_bound: gba: steps that data may be late.
        stale_weight: gba: what a contribution weighs by its staleness.
        on_stale: gba: what becomes of a batch whose weight is 0: it is dropped, or trained again.
        async_learning_rate_scale: async and ssp: every learning rate is multiplied by it.
        ssp_slack: ssp: batches by which a worker may be ahead of the slowest one.
        backup_batches: backup: batches that a step issues beyond the M that it takes.
    """

    staleness_bound: int = STALENESS_BOUND
    stale_weight: StaleWeight = field(default_factory=Cutoff)
    on_stale: OnStale = "drop"
    async_learning_rate_scale: float = 1.0
    ssp_slack: int = 3
    backup_batches: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedShift:
    """The job goes on in a mode once so many global batches' worth of samples are applied.

    Args:
        at: on the schedule clock, > 0.
        mode: one of those that a running job can change to.
    """

    at: int
    mode: Literal["sync", "gba", "async"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ModeRule:
    """What sets a mode apart.

    Args:
        batch_is_step: whether every batch is a step of its own; else a global batch is one.
        at_step: maps a token's step to the step that its pull must read.
        next_step: returns the batches of step k in the order in which they are summed, or None
            while they are not there yet.
        weight: of a contribution, by the staleness of its data.
        outdated: returns the batches that step k, which comes next, can't use as they were given
            out. They are given out again with k as their step.
        backup_batches: how many batches more than M the first step of an epoch issues.
        shares_steps: whether everyone waits for a step, so that no worker may take so many of its
            tokens that others are left without.
        slack: batches by which a worker may be ahead of the slowest live one; None: any number.
        learning_rate_scale: every learning rate is multiplied by it.
    """

    name: Mode
    batch_is_step: bool
    at_step: Callable[[int], int]
    next_step: Callable[[Ledger, int], list[Batch] | None]
    weight: Callable[[int], float] = lambda staleness: 1.0
    outdated: Callable[[Ledger, int], list[Batch]] = lambda ledger, step: []
    backup_batches: int = 0
    shares_steps: bool = False
    slack: int | None = None
    learning_rate_scale: float = 1.0


def rule_of(mode: Mode, options: ModeOptions | None = None) -> ModeRule:
    """Return the rule of a mode."""
    options = options or ModeOptions()
    match mode:
        case "sync":
            return ModeRule(
                name=mode,
                batch_is_step=False,
                at_step=_own_step,
                next_step=_first_of_step,
                shares_steps=True,
            )
        case "backup":
            return ModeRule(
                name=mode,
                batch_is_step=False,
                at_step=_own_step,
                next_step=_first_of_step,
                outdated=_left_over,
                backup_batches=options.backup_batches,
                shares_steps=True,
            )
        case "gba":
            return _gba_rule(options)
        case "async" | "ssp":
            return ModeRule(
                name=mode,
                batch_is_step=True,
                at_step=_any_step,
                next_step=_first,
                slack=options.ssp_slack if mode == "ssp" else None,
                learning_rate_scale=options.async_learning_rate_scale,
            )


def _gba_rule(options: ModeOptions) -> ModeRule:
    weight = partial(weight_of, options.stale_weight, bound=options.staleness_bound)
    rule = ModeRule(
        name="gba",
        batch_is_step=False,
        at_step=_any_step,
        next_step=_first_of_epoch,
        weight=weight,
    )
    if options.on_stale == "drop":
        return rule
    return replace(rule, outdated=partial(_too_late, weight))


def _own_step(step: int) -> int:
    return step


def _any_step(step: int) -> int:
    return ANY_STEP


def _first(ledger: Ledger, step: int) -> list[Batch] | None:
    """Whichever batch has ended first."""
    batch = ledger.next_ended()
    return None if batch is None else [batch]


def _first_of_step(ledger: Ledger, step: int) -> list[Batch] | None:
    """The M batches of the step that ended first, ordered by id."""
    due = ledger.num_due
    if not 0 < due <= ledger.num_ended_of_step(step):
        return None
    ended = [batch for batch in ledger.ended_of_epoch() if batch.step == step]
    return sorted(ended[:due], key=lambda b: b.batch_id) if due <= len(ended) else None


def _first_of_epoch(ledger: Ledger, step: int) -> list[Batch] | None:
    """The M batches of the epoch that ended first, in that order, whatever their steps."""
    due = ledger.num_due
    return ledger.ended_of_epoch()[:due] if 0 < due <= ledger.num_ended_of_epoch else None


def _left_over(ledger: Ledger, step: int) -> list[Batch]:
    """The batches of earlier steps that were not among the first M."""
    return [batch for batch in ledger.unresolved() if batch.step < step]


def _too_late(weight: Callable[[int], float], ledger: Ledger, step: int) -> list[Batch]:
    """The batches that would weigh nothing, whether they have ended or not.

    Data only get staler, so nothing is gained by waiting for their end. A batch that could not be
    read has ended for good.
    """
    late = [batch for batch in ledger.unresolved() if weight(step - batch.step) == 0]
    return [batch for batch in late if batch.status is not Status.SKIPPED]
