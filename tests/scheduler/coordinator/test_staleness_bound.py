"""How stale a slow worker's data get: the rule by which docs/modes.md chooses the bound."""

import heapq
import random
from dataclasses import dataclass, field

import pytest

from embedding.spec.optimizers import Sgd
from embedding.spec.table import TableSpec
from ps.spec import StoreSpec
from scheduler.coordinator.coordinator import Coordinator
from scheduler.coordinator.events import Answer, RecordsApplied, WorkerReported
from scheduler.coordinator.ledger_plan import LedgerPlan
from scheduler.coordinator.modes.rules import ModeOptions
from scheduler.coordinator.spec import CoordinatorSpec
from worker.protocol import Finished, Grant, Report, Token

PREFETCH = 2
STEPS = 150


@dataclass(slots=True)
class Worker:
    """One that computes a batch at a time and holds PREFETCH more."""

    number: int
    seconds: float
    computing: Token | None = None
    held: list[Token] = field(default_factory=list)
    sequence: int = 0

    def report(self) -> Report:
        """The batch is done; the next one begins before more are asked for."""
        self.sequence += 1
        ended = () if self.computing is None else (Finished(self.computing, "done", samples=1),)
        self._begin()
        tokens = [*self.held, *([] if self.computing is None else [self.computing])]
        return Report(
            self.number, 0, self.sequence, tuple(token.identity for token in tokens), ended,
            want=PREFETCH - len(self.held),
        )  # fmt: skip

    def take(self, grant: Grant) -> None:
        gone = set(grant.revoked)
        self.held = [token for token in self.held if token.identity not in gone]
        self.held += grant.tokens
        if self.computing is None:
            self._begin()

    def _begin(self) -> None:
        self.computing = self.held.pop(0) if self.held else None


def train(workers: int, m: int, slower: float, options: ModeOptions) -> tuple[Coordinator, float]:
    """Train on a virtual clock with one slow worker; return the coordinator and the seconds."""
    rng = random.Random(1)
    store = StoreSpec(
        tables=(TableSpec(name="t", dim=1),), dense_size=1,
        dense_optimizer=Sgd(learning_rate=1.0), num_shards=1,
    )  # fmt: skip
    plan = LedgerPlan(batches_per_epoch=m * STEPS, epochs=1, rows_of=lambda batch_id: 1)
    coordinator = Coordinator(
        CoordinatorSpec(
            store=store, plan=plan, evaluation_plan=None, mode="gba", options=options,
            group_size=m, global_batch=m, workers=workers, depth=PREFETCH,
        )
    )  # fmt: skip
    staff = [Worker(number, slower if number == 0 else 1.0) for number in range(workers)]
    queue = [(rng.random(), worker.number) for worker in staff]
    heapq.heapify(queue)
    now = 0.0
    while not coordinator.trained:
        now, number = heapq.heappop(queue)
        worker = staff[number]
        for command in coordinator.handle(WorkerReported(worker.report()), now):
            if isinstance(command, Answer):
                worker.take(command.grant)
        coordinator.handle(RecordsApplied(0, coordinator.step), now)
        busy = worker.seconds * rng.uniform(0.9, 1.1) if worker.computing else 0.05
        heapq.heappush(queue, (now + busy, number))
    return coordinator, now


@pytest.mark.parametrize(("workers", "m"), [(4, 4), (16, 16), (16, 64)])
@pytest.mark.parametrize("slower", [1, 2, 4])
def test_a_slow_worker_is_as_late_as_the_rule_says(workers: int, m: int, slower: float) -> None:
    coordinator, _ = train(workers, m, slower, ModeOptions(staleness_bound=1000))

    latest = max(coordinator.data_staleness.counts)
    expected = (PREFETCH + 1) * (slower - 1) * workers / m
    assert 0.6 * expected - 1 <= latest <= expected + 2


@pytest.mark.parametrize("workers", [4, 16])
def test_the_default_bound_keeps_workers_that_are_three_times_slower(workers: int) -> None:
    kept, _ = train(workers, workers, 3, ModeOptions())
    not_kept, _ = train(workers, workers, 6, ModeOptions())

    assert kept.ledger.samples.dropped < 0.005 * workers * STEPS
    assert not_kept.ledger.samples.dropped > 0.005 * workers * STEPS


@pytest.mark.parametrize(("bound", "times"), [(0, 2.5), (3, 1.25)])
def test_reissuing_loses_nothing_and_ends_soon(bound: int, times: float) -> None:
    coordinator, seconds = train(8, 8, 8, ModeOptions(staleness_bound=bound, on_stale="reissue"))

    assert coordinator.ledger.samples.applied == 8 * STEPS
    assert coordinator.ledger.tallies.reissued > 0
    assert coordinator.step == STEPS
    assert max(coordinator.data_staleness.counts) <= bound
    # What seven workers alone would take, some time at the end, and what even ones have voided
    # where the bound leaves no room for chance.
    assert seconds < times * STEPS * 8 / 7


def test_even_workers_are_not_late_whatever_their_number() -> None:
    coordinator, _ = train(16, 4, 1, ModeOptions(staleness_bound=1000))

    assert abs(coordinator.data_staleness.summary().mean) < 1
