"""gba on a virtual clock, where workers forget tokens: lost for good, or given out again.

The coordinator and the ledger are the real ones; workers are a heap of times.
"""

import heapq
import random
import time
from collections.abc import Iterable
from dataclasses import dataclass, field

from bench.runs import Row, Run
from embedding.spec.optimizers import Sgd
from embedding.spec.table import TableSpec
from ps.spec import StoreSpec
from scheduler.coordinator.coordinator import Coordinator, CoordinatorSpec
from scheduler.coordinator.events import Answer, RecordsApplied, WorkerReported
from scheduler.coordinator.ledger import Ledger, Status
from scheduler.coordinator.ledger_plan import LedgerPlan
from scheduler.coordinator.modes.rules import ModeOptions
from worker.protocol import Finished, Grant, Report, Token, TokenKind


class LosingLedger(Ledger):
    """A ledger that never gives a token out again: what is taken back is gone.

    So a step is made of M batches that come later, as where nobody looks after tokens.
    """

    def reclaim(self, identities: Iterable[tuple[TokenKind, int, int]]) -> int:
        gone = list(identities)
        for _, batch_id, attempt in gone:
            batch = self._batches[batch_id]
            token = Token(step=batch.step, batch_id=batch_id, attempt=attempt, at_step=batch.step)
            self.finish(Finished(token, "skipped", skipped=batch.planned))
            self.resolve(batch, Status.SKIPPED)
        return len(gone)


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """What is simulated.

    Args:
        workers, m, prefetch: W, M and P of docs/modes.md.
        slower: so many times as long as the others the first worker takes.
        bound: the staleness bound.
        steps: of the job.
        lost: part of the tokens that workers forget.
        reissue: whether a forgotten token is given out again.
    """

    workers: int = 16
    m: int = 16
    prefetch: int = 2
    slower: float = 6.0
    bound: int = 6
    steps: int = 1000
    lost: float
    reissue: bool


@dataclass(slots=True)
class _Worker:
    """One that computes a batch at a time and holds some more."""

    number: int
    computing: Token | None = None
    held: list[Token] = field(default_factory=list)
    sequence: int = 0

    def report(self, prefetch: int) -> Report:
        self.sequence += 1
        ended = () if self.computing is None else (Finished(self.computing, "done", samples=1),)
        self.computing = self.held.pop(0) if self.held else None
        tokens = [*self.held, *([] if self.computing is None else [self.computing])]
        return Report(
            self.number, 0, self.sequence, tuple(token.identity for token in tokens), ended,
            want=prefetch - len(self.held),
        )  # fmt: skip

    def take(self, grant: Grant, forgets: float, rng: random.Random) -> None:
        gone = set(grant.revoked)
        self.held = [token for token in self.held if token.identity not in gone]
        self.held += [token for token in grant.tokens if rng.random() >= forgets]
        if self.computing is None and self.held:
            self.computing = self.held.pop(0)


@dataclass(slots=True)
class _Seen:
    """What became of batches in a quarter of the job."""

    staleness: int = 0
    batches: int = 0
    dropped: int = 0


def simulate(run: Run) -> Row:
    """Carry out a run whose case has `lost` in percent, and `tokens`: lost or given out again."""
    begun = time.monotonic()
    setting = Setting(
        lost=run.case["lost"] / 100,
        reissue=run.case["tokens"] == "given out again",
        steps=run.case["steps"],
        bound=run.case["bound"],
    )
    quarters = play(setting, run.seed)
    first, last = quarters[0], quarters[-1]
    return {
        "wall_seconds": time.monotonic() - begun,
        "dropped_percent": [100 * q.dropped / q.batches for q in (first, last)],
        "mean_staleness": [q.staleness / q.batches for q in (first, last)],
    }


def play(setting: Setting, seed: int) -> list[_Seen]:
    """Train on the virtual clock; return what became of the batches of each quarter."""
    rng = random.Random(seed)
    coordinator = _coordinator(setting)
    staff = [_Worker(number) for number in range(setting.workers)]
    queue = [(rng.random(), worker.number) for worker in staff]
    heapq.heapify(queue)
    quarters = [_Seen() for _ in range(4)]
    while not coordinator.trained:
        now, number = heapq.heappop(queue)
        worker = staff[number]
        for command in coordinator.handle(WorkerReported(worker.report(setting.prefetch)), now):
            if isinstance(command, Answer):
                worker.take(command.grant, setting.lost, rng)
        coordinator.handle(RecordsApplied(0, coordinator.step), now)
        _count(coordinator, quarters, setting)
        slower = setting.slower if number == 0 else 1.0
        busy = slower * rng.uniform(0.9, 1.1) if worker.computing else 0.05
        heapq.heappush(queue, (now + busy, number))
    return quarters


def _count(coordinator: Coordinator, quarters: list[_Seen], setting: Setting) -> None:
    """Book what was resolved since the last time under the quarter of the job."""
    counts = coordinator.data_staleness.counts
    if not counts:
        return
    seen = quarters[min(3, 4 * coordinator.step // setting.steps)]
    seen.batches += sum(counts.values())
    seen.staleness += sum(value * count for value, count in counts.items())
    seen.dropped += sum(count for value, count in counts.items() if value > setting.bound)
    counts.clear()


def _coordinator(setting: Setting) -> Coordinator:
    store = StoreSpec(
        tables=(TableSpec(name="t", dim=1),),
        dense_size=1,
        dense_optimizer=Sgd(learning_rate=1.0),
        num_shards=1,
    )
    plan = LedgerPlan(
        batches_per_epoch=setting.m * setting.steps, epochs=1, rows_of=lambda batch_id: 1
    )
    coordinator = Coordinator(
        CoordinatorSpec(
            store=store,
            plan=plan,
            evaluation_plan=None,
            mode="gba",
            options=ModeOptions(staleness_bound=setting.bound),
            group_size=setting.m,
            global_batch=setting.m,
            workers=setting.workers,
            depth=setting.prefetch,
        )
    )
    if not setting.reissue:
        coordinator.ledger = LosingLedger(plan, group_size=setting.m)
    return coordinator
