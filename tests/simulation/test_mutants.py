"""Deliberate faults in the protocol, one at a time: the simulation has to notice each of them.

A mutant takes the place of one real class. Each is caught within the stated number of seeds.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import pytest

from ps.client.client import Open
from ps.messages.exchange import Refusal, Request
from ps.messages.pull_push import Contribution, Pull, PullReply
from ps.messages.records import Apply, Record
from ps.shard.buffer import GradientBuffer
from ps.shard.shard import Outgoing, Shard
from scheduler.coordinator.batches import Batch
from scheduler.coordinator.coordinator import Coordinator
from scheduler.coordinator.evaluation import EvaluationRound
from scheduler.coordinator.events import Command
from scheduler.coordinator.ledger import Ledger
from scheduler.coordinator.spec import CutOptions
from scheduler.coordinator.totals import totals_of
from simulation.engine import Parts, run, seed_that_fails
from simulation.scenario import Faults
from simulation.worker import SimulatedWorker
from worker.protocol import Finished, Grant, Report, Token
from worker.session import Session, Stage

# Shards -------------------------------------------------------------------------------------------


class AcceptsOldEpochs(Shard):
    def handle(self, message: Request, sender: Any) -> list[Outgoing]:
        return super().handle(replace(message, recovery_epoch=self.recovery_epoch), sender)


class AppliesRecordsAgain(Shard):
    def _apply(self, message: Apply, sender: Any) -> list[Outgoing]:
        for record in message.records:
            if record.step < self.step and not self._refuse_record(message, record):
                self._apply_record(record)
        return super()._apply(message, sender)


class _WithBuffer(Shard):
    buffer_class: type[GradientBuffer]

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.buffer.__class__ = self.buffer_class


class _TakesLatePushes(GradientBuffer):
    def add(self, contribution: Contribution) -> Refusal | None:
        batch_id, attempt = contribution.batch_id, contribution.attempt
        if self.get(batch_id, attempt) is None and self._is_superseded(batch_id, attempt):
            self._keep(contribution)
            return None
        return super().add(contribution)


class TakesLatePushes(_WithBuffer):
    buffer_class = _TakesLatePushes


class _Drops(GradientBuffer):
    def add(self, contribution: Contribution) -> Refusal | None:
        return None if contribution.batch_id % 7 == 3 else super().add(contribution)


class DropsWhatItAcknowledged(_WithBuffer):
    buffer_class = _Drops


class AdmitsEveryKey(Shard):
    def _read(self, pull: Pull) -> PullReply:
        reply = super()._read(pull)
        reply.admitted[:] = 1
        return reply


class AnswersTooEarly(Shard):
    def _pull(self, pull: Pull, sender: Any) -> list[Outgoing]:
        return [Outgoing(sender, self._read(pull))]


class ForgetsEvictions(Shard):
    def _accepted(self, contribution: Contribution) -> None:
        return None


class LogsForEver(Shard):
    def _remember(self, record: Record) -> None:
        self.log.append(record)


class LogsTheNewestAlone(Shard):
    def _remember(self, record: Record) -> None:
        self.log.clear()
        self.log.append(record)


class _TakesSkippedForOpen(GradientBuffer):
    def settle(self, record: Record) -> None:
        super().settle(replace(record, skipped=()))


class TakesSkippedForOpen(_WithBuffer):
    """Whoever takes over the job would give these batches out again."""

    buffer_class = _TakesSkippedForOpen


class SumsBackwards(Shard):
    """Its records are right; only the last bits of the model are not."""

    def _update(self, record: Record, contributions: list[Contribution]) -> None:
        super()._update(record, contributions[::-1])


class AnswersWithLiveParameters(Shard):
    """The reply holds the memory that the next step changes."""

    def _read(self, pull: Pull) -> PullReply:
        reply = super()._read(pull)
        reply.dense = self.dense.rows.reshape(-1)[: self.dense.size]
        return reply


# The coordinator ----------------------------------------------------------------------------------


class MergesByArrival(Coordinator):
    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        real, arrived = self.rule.next_step, []
        finish = self.ledger.finish

        def note(finished: Finished) -> bool:
            arrived.append(finished.token.batch_id)
            return finish(finished)

        def by_arrival(ledger: Ledger, step: int) -> list[Batch] | None:
            batches = real(ledger, step)
            return batches and sorted(batches, key=lambda b: arrived.index(b.batch_id))

        self.ledger.finish = note  # type: ignore[method-assign]
        self.modes.rule = replace(self.rule, next_step=by_arrival)


class NeverReclaimsLostGrants(Coordinator):
    def _reclaim(self, identities: set[Any]) -> None:
        pass


class LosesTokensOfTheDead(Coordinator):
    def _lost(self, worker: int, incarnation: int) -> list[Command]:
        for batch in self.ledger._batches.values():
            if batch.worker == worker:
                batch.worker = None
        return super()._lost(worker, incarnation)


class GivesTokensToTheDead(Coordinator):
    def _reported(self, reports: Sequence[Report], now: float) -> tuple[list[Command], list[Grant]]:
        dead = []
        for report in reports:
            state = self.workers.get(report.worker)
            if state is not None and state.lost and state.incarnation == report.incarnation:
                state.lost = False
                self.allowance.joined(report.worker)
                dead.append((report.worker, state))
        result = super()._reported(reports, now)
        for worker, state in dead:
            self.allowance.left(worker)
            state.lost = True
        return result


class _WithLedger(Coordinator):
    ledger_class: type[Ledger]

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.ledger.__class__ = self.ledger_class


class _CountsLateAttempts(Ledger):
    def finish(self, finished: Finished) -> bool:
        counts = super().finish(finished)
        if not counts and finished.outcome == "done":
            self.samples.applied += finished.samples
        return counts


class CountsLateAttempts(_WithLedger):
    ledger_class = _CountsLateAttempts


class _KeepsTheAttempt(Ledger):
    def reclaim(self, identities: Any) -> int:
        names = list(identities)
        count = super().reclaim(names)
        for _, batch_id, attempt in names:
            if batch_id in self._batches:
                self._batches[batch_id].attempt = attempt
        return count


class KeepsTheAttempt(_WithLedger):
    ledger_class = _KeepsTheAttempt


class NeverLeasesUrgently(Coordinator):
    def _lease_urgent(self, report: Report, now: float) -> Token | None:
        return None


class IgnoresSequenceNumbers(Coordinator):
    def _take(self, report: Report, commands: list[Command], now: float) -> Grant | None:
        if report.worker in self.workers:
            self.workers[report.worker].last_grant = None
        return super()._take(report, commands, now)


class CountsOnlyFullBatches(Coordinator):
    def _make_record(self, batches: list[Batch]) -> Record:
        record = super()._make_record(batches)
        size = self.spec.global_batch // self.spec.group_size
        full = [b.result.samples for b in batches if b.result and b.result.samples == size]
        return replace(record, divisor=sum(full) or record.divisor)


class RaisesLowWaterTooFar(Coordinator):
    def _make_record(self, batches: list[Batch]) -> Record:
        record = super()._make_record(batches)
        return replace(record, low_water=1 + max(batch.batch_id for batch in batches))


class TotalsWithoutTheStep(Coordinator):
    """Whoever takes over the job would count its last step twice or not at all."""

    def _make_record(self, batches: list[Batch]) -> Record:
        before = totals_of(self.ledger, self.clock, self.modes, self.progress)
        return replace(super()._make_record(batches), totals=before)


class TakesOneShardForAll(Coordinator):
    """The log is dropped while another shard lacks records."""

    def _make_record(self, batches: list[Batch]) -> Record:
        record = super()._make_record(batches)
        return replace(record, applied_step=max(self._shards.steps))


class PromisesRecentPulls(Coordinator):
    """Eviction memory is dropped while older pulls are still on their way."""

    def _make_record(self, batches: list[Batch]) -> Record:
        return replace(super()._make_record(batches), oldest_pull_step=self.step)


class AppliesDuringEvaluations(Coordinator):
    def _form_steps(self, now: float) -> list[Record]:
        if self.evaluation is None:
            return super()._form_steps(now)
        self.time.go_on("evaluation", now)
        records = super()._form_steps(now)
        self.time.hold("evaluation", now)
        return records


class ForgetsAttempts(Coordinator):
    """The record names the latest attempt given out, not the one that was completed."""

    def _make_record(self, batches: list[Batch]) -> Record:
        latest = {b.batch_id: b.attempt for b in batches}
        latest |= {
            b.batch_id: b.attempt + 1 for b in batches if b.leased_at_step < self.applied_step
        }
        record = super()._make_record(batches)
        entries = tuple(replace(e, attempt=latest[e.batch_id]) for e in record.entries)
        return replace(record, entries=entries)


class _NumberedByBatch(EvaluationRound):
    def lease(self, worker: int) -> Token | None:
        token = super().lease(worker)
        return None if token is None else replace(token, step=token.batch_id)


class _CountsEarlierRounds(EvaluationRound):
    def finish(self, finished: Finished) -> bool:
        return super().finish(replace(finished, token=replace(finished.token, at_step=self.step)))


class _WithRound(Coordinator):
    round_class: type[EvaluationRound]

    def _start_evaluation(self, now: float) -> None:
        super()._start_evaluation(now)
        if self.evaluation is not None:
            self.evaluation.__class__ = self.round_class


class EvaluatesByBatchNumber(_WithRound):
    """Evaluation tokens have steps after the one that they hold: parked pulls block them."""

    round_class = _NumberedByBatch


class CountsEarlierEvaluations(_WithRound):
    round_class = _CountsEarlierRounds


# Workers ------------------------------------------------------------------------------------------


class ReportsBeforeAllAcknowledged(SimulatedWorker):
    def is_done(self, request: Open) -> bool:
        push = isinstance(next(iter(request.messages.values())), Contribution)
        return len(request.replies) > 0 if push else request.done


class TakesGrantsTwice(Session):
    def granted(self, grant: Grant) -> list[Token]:
        self._answered = 0
        return super().granted(grant)


class TakesAnyGrant(Session):
    """An answer to an earlier report is taken for the one to the last."""

    def granted(self, grant: Grant) -> list[Token]:
        self._answered = 0
        return super().granted(replace(grant, sequence=self._sequence))


class WaitsForAnyPull(Session):
    """Asks for more than its depth while a pull that is answered at once is open."""

    @property
    def waiting(self) -> bool:
        return bool(self._in(Stage.PULLING)) and not self._in(Stage.PULLED)


# What catches them --------------------------------------------------------------------------------


@dataclass(frozen=True)
class Mutant:
    """One fault, the scenarios in which it matters, and how many of them are tried at most."""

    parts: Parts
    seeds: int
    options: dict[str, Any] = field(default_factory=dict)


def shard(kind: type[Shard], seeds: int, **options: Any) -> Mutant:
    return Mutant(Parts(shard=kind), seeds, options)


def coordinator(kind: type[Coordinator], seeds: int, **options: Any) -> Mutant:
    return Mutant(Parts(coordinator=kind), seeds, options)


def session(kind: type[Session], seeds: int, **options: Any) -> Mutant:
    return Mutant(Parts(session=kind), seeds, options)


_KILLS = Faults(kill=0.05, max_kills=6, forever=1.0, until=3.0)
_ONE_KILL = replace(_KILLS, max_kills=1)
_LOSSES = Faults(lose=0.3, until=3.0)
_RESENDS = Faults(duplicate=0.3, delay=0.1, cut=0.03, until=3.0)
_LATE = Faults(duplicate=0.8, delay=0.5, until=3.0)
_BUSY: dict[str, Any] = {"workers": 4, "group_size": 4, "batches_per_epoch": 10, "limit": None}
_EVALUATING: dict[str, Any] = {"eval_every_steps": 1, "eval_batches": 6, "workers": 4}

MUTANTS = [
    shard(AcceptsOldEpochs, 5, faults=Faults(old_epoch=0.05, until=3.0)),
    shard(AppliesRecordsAgain, 10, faults=_RESENDS, bad_batches=0.3),
    shard(TakesLatePushes, 10, faults=_RESENDS, workers=5),
    shard(DropsWhatItAcknowledged, 5),
    shard(AdmitsEveryKey, 5),
    shard(AnswersTooEarly, 5, mode="sync", workers=3),
    shard(ForgetsEvictions, 20, mode="async", workers=4, steps_to_live=1),
    shard(AnswersWithLiveParameters, 5, mode="async", workers=3, shards=2),
    shard(LogsForEver, 5, mode="async", **_BUSY, epochs=3),
    shard(LogsTheNewestAlone, 5, mode="async", shards=3, **_BUSY),
    shard(TakesSkippedForOpen, 5, bad_batches=0.5, **_BUSY),
    shard(SumsBackwards, 3, mode="sync", **_BUSY),
    coordinator(MergesByArrival, 3, mode="sync", **_BUSY),
    coordinator(NeverReclaimsLostGrants, 5, faults=_LOSSES),
    coordinator(LosesTokensOfTheDead, 5, faults=_KILLS, workers=3),
    coordinator(GivesTokensToTheDead, 40, faults=replace(_KILLS, delay=0.3), workers=3),
    coordinator(CountsLateAttempts, 10, faults=_LOSSES, mode="async"),
    coordinator(KeepsTheAttempt, 5, faults=_KILLS, workers=3),
    coordinator(NeverLeasesUrgently, 20, mode="sync", faults=_ONE_KILL, workers=3, depth=1),
    coordinator(IgnoresSequenceNumbers, 5, faults=_RESENDS),
    coordinator(CountsOnlyFullBatches, 10, last_rows=1, batch_size=4, group_size=3),
    coordinator(RaisesLowWaterTooFar, 5, mode="async", workers=4),
    coordinator(PromisesRecentPulls, 5, mode="async", workers=4),
    coordinator(TotalsWithoutTheStep, 3),
    coordinator(TakesOneShardForAll, 5, mode="async", shards=3, **_BUSY),
    coordinator(AppliesDuringEvaluations, 5, mode="async", **_EVALUATING),
    coordinator(ForgetsAttempts, 5, faults=_KILLS),
    coordinator(
        EvaluatesByBatchNumber,
        20,
        mode="sync",
        depth=1,
        group_size=1,
        faults=Faults(),
        **_EVALUATING,
    ),
    coordinator(CountsEarlierEvaluations, 40, faults=_LOSSES, **_EVALUATING),
    Mutant(Parts(worker=ReportsBeforeAllAcknowledged), 5, {"shards": 4, "faults": _RESENDS}),
    session(TakesGrantsTwice, 20, faults=_LATE),
    session(TakesAnyGrant, 20, faults=_LATE),
    session(
        WaitsForAnyPull,
        40,
        mode="async",
        workers=5,
        depth=3,
        group_size=4,
        batches_per_epoch=10,
        epochs=3,
        limit=None,
        faults=Faults(delay=0.03, until=4.0),
    ),
]


# Cuts have mutants of their own.
ALONE = {"cuts": CutOptions()}


def _name(mutant: Mutant) -> str:
    parts, real = mutant.parts, Parts()
    kinds = (parts.coordinator, parts.shard, parts.session, parts.worker)
    usual = (real.coordinator, real.shard, real.session, real.worker)
    return next(k.__name__ for k, u in zip(kinds, usual, strict=True) if k is not u)


@pytest.mark.parametrize("mutant", MUTANTS, ids=_name)
def test_mutant_is_caught_where_the_real_class_passes(mutant: Mutant) -> None:
    options = ALONE | mutant.options

    seed = seed_that_fails(lambda seed: run(seed, mutant.parts, **options), range(mutant.seeds))

    run(seed, **options)
