"""What a slow worker costs the others: nothing that grows, and somebody trains its batch."""

from typing import Any

import numpy as np
import pytest

from embedding.spec.eviction import Eviction
from embedding.spec.optimizers import Sgd
from embedding.spec.table import TableSpec
from ps.messages.pull_push import Contribution, PushReply
from ps.messages.records import Apply, Record
from ps.shard.shard import Shard
from ps.spec import StoreSpec
from scheduler.coordinator.coordinator import Coordinator
from scheduler.coordinator.events import Answer, RecordsApplied, SendRecords, WorkerReported
from scheduler.coordinator.ledger_plan import LedgerPlan
from scheduler.coordinator.spec import CoordinatorSpec
from worker.protocol import Finished, Grant, Report, Token

FAST, SLOW = 0, 1
STORE = StoreSpec(
    tables=(
        TableSpec(
            name="t", dim=1, optimizer=Sgd(), eviction=Eviction(steps_to_live=3, every_steps=1)
        ),
    ),
    dense_size=1,
    dense_optimizer=Sgd(),
    num_shards=1,
)


class Job:
    """Two workers and a shard; every batch has a key of its own."""

    def __init__(self, *, batches: int = 10_000, **options: Any) -> None:
        plan = LedgerPlan(batches_per_epoch=batches, epochs=1, rows_of=lambda batch_id: 1)
        values: dict[str, Any] = {
            "store": STORE, "plan": plan, "evaluation_plan": None, "mode": "async",
            "group_size": 2, "global_batch": 2, "workers": 2, "depth": 1,
        }  # fmt: skip
        self.coordinator = Coordinator(CoordinatorSpec(**{**values, **options}))
        self.shard = Shard(STORE, 0)
        self.shard.initialize(0, dense=np.zeros(1, np.float32))
        self.records: list[Record] = []
        self._sequences = {FAST: 0, SLOW: 0}
        self._held: dict[int, set[Any]] = {FAST: set(), SLOW: set()}

    def report(self, worker: int, *finished: Finished, want: int = 0) -> Grant:
        held = self._held[worker]
        held -= {each.token.identity for each in finished}
        self._sequences[worker] += 1
        report = Report(
            worker, 0, self._sequences[worker], held=tuple(held), finished=finished, want=want
        )
        grant = None
        for command in self.coordinator.handle(WorkerReported(report), 0.0):
            if isinstance(command, Answer):
                grant = command.grant
            elif isinstance(command, SendRecords):
                self.records += command.records
                self.shard.handle(Apply(1, 0, command.records), "coordinator")
        self.coordinator.handle(RecordsApplied(0, self.shard.step), 0.0)
        assert grant is not None
        held -= set(grant.revoked)
        held |= {token.identity for token in grant.tokens}
        return grant

    def holds(self, worker: int) -> bool:
        return bool(self._held[worker])

    def lease(self, worker: int) -> Token:
        (token,) = self.report(worker, want=1).tokens
        return token

    def push(self, token: Token, pull_step: int) -> str:
        """Push a batch; return `held`, or why it was refused."""
        message = Contribution(
            1, 0, token.mode_epoch, 0, token.batch_id, token.attempt, 1, pull_step, (1,),
            np.array([token.batch_id]), np.ones(1, np.uint32), np.ones(1, np.float32),
            np.ones(1, np.float32), np.ones(1, np.uint8),
        )  # fmt: skip
        reply = self.shard.handle(message, "worker")[0].reply
        return "held" if isinstance(reply, PushReply) else str(getattr(reply, "reason", reply))

    def train(self, token: Token, worker: int = FAST) -> None:
        step = self.shard.step
        assert self.push(token, step) == "held"
        self.report(worker, Finished(token, "done", 1, pull_step=step))


@pytest.mark.parametrize(("mode", "batches_per_step"), [("async", 1), ("gba", 2)])
def test_what_is_remembered_while_a_batch_is_not_ended_is_bounded(
    mode: str, batches_per_step: int
) -> None:
    job = Job(mode=mode, attempt_lasts=5)
    # 2 x 1 + 2 x 2 credits, 5 times.
    lasts = 30 // batches_per_step
    job.lease(SLOW)
    most = {"log": 0, "evicted": 0, "resolved": 0, "behind": 0}
    for number in range(600):
        job.train(job.lease(FAST))
        if number % 7 == 0:
            job.report(SLOW)
            job.report(SLOW, want=0 if job.holds(SLOW) else 1)  # it ends nothing
        now = {
            "log": len(job.shard.log),
            "evicted": len(job.shard._evicted[0]),
            "resolved": len(job.shard.buffer.resolved),
            "behind": job.shard.step - job.records[-1].oldest_pull_step if job.records else 0,
        }
        most = {name: max(most[name], value) for name, value in now.items()}

    assert job.shard.step == 600 // batches_per_step
    assert job.shard.counts.evicted > 500
    assert lasts <= most["behind"] <= lasts + 6
    assert most["log"] <= 6, "the credits"
    assert most["resolved"] <= 7
    # A key a batch, of two such spans.
    assert most["evicted"] <= 2 * (30 + 6)


def test_an_attempt_is_given_to_somebody_else_once_and_then_counts_no_more() -> None:
    job = Job(attempt_lasts=2)
    slow = job.lease(SLOW)
    lasts = job.coordinator.attempt_steps
    assert lasts == 2 * 6, "twice the credits: 2 x 1 + 2 x 2"
    for _ in range(lasts):
        job.train(job.lease(FAST))
    assert job.report(SLOW).revoked == ()
    assert job.push(slow, 0) == "held", "it may still come"

    job.train(job.lease(FAST))

    last = job.records[-1]
    assert (last.step, last.oldest_pull_step, last.low_water) == (lasts, lasts, 0)
    assert job.report(SLOW).revoked == (slow.identity,)
    job.report(SLOW, Finished(slow, "done", 1))
    assert len(job.records) == lasts + 1
    again = job.lease(FAST)
    assert (again.batch_id, again.attempt, again.step) == (0, 1, lasts + 1)
    job.train(again)
    assert job.records[-1].discard == ((0, 0),)
    assert job.push(slow, 0) == "superseded"
    named = [entry.batch_id for record in job.records for entry in record.entries]
    assert sorted(named) == list(range(lasts + 2))
    assert job.records[-1].low_water == lasts + 2
    tallies = job.coordinator.ledger.tallies
    assert (tallies.reissued, tallies.superseded) == (1, 1)


def test_what_has_ended_in_time_is_kept() -> None:
    job = Job(attempt_lasts=2)
    slow = job.lease(SLOW)
    for _ in range(job.coordinator.attempt_steps):
        job.train(job.lease(FAST))

    assert job.push(slow, 0) == "held"
    job.report(SLOW, Finished(slow, "done", 1))

    assert [entry.batch_id for entry in job.records[-1].entries] == [0]
    assert job.coordinator.ledger.tallies.reissued == 0
