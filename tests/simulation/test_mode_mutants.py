"""Deliberate faults in the mode rules: the simulation notices each of them."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest

from ps.messages.pull_push import Contribution
from ps.messages.records import Record
from ps.shard.shard import Shard
from scheduler.coordinator.allowance import Allowance
from scheduler.coordinator.batches import Batch, Status
from scheduler.coordinator.coordinator import Coordinator
from scheduler.coordinator.ledger import Ledger
from scheduler.coordinator.modes.rules import ModeOptions, ModeRule
from simulation.engine import Parts, run, seed_that_fails
from simulation.scenario import Faults
from worker.protocol import Finished

# Rules --------------------------------------------------------------------------------------------


class _WithRule(Coordinator):
    """A coordinator whose rule is another one."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.modes.rule = self.changed(self.modes.rule)

    def changed(self, rule: ModeRule) -> ModeRule:
        raise NotImplementedError


class DropsAtTheBound(_WithRule):
    def changed(self, rule: ModeRule) -> ModeRule:
        return replace(rule, weight=lambda staleness: rule.weight(staleness + 1))


class KeepsOneBeyondTheBound(_WithRule):
    def changed(self, rule: ModeRule) -> ModeRule:
        return replace(rule, weight=lambda staleness: rule.weight(staleness - 1))


class NeverDrops(_WithRule):
    def changed(self, rule: ModeRule) -> ModeRule:
        return replace(rule, weight=lambda staleness: 1.0)


class _Ordered(_WithRule):
    key: Callable[[Any, Batch], Any]

    def changed(self, rule: ModeRule) -> ModeRule:
        def ordered(ledger: Ledger, step: int) -> list[Batch] | None:
            batches = rule.next_step(ledger, step)
            return batches and sorted(batches, key=self.key)

        return replace(rule, next_step=ordered)


class SumsGbaByBatch(_Ordered):
    def key(self, batch: Batch) -> Any:
        return batch.batch_id


class SumsBackupByWorker(_Ordered):
    def key(self, batch: Batch) -> Any:
        return -batch.batch_id


class StepsSpanEpochs(_WithRule):
    def changed(self, rule: ModeRule) -> ModeRule:
        def any_epoch(ledger: Ledger, step: int) -> list[Batch] | None:
            ended = list(ledger._ended)
            return ended[: ledger.group_size] if len(ended) >= ledger.num_due > 0 else None

        return replace(rule, next_step=any_epoch)


class TakesTheLowestBatches(_WithRule):
    """Not those that ended first."""

    def changed(self, rule: ModeRule) -> ModeRule:
        def lowest(ledger: Ledger, step: int) -> list[Batch] | None:
            ended = sorted(ledger.ended_of_epoch(), key=lambda b: b.batch_id)
            return ended[: ledger.num_due] if 0 < ledger.num_due <= len(ended) else None

        return replace(rule, next_step=lowest)


class GivesAgainWhatIsAtTheBound(_WithRule):
    def changed(self, rule: ModeRule) -> ModeRule:
        return replace(rule, outdated=lambda ledger, step: rule.outdated(ledger, step + 1))


class NeverGivesAgain(_WithRule):
    def changed(self, rule: ModeRule) -> ModeRule:
        return replace(rule, outdated=lambda ledger, step: [])


# Records ------------------------------------------------------------------------------------------


class LeavesTheDroppedOutOfN(Coordinator):
    def _make_record(self, batches: list[Batch]) -> Record:
        samples = {b.batch_id: b.result.samples for b in batches if b.result}
        record = super()._make_record(batches)
        used = [samples[e.batch_id] for e in record.entries if e.weight > 0]
        return replace(record, divisor=sum(used))


class LeavesTheDroppedOutOfTheStep(Coordinator):
    def _make_record(self, batches: list[Batch]) -> Record:
        record = super()._make_record(batches)
        return replace(record, entries=tuple(e for e in record.entries if e.weight > 0))


class DropsByThePull(Coordinator):
    """The bound looks at the step of the pull and not at the one of the token."""

    def _make_record(self, batches: list[Batch]) -> Record:
        pulled = {b.batch_id: b.result.pull_step for b in batches if b.result}
        record = super()._make_record(batches)
        entries = tuple(
            replace(e, weight=self.rule.weight(record.step - pulled[e.batch_id]))
            for e in record.entries
        )
        return replace(record, entries=entries)


class ClockCountsTheDropped(Coordinator):
    def _make_record(self, batches: list[Batch]) -> Record:
        advance = self.clock.advance
        total = sum(b.result.samples for b in batches if b.result and b.status is Status.DONE)
        self.clock.advance = (  # type: ignore[method-assign]
            lambda samples, *, next_step: advance(total, next_step=next_step)
        )
        record = super()._make_record(batches)
        self.clock.advance = advance  # type: ignore[method-assign]
        return record


class KeepsVoidContributions(Coordinator):
    def _make_record(self, batches: list[Batch]) -> Record:
        self.ledger.take_discards()
        return super()._make_record(batches)


# The ledger ---------------------------------------------------------------------------------------


class _WithLedger(Coordinator):
    ledger_class: type[Ledger]

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.ledger.__class__ = self.ledger_class


class _CountsDroppedAsApplied(Ledger):
    def resolve_all(self, resolved: Sequence[tuple[Batch, Status]]) -> None:
        applied = {Status.DROPPED: Status.APPLIED}
        super().resolve_all([(batch, applied.get(status, status)) for batch, status in resolved])


class CountsDroppedAsApplied(_WithLedger):
    ledger_class = _CountsDroppedAsApplied


class _TakesVoidAttempts(Ledger):
    def finish(self, finished: Finished) -> bool:
        for batch in self.unresolved():
            batch.first_valid = 0
        return super().finish(finished)


class TakesVoidAttempts(_WithLedger):
    ledger_class = _TakesVoidAttempts


class _KeepsTheStep(Ledger):
    def give_again(self, batch: Batch, *, step: int) -> None:
        super().give_again(batch, step=batch.step)


class GivesAgainAtTheOldStep(_WithLedger):
    """Every attempt is too late at once: nothing ever ends."""

    ledger_class = _KeepsTheStep


# Slack --------------------------------------------------------------------------------------------


class IgnoresTheSlack(_WithRule):
    def changed(self, rule: ModeRule) -> ModeRule:
        return replace(rule, slack=None)


class _WithAllowance(Coordinator):
    allowance_class: type[Allowance]

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.allowance.__class__ = self.allowance_class


class _CountsEndedBatchesOnly(Allowance):
    def _is_too_far_ahead(self, worker: int) -> bool:
        slack = self._modes.rule.slack
        return slack is not None and self._paces[worker] - self._slowest_pace > slack


class CountsEndedBatchesOnly(_WithAllowance):
    """What a worker holds already does not count for its lead."""

    allowance_class = _CountsEndedBatchesOnly


class _NobodyEverLeaves(Allowance):
    def left(self, worker: int) -> None:
        pass

    def joined(self, worker: int) -> None:
        if worker not in self._paces:
            super().joined(worker)


class WaitsForTheLost(_WithAllowance):
    allowance_class = _NobodyEverLeaves


class _JoinersAtZero(Allowance):
    def joined(self, worker: int) -> None:
        self._paces[worker] = 0
        self._least_pace.add(0)


class StartsJoinersAtZero(_WithAllowance):
    allowance_class = _JoinersAtZero


# Shards -------------------------------------------------------------------------------------------


class CountsWhatWeighsNothing(Shard):
    """Keys of dropped batches are admitted, counted and stamped with the step."""

    def _apply_record(self, record: Record) -> None:
        tiny = tuple(replace(e, weight=e.weight or 1e-30) for e in record.entries)
        real = record
        super()._apply_record(replace(record, entries=tiny))
        self.log[-1] = real


class DividesByTheWholeStep(Shard):
    def _update(self, record: Record, contributions: list[Contribution]) -> None:
        right, self.spec = self.spec, replace(self.spec, sparse_mean="global")
        super()._update(record, contributions)
        self.spec = right


# What catches them --------------------------------------------------------------------------------

SEEDS = 12
_SLOW = Faults(slow=0.1, delay=0.1, until=4.0)
_KILLS = Faults(kill=0.05, max_kills=6, forever=1.0, until=3.0)
_JOINS = Faults(kill=0.05, max_kills=6, forever=0.0, until=3.0)
_BUSY: dict[str, Any] = {
    "workers": 4, "group_size": 2, "batches_per_epoch": 10, "epochs": 2, "limit": None,
    "max_seconds": None, "faults": _SLOW,
}  # fmt: skip
_DROP = {**_BUSY, "mode": "gba", "mode_options": ModeOptions(staleness_bound=0)}
_AGAIN = {
    **_BUSY,
    "mode": "gba",
    "mode_options": ModeOptions(staleness_bound=0, on_stale="reissue"),
}
_BACKUP = {**_BUSY, "mode": "backup", "group_size": 3}
_SSP = {**_BUSY, "mode": "ssp", "mode_options": ModeOptions(ssp_slack=1)}

MUTANTS: list[tuple[type[Coordinator] | type[Shard], dict[str, Any]]] = [
    (DropsAtTheBound, _DROP),
    (KeepsOneBeyondTheBound, _DROP),
    (NeverDrops, _DROP),
    (SumsGbaByBatch, _DROP),
    (StepsSpanEpochs, _DROP),
    (TakesTheLowestBatches, _DROP),
    (LeavesTheDroppedOutOfN, _DROP),
    (LeavesTheDroppedOutOfTheStep, _DROP),
    (DropsByThePull, _DROP),
    (ClockCountsTheDropped, _DROP),
    (CountsDroppedAsApplied, _DROP),
    (CountsWhatWeighsNothing, _DROP),
    (DividesByTheWholeStep, {**_DROP, "sparse_mean": "contributors"}),
    (GivesAgainWhatIsAtTheBound, _AGAIN),
    (NeverGivesAgain, _AGAIN),
    (TakesVoidAttempts, _AGAIN),
    (GivesAgainAtTheOldStep, _AGAIN),
    (KeepsVoidContributions, _AGAIN),
    (SumsBackupByWorker, _BACKUP),
    (NeverGivesAgain, _BACKUP),
    (TakesVoidAttempts, _BACKUP),
    (KeepsVoidContributions, _BACKUP),
    (IgnoresTheSlack, _SSP),
    (CountsEndedBatchesOnly, _SSP),
    (WaitsForTheLost, {**_SSP, "faults": _KILLS}),
    (StartsJoinersAtZero, {**_SSP, "faults": _JOINS}),
]


def _name(value: object) -> str:
    return value.__name__ if isinstance(value, type) else str(value["mode"])  # type: ignore[index]


@pytest.mark.parametrize(("mutant", "options"), MUTANTS, ids=_name)
def test_mutant_is_caught(mutant: type[Coordinator] | type[Shard], options: dict[str, Any]) -> None:
    parts = Parts(shard=mutant) if issubclass(mutant, Shard) else Parts(coordinator=mutant)

    seed_that_fails(lambda seed: run(seed, parts, **options), range(SEEDS))


@pytest.mark.parametrize("options", [_DROP, _AGAIN, _BACKUP, _SSP], ids=_name)
@pytest.mark.parametrize("faults", [_SLOW, _KILLS, _JOINS], ids=["slow", "kills", "joins"])
def test_the_real_classes_pass_where_mutants_are_caught(
    options: dict[str, Any], faults: Faults
) -> None:
    for seed in range(3):
        run(seed, **{**options, "faults": faults})
