"""A whole job that is scripted: workers that end their batches in a drawn order."""

import random
from collections.abc import Callable
from typing import Any

import pytest

from embedding.spec.eviction import Eviction
from embedding.spec.optimizers import Sgd
from embedding.spec.table import TableSpec
from ps.messages.records import Record
from ps.spec import StoreSpec
from scheduler.coordinator.coordinator import Coordinator
from scheduler.coordinator.events import (
    Answer,
    Event,
    RecordsApplied,
    SendRecords,
    WorkerReported,
)
from scheduler.coordinator.ledger_plan import LedgerPlan
from scheduler.coordinator.spec import CoordinatorSpec
from worker.protocol import Finished, Report, Token


def rows_of(batch_id: int) -> int:
    return 3 if batch_id % 11 == 10 else 10


def scripted_spec(**changes: Any) -> CoordinatorSpec:
    store = StoreSpec(
        tables=(
            TableSpec(
                name="t",
                dim=2,
                optimizer=Sgd(learning_rate=0.5),
                eviction=Eviction(steps_to_live=3, every_steps=1),
            ),
        ),
        dense_size=3,
        dense_optimizer=Sgd(learning_rate=0.25),
        num_shards=1,
    )
    plan = LedgerPlan(batches_per_epoch=11, epochs=3, rows_of=rows_of, lanes=3)
    values: dict[str, Any] = {
        "store": store, "plan": plan, "evaluation_plan": None, "mode": "sync", "group_size": 3,
        "global_batch": 30, "workers": 3, "depth": 2,
    }  # fmt: skip
    return CoordinatorSpec(**{**values, **changes})


class ScriptedJob:
    """Workers that end their batches in a drawn order; what was ordered is applied at once."""

    rows_of = staticmethod(rows_of)
    spec = staticmethod(scripted_spec)

    def __init__(self, coordinator: Coordinator, seed: int) -> None:
        self.coordinator = coordinator
        self.records: list[Record] = []
        self._rng = random.Random(seed)
        self._held: dict[int, list[Token]] = {worker: [] for worker in range(3)}
        self._sequence = 0

    def move(self) -> None:
        """One worker reports, perhaps with the end of a batch that its shards let it read."""
        worker = self._rng.randrange(3)
        held, finished = self._held[worker], []
        can_end = [token for token in held if token.at_step <= self.coordinator.step]
        if can_end and self._rng.random() < 0.7:
            token = self._rng.choice(can_end)
            held.remove(token)
            finished = [self._end_of(token)]
        self._sequence += 1
        report = Report(
            worker, 0, self._sequence, held=tuple(token.identity for token in held),
            finished=tuple(finished), want=max(0, 2 - len(held)), waiting=True,
            recovery_epoch=self.coordinator.spec.recovery_epoch,
        )  # fmt: skip
        self.handle(WorkerReported(report), worker)

    def handle(self, event: Event, worker: int = 0) -> None:
        for command in self.coordinator.handle(event, float(self._sequence)):
            if isinstance(command, SendRecords):
                self.records += command.records
                self.handle(RecordsApplied(0, self.coordinator.step), worker)
            elif isinstance(command, Answer):
                revoked = set(command.grant.revoked)
                held = [t for t in self._held[worker] if t.identity not in revoked]
                self._held[worker] = held + list(command.grant.tokens)

    def run(self, until: Callable[[], bool]) -> None:
        for _ in range(3000):
            if until():
                return
            self.move()
        raise AssertionError(self.coordinator.who_waits(0.0))

    def _end_of(self, token: Token) -> Finished:
        if token.kind == "eval":
            return Finished(token, "done", samples=0)
        planned, luck = rows_of(token.batch_id), self._rng.random()
        if luck < 0.1:
            return Finished(token, "skipped", 0, planned, "bad_file")
        skipped = 1 if luck < 0.2 else 0
        reason = "bad_file" if skipped else None
        pulled = token.at_step if token.at_step >= 0 else self.coordinator.step
        return Finished(
            token, "done", planned - skipped, skipped, reason, loss_sum=1.0, pull_step=pulled
        )


@pytest.fixture(scope="session")
def scripted() -> type[ScriptedJob]:
    return ScriptedJob
