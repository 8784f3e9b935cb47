"""A coordinator that is gone, made again from what the copies of its shards know.

The order of it: every copy leaves the epoch (`Shard.leave`), so that nobody takes it further; all
are brought to the step of the one that is furthest (`longest_log`, `Shard.catch_up`); they enter
the next epoch with the rows that they have; a coordinator goes on from `state_after`. Where that
fails on the way it is done again: some have entered the next epoch then, others have not.
"""

from collections.abc import Sequence
from dataclasses import replace

from ps.messages.records import Record
from ps.shard.facts import ShardFacts
from runtime.first_steps import joined_first_steps
from runtime.intervals import Intervals
from scheduler.coordinator.clock import ClockState
from scheduler.coordinator.coordinator_state import CoordinatorState
from scheduler.coordinator.evaluation import is_evaluation_due
from scheduler.coordinator.growing_plan import OPEN
from scheduler.coordinator.ledger_state import LedgerState, Samples, Tallies
from scheduler.coordinator.mode_control import ModeState
from scheduler.coordinator.modes.rules import MODES
from scheduler.coordinator.spec import CoordinatorSpec
from scheduler.coordinator.status import Status


def longest_log(facts: Sequence[ShardFacts]) -> int:
    """Return the number of the copy that is furthest, whose log the others lack.

    Where some have entered a later epoch than others, in which all keep what they hold, it began
    where these are: nobody enters one before all are at one step, and no record of it comes before
    all have entered it.

    Args:
        facts: of one copy of each shard at least, once each has left its epoch.

    Raises:
        ValueError: the log does not go back to where another copy is.
    """
    first = max(range(len(facts)), key=lambda at: (facts[at].recovery_epoch, facts[at].step))
    furthest = facts[first]
    for each in facts:
        if each.recovery_epoch != furthest.recovery_epoch:
            fits = each.step == furthest.step and furthest.newest is None
        else:
            fits = each.step >= furthest.log_begins
        if not fits:
            raise ValueError(
                f"a shard is at step {each.step} of recovery epoch {each.recovery_epoch}, the log"
                f" of another one begins at {furthest.log_begins} and ends at {furthest.step} of"
                f" epoch {furthest.recovery_epoch}"
            )
    return first


def state_after(
    facts: ShardFacts, begun: CoordinatorState, known: Status | None, spec: CoordinatorSpec
) -> CoordinatorState:
    """Return the state from which another coordinator goes on, at the step of the shards.

    What is counted once and for all comes from the shard. Histories, and what somebody wanted of
    the job, come from the last status that was heard of; what came after it is not in them.

    Args:
        facts: of the shard that is furthest.
        begun: with which the coordinator of its epoch began, or was to begin.
        known: the last status of the lost coordinator, with all that it ever told.
        spec: of the job.

    Raises:
        ValueError: the shard is not one of this job.
    """
    if known is not None and known.recovery_epoch != facts.recovery_epoch:
        known = None
    state = begun if known is None else _with_histories(begun, known)
    evaluated = any(result.step == facts.step for result in state.evaluations)
    record = facts.newest
    if record is None:
        if facts.step != begun.step:
            raise ValueError(f"a shard is at step {facts.step} without a record of it")
        return replace(state, evaluating=begun.evaluating and not evaluated)
    ledger = _ledger_after(record, facts, state.ledger)
    total = OPEN if spec.plan is None else spec.plan.total
    plan = total if ledger.limit is None else min(ledger.limit, total)
    totals = record.totals
    first_steps = joined_first_steps(begun.clock.first_steps, facts.first_steps)
    return replace(
        state,
        step=facts.step,
        ledger=ledger,
        modes=_modes_after(record, state.modes),
        loss_sum=totals.loss_sum,
        loss_samples=totals.loss_samples,
        clock=ClockState(value=totals.clock, samples=totals.since_tick, first_steps=first_steps),
        evaluating=(
            is_evaluation_due(spec.eval_every_steps, before=record.clock, now=totals.clock)
            and ledger.num_resolved < plan
            and not evaluated
        ),
    )


def with_orders(state: CoordinatorState, last: Status | None) -> CoordinatorState:
    """Return a state in which what people have ordered of the job since holds on.

    Args:
        last: what was known of the job before it went back.
    """
    if last is None:
        return state
    ledger, modes = state.ledger, state.modes
    if last.limit is not None:
        ledger = replace(ledger, limit=last.limit)
    ordered = [shift for shift in last.shifts if shift.cause == "control"]
    if ordered and last.mode_epoch > modes.epoch and last.mode == ordered[-1].to_mode:
        again = replace(
            ordered[-1],
            step=state.step,
            samples=ledger.samples.applied,
            seconds=state.train_seconds,
            from_mode=modes.mode,
            reissued=0,
            seconds_to_next_step=None,
        )
        modes = ModeState(
            mode=last.mode,
            epoch=modes.epoch + 1,
            automatic=last.automatic,
            shifts=(*modes.shifts, again),
        )
    return replace(
        state,
        ledger=ledger,
        modes=modes,
        num_workers=last.num_workers,
        workers_automatic=last.workers_automatic,
        paused=last.paused,
    )


def _with_histories(begun: CoordinatorState, known: Status) -> CoordinatorState:
    return replace(
        begun,
        ledger=replace(
            begun.ledger,
            limit=known.limit,
            batches=_tallies(
                known.batches,
                applied=begun.ledger.batches.applied,
                dropped=begun.ledger.batches.dropped,
                skipped=begun.ledger.batches.skipped,
            ),
        ),
        modes=ModeState(
            mode=known.mode,
            epoch=known.mode_epoch,
            automatic=known.automatic,
            shifts=known.shifts,
        ),
        data_staleness=known.data_staleness.state(),
        parameter_staleness=known.parameter_staleness.state(),
        evaluations=known.evaluations,
        train_seconds=known.train_seconds,
        paused=known.paused,
        num_workers=known.num_workers,
        workers_automatic=known.workers_automatic,
    )


def _ledger_after(record: Record, facts: ShardFacts, before: LedgerState) -> LedgerState:
    resolved = Intervals()
    resolved.forget(below=record.low_water)
    for first, stop in (*before.resolved, *facts.resolved):
        for batch_id in range(max(first, record.low_water), stop):
            resolved.add(batch_id)
    totals = record.totals
    skipped = dict(totals.skipped)
    num_resolved = record.low_water + sum(stop - first for first, stop in resolved)
    dropped, not_used = totals.dropped_batches, totals.skipped_batches
    return LedgerState(
        low_water=record.low_water,
        resolved=tuple(resolved),
        limit=before.limit,
        samples=Samples(totals.applied, totals.dropped, sum(skipped.values()), skipped),
        batches=_tallies(
            before.batches,
            applied=num_resolved - dropped - not_used,
            dropped=dropped,
            skipped=not_used,
        ),
    )


def _tallies(known: Tallies, *, applied: int, dropped: int, skipped: int) -> Tallies:
    """Return how many batches went through each transition; the ends are those of the records.

    What is known may have counted steps that no shard has ever heard of.
    """
    done = max(known.done, applied + dropped)
    return replace(known, done=done, applied=applied, dropped=dropped, skipped=skipped)


def _modes_after(record: Record, before: ModeState) -> ModeState:
    """Return the mode that the newest record leads to, or a later one that was asked for."""
    totals = record.totals
    if totals.mode not in MODES:
        raise ValueError(f"the newest record is of mode {totals.mode!r}")
    if before.epoch > totals.mode_epoch:
        return before
    return replace(before, mode=totals.mode, epoch=totals.mode_epoch)
