"""Reports that come together: as if one after the other, but that steps are ordered once."""

from typing import Any

import pytest

from embedding.spec.optimizers import Sgd
from embedding.spec.table import TableSpec
from ps.spec import StoreSpec
from scheduler.coordinator.coordinator import Coordinator
from scheduler.coordinator.events import (
    Answers,
    SendRecords,
    WorkersReported,
    of_different_workers,
)
from scheduler.coordinator.ledger_plan import LedgerPlan
from scheduler.coordinator.modes.rules import Mode
from scheduler.coordinator.spec import CoordinatorSpec
from worker.protocol import Finished, Grant, Report, Token


def coordinator_of(mode: Mode = "gba", *, workers: int = 4) -> Coordinator:
    store = StoreSpec(
        tables=(TableSpec(name="t", dim=1),),
        dense_size=1,
        dense_optimizer=Sgd(learning_rate=1.0),
        num_shards=1,
    )
    plan = LedgerPlan(batches_per_epoch=1000, epochs=1, rows_of=lambda _: 1, lanes=2)
    return Coordinator(
        CoordinatorSpec(
            store=store, plan=plan, evaluation_plan=None, mode=mode, group_size=2, global_batch=2,
            workers=workers, depth=2, recovery_epoch=1,
        )
    )  # fmt: skip


def report(worker: int, sequence: int, *ended: Token, want: int = 1, **more: Any) -> Report:
    finished = tuple(Finished(token, "done", samples=1) for token in ended)
    more = {"recovery_epoch": 1, **more}
    return Report(worker, 0, sequence, finished=finished, want=want, **more)


def tell(coordinator: Coordinator, *reports: Report) -> tuple[list[Grant], list[int]]:
    """Return the answers, and the steps of each message of records."""
    *others, answers = coordinator.handle(WorkersReported(reports), 0.0)
    assert isinstance(answers, Answers)
    return list(answers.grants), [len(c.records) for c in others if isinstance(c, SendRecords)]


@pytest.mark.parametrize(("mode", "steps"), [("gba", 2), ("async", 4)])
def test_what_all_have_ended_is_ordered_once_before_anyone_is_granted_something(
    mode: Mode, steps: int
) -> None:
    coordinator = coordinator_of(mode)
    first, _ = tell(coordinator, *(report(worker, 1) for worker in range(4)))
    assert [grant.tokens[0].batch_id for grant in first] == [0, 1, 2, 3]

    second, records = tell(coordinator, *(report(w, 2, *first[w].tokens) for w in (2, 0, 3, 1)))

    assert records == [steps]
    assert coordinator.step == steps
    assert sorted(grant.tokens[0].batch_id for grant in second) == [4, 5, 6, 7]
    assert all(grant.sequence == 2 for grant in second)


def test_answers_are_in_the_order_of_the_reports_whatever_becomes_of_them() -> None:
    coordinator = coordinator_of()
    (before,), _ = tell(coordinator, report(1, 5))

    grants, _ = tell(
        coordinator,
        report(0, 7),
        report(1, 5),  # again
        report(2, 8, recovery_epoch=0),  # of another epoch
        report(3, 9),
    )

    assert [grant.sequence for grant in grants] == [7, 5, 8, 9]
    assert grants[1] is before
    assert [len(grant.tokens) for grant in grants] == [1, 1, 0, 1]


def test_a_report_that_comes_twice_at_once_has_one_effect_and_the_same_answer() -> None:
    coordinator = coordinator_of()

    (one, again), _ = tell(coordinator, report(0, 1, want=2), report(0, 1, want=2))

    assert one == again
    assert coordinator.ledger.num_leased == 2


def test_a_workers_next_report_is_taken_after_the_answer_to_the_one_before() -> None:
    coordinator = coordinator_of()

    first, second = (report(0, 1), report(0, 2, held=(("train", 0, 0),)))
    (one, two), _ = tell(coordinator, first, second)

    assert [grant.tokens[0].batch_id for grant in (one, two)] == [0, 1]
    assert coordinator.ledger.num_leased == 2


def test_an_older_report_that_comes_late_changes_nothing() -> None:
    coordinator = coordinator_of()
    (first,), _ = tell(coordinator, report(0, 1))
    (second,), _ = tell(coordinator, report(0, 2, *first.tokens))

    (late,), records = tell(coordinator, report(0, 1))

    assert (late, records) == (second, [])
    assert coordinator.ledger.num_leased == 1


def test_groups_have_no_worker_twice_and_keep_the_order() -> None:
    reports = [report(worker, sequence) for worker, sequence in [(0, 1), (1, 1), (0, 2), (0, 3)]]

    groups = of_different_workers(reports)

    assert [[r.sequence for r in group] for group in groups] == [[1, 1], [2], [3]]
    assert [r for group in groups for r in group] == reports
