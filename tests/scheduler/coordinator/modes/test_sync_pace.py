"""The predicted time of synchronous steps, against the coordinator and workers' real sessions."""

import heapq
import random
from collections.abc import Sequence
from statistics import fmean

import pytest

from embedding.spec.optimizers import Sgd
from embedding.spec.table import TableSpec
from ps.messages.pull_push import ANY_STEP
from ps.spec import StoreSpec
from scheduler.coordinator.coordinator import Coordinator, CoordinatorSpec
from scheduler.coordinator.events import Answer, RecordsApplied, WorkerReported
from scheduler.coordinator.ledger_plan import LedgerPlan
from scheduler.coordinator.modes.policy import PolicyOptions, Prediction, ShiftingMode, SwitchPolicy
from scheduler.coordinator.modes.rules import ModeOptions
from scheduler.coordinator.modes.sync_pace import sync_step_seconds
from worker.protocol import Finished, Token
from worker.session import Session

POLL_SECONDS = 0.02


class Fleet:
    """Real sessions and a coordinator; batches take their time, everything else takes none."""

    def __init__(
        self, batch_seconds: Sequence[float], *, m: int, depth: int, mode: ShiftingMode
    ) -> None:
        store = StoreSpec(
            tables=(TableSpec(name="t", dim=1),), dense_size=1,
            dense_optimizer=Sgd(learning_rate=1.0), num_shards=1,
        )  # fmt: skip
        plan = LedgerPlan(batches_per_epoch=10**6, epochs=1, rows_of=lambda batch: 1, lanes=m)
        self.batch_seconds = batch_seconds
        self.m, self.mode = m, mode
        self.coordinator = Coordinator(
            CoordinatorSpec(
                store=store, plan=plan, evaluation_plan=None, mode=mode, group_size=m,
                options=ModeOptions(staleness_bound=10**6), global_batch=m,
                workers=len(batch_seconds), depth=depth,
            )
        )  # fmt: skip
        self.policy = SwitchPolicy(
            PolicyOptions(window_seconds=20), group_size=m, global_batch=m, depth=depth
        )
        self.predictions: list[Prediction] = []
        self.ended_at: list[float] = []
        self._rng = random.Random(1)
        workers = range(len(batch_seconds))
        self._sessions = [Session(worker, 0, depth=depth) for worker in workers]
        self._pulling: list[Token | None] = [None for _ in workers]
        self._computing: list[Token | None] = [None for _ in workers]
        self._seconds = [0.0 for _ in workers]
        self._queue = [(self._rng.random() * 1e-3, worker, False) for worker in workers]
        self._polling = set(workers)

    def train(self, seconds: float) -> None:
        now = 0.0
        while now < seconds:
            now, worker, is_end = heapq.heappop(self._queue)
            token = self._computing[worker]
            if is_end and token is not None:
                self._end(worker, token, now)
            else:
                self._polling.discard(worker)
            self._advance(worker, now)
            self._report(worker, now)
            self._advance(worker, now)
            self._look(now)

    def rate(self) -> float:
        """Batches per second, without the beginning."""
        ends = self.ended_at[len(self.ended_at) // 4 :]
        return (len(ends) - 1) / (ends[-1] - ends[0])

    def _end(self, worker: int, token: Token, now: float) -> None:
        self._computing[worker] = None
        self._sessions[worker].finished(Finished(token, "done", samples=1))
        self.ended_at.append(now)
        self.policy.finished(worker, samples=1, seconds=self._seconds[worker], now=now)

    def _report(self, worker: int, now: float) -> None:
        session, coordinator = self._sessions[worker], self.coordinator
        for command in coordinator.handle(WorkerReported(session.report()), now):
            if isinstance(command, Answer):
                for token in session.granted(command.grant):
                    session.prepared(token)
        if coordinator.step > coordinator.applied_step:
            coordinator.handle(RecordsApplied(0, coordinator.step), now)
            self.policy.step_applied(now)
            for other in range(len(self._sessions)):
                self._advance(other, now)
        self._poll(worker, now)

    def _poll(self, worker: int, now: float) -> None:
        if self._sessions[worker].want and worker not in self._polling:
            self._polling.add(worker)
            heapq.heappush(self._queue, (now + POLL_SECONDS, worker, False))

    def _advance(self, worker: int, now: float) -> None:
        if self._computing[worker] is not None:
            return
        session = self._sessions[worker]
        pulling = self._pulling[worker] or session.next_pull()
        self._pulling[worker] = pulling
        if pulling is None or pulling.at_step not in (ANY_STEP, self.coordinator.applied_step):
            return
        self._pulling[worker] = None
        session.pulled(pulling)
        self._computing[worker] = session.next_compute()
        seconds = self.batch_seconds[worker] * self._rng.uniform(0.9, 1.1)
        self._seconds[worker] = seconds
        heapq.heappush(self._queue, (now + seconds, worker, True))
        self._poll(worker, now)

    def _look(self, now: float) -> None:
        busy = {worker for worker, token in enumerate(self._computing) if token is not None}
        verdict = self.policy.look(
            now, mode=self.mode, samples_applied=len(self.ended_at), apply_rate=None, busy=busy
        )
        if verdict is not None:
            self.predictions.append(verdict.prediction)


CASES = [
    # workers, M, depth, how many times slower one worker is
    (4, 4, 2, 1), (4, 4, 2, 4), (4, 4, 2, 8), (4, 16, 2, 1), (4, 16, 2, 4), (4, 16, 1, 4),
    (4, 32, 2, 4), (8, 8, 2, 4), (8, 32, 2, 2), (4, 6, 2, 3), (16, 16, 1, 2),
]  # fmt: skip


@pytest.mark.parametrize(("workers", "m", "depth", "slower"), CASES)
def test_predictions_are_what_the_coordinator_does_in_either_mode(
    workers: int, m: int, depth: int, slower: float
) -> None:
    times = [1.0] * (workers - 1) + [slower]
    fleets = {}
    for mode in ("sync", "gba"):
        fleets[mode] = Fleet(times, m=m, depth=depth, mode=mode)
        fleets[mode].train(600 / workers)

    for fleet in fleets.values():
        last = fleet.predictions[-4:]
        sync, gba = fmean(p.sync_rate for p in last), fmean(p.gba_rate for p in last)
        assert sync == pytest.approx(fleets["sync"].rate(), rel=0.15)
        assert gba == pytest.approx(fleets["gba"].rate(), rel=0.15)


def greedy_makespan(times: Sequence[float], tokens: int) -> float:
    """A token to whoever is free first; no one has any ahead."""
    free = [0.0] * len(times)
    for _ in range(tokens):
        worker = min(range(len(times)), key=lambda w: (free[w], times[w]))
        free[worker] += times[worker]
    return max(free)


@pytest.mark.parametrize(("workers", "m"), [(4, 4), (4, 16), (8, 64), (3, 7)])
@pytest.mark.parametrize("slower", [1.0, 1.3, 4.6, 8.3])
def test_leases_are_about_greedy(workers: int, m: int, slower: float) -> None:
    times = [1.0] * (workers - 1) + [slower]

    seconds = sync_step_seconds(times, group_size=m, depth=2)

    assert seconds == pytest.approx(greedy_makespan(times, m), rel=0.12)


def test_more_workers_than_batches_of_a_step_are_no_use_to_sync() -> None:
    few = sync_step_seconds([1.0] * 4, group_size=4, depth=1)
    many = sync_step_seconds([1.0] * 64, group_size=4, depth=1)

    assert few == pytest.approx(1, rel=0.03)
    assert many == pytest.approx(1, rel=0.03)
