"""A plan that grows: epochs that close, what is forgotten, and a ledger over it."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runtime.typed import from_json, to_json
from scheduler.coordinator.batch_cutter import BatchCutter
from scheduler.coordinator.batches import Status
from scheduler.coordinator.growing_plan import OPEN, Cursor, Extension, GrowingPlan, PlanState
from scheduler.coordinator.ledger import Ledger
from scheduler.coordinator.ledger_state import LedgerState
from worker.data.arrived import ArrivedFile, NewFile, PlannedBatch
from worker.data.plan import FilePlan
from worker.protocol import Finished

B, M, CLOSE = 10, 3, 5.0


def file(rows: tuple[int, ...], name: str = "a") -> FilePlan:
    return FilePlan(name, 1, rows, "digest")


def new(rows: tuple[int, ...], at: float = 0.0) -> NewFile:
    return NewFile(file(rows), at)


def cutter(plan: PlanState | None = None) -> BatchCutter:
    return BatchCutter(plan or PlanState(), batch_size=B, group_size=M, close_seconds=CLOSE)


def rows_of(extension: Extension | None) -> list[int]:
    assert extension is not None
    return [batch.num_samples for batch in extension.batches]


def test_rows_wait_for_a_whole_batch_but_not_for_long() -> None:
    cut = cutter()
    cut.add([new((7,))], {"at": 1}, now=0.0)
    assert cut.cut(4.9, most=9) is None
    cut.add([new((16,))], {"at": 2}, now=4.9)

    extension = cut.cut(4.9, most=9)

    assert rows_of(extension) == [10, 10]
    assert extension is not None
    assert not extension.closes
    assert extension.batches[0].rows == ((0, 0, 0, 7), (1, 0, 0, 3))
    assert extension.batches[0].arrived == 4.9
    assert extension.cursor.rest == ((1, 0, 13, 16),)
    late = cut.cut(5.0, most=9)  # the first row of this step came at 0
    assert rows_of(late) == [3]
    assert late is not None
    assert late.closes


def test_a_step_that_lacks_batches_is_closed_though_no_row_waits() -> None:
    cut = cutter()
    cut.add([new((10,))], {}, now=0.0)
    assert rows_of(cut.cut(0.0, most=9)) == [10]

    assert cut.cut(4.9, most=9) is None
    extension = cut.cut(5.0, most=9)

    assert extension is not None
    assert (extension.first, extension.batches, extension.closes) == (1, (), True)
    assert cut.cut(50.0, most=9) is None, "nothing is open"


def test_whole_steps_go_on_without_an_end_while_samples_arrive() -> None:
    cut = cutter()
    for second in range(20):
        cut.add([new((B * M,))], {}, now=float(second))
        extension = cut.cut(float(second), most=9)
        assert rows_of(extension) == [B] * M
        assert extension is not None
        assert not extension.closes


def test_a_stream_that_ends_has_all_rows_in_batches() -> None:
    cut = cutter()
    cut.add([new((25,))], {}, now=0.0)

    first = cut.cut(0.0, most=1, ends=True)
    rest = cut.cut(0.0, most=9, ends=True)

    assert first is not None
    assert not first.ends
    assert rows_of(rest) == [10, 5]
    assert rest is not None
    assert (rest.ends, rest.closes) == (True, True)
    assert cut.cut(99.0, most=9, ends=True) is None


def test_rows_arrive_when_their_file_was_written_but_never_before_what_was_said() -> None:
    cut, plan = cutter(), GrowingPlan(PlanState(), lanes=1)
    cut.add([new((B,), at=20.0), new((B,), at=10.0)], {}, 100.0, are_all=False)
    assert cut.arrived_until == 20.0
    cut.add([new((B,), at=60.0)], {}, 101.0, are_all=False)
    grown = cut.cut(101.0, most=9)
    assert grown is not None
    plan.grow(grown)
    assert cut.arrived_until == 60.0, "what was written later may be there still"
    cut.add([], {}, 102.0)
    assert cut.arrived_until == 102.0, "nothing else was there"
    cut.add([new((B,), at=101.5)], {}, 103.0)
    cut.add([new((B,), at=999.0)], {}, 104.0)
    again = cutter(plan.state())
    later = cut.cut(104.0, most=9)
    assert later is not None
    plan.grow(later)

    assert [plan.arrived(batch) for batch in range(5)] == [20.0, 20.0, 60.0, 102.0, 104.0]
    assert again.arrived_until == 60.0


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.tuples(st.lists(st.integers(0, 37), max_size=3), st.floats(0, 7), st.integers(1, 6)),
        max_size=12,
    ),
    st.integers(0, 12),
)
def test_whoever_goes_on_cuts_the_same_and_every_row_is_in_one_batch(
    arrivals: list[tuple[list[int], float, int]], stop_at: int
) -> None:
    """One cutter all the way; and one that follows what was written down, from some moment on."""
    cut, plan, now = cutter(), GrowingPlan(PlanState(), lanes=1), 0.0
    written: list[Extension] = []
    begins = PlanState()
    follows = 0
    for number, (rows, pause, most) in enumerate(arrivals):
        if number == stop_at:
            begins, follows = plan.state(), len(written)
        now += pause
        cut.add([new(tuple(rows))], {"at": number}, now=now)
        while (extension := cut.cut(now, most=most)) is not None:
            plan.grow(extension)
            written.append(from_json(Extension, to_json(extension)))
    other = cutter(begins)
    again = GrowingPlan(begins, lanes=1)
    for extension in written[follows:]:
        again.grow(extension)
        other.follow(extension)
        again.grow(extension)  # told twice
    assert again.state() == plan.state()
    assert other.position == (written[-1].cursor.position if written else {})

    end = cut.cut(now, most=1000, ends=True)
    if end is not None:
        plan.grow(end)
    state = plan.state()
    assert [batch.num_samples for batch in state.batches].count(0) == 0
    seen = [
        (number, group, row)
        for batch in state.batches
        for number, group, first, last in batch.rows
        for row in range(first, last)
    ]
    everything = [
        (number, group, row)
        for number, (rows, _, _) in enumerate(arrivals)
        for group, count in enumerate(rows)
        for row in range(count)
    ]
    assert seen == everything
    for batch_id, batch in enumerate(state.batches):
        if batch.num_samples < B:
            assert batch_id + 1 in state.begins, "only the last of an epoch is short"


def extension(first: int, count: int, *, closes: bool = False, ends: bool = False) -> Extension:
    files = tuple(ArrivedFile(first + i, first + i, file((B,))) for i in range(count))
    batches = tuple(PlannedBatch(((each.number, 0, 0, B),), 0.0) for each in files)
    cursor = Cursor(next_file=first + count, next_position=first + count)
    return Extension(
        first=first, batches=batches, files=files, closes=closes, ends=ends, cursor=cursor
    )


def test_a_closed_epoch_has_an_end_and_the_last_one_none() -> None:
    plan = GrowingPlan(PlanState(), lanes=2)
    plan.grow(extension(0, 4, closes=True))
    plan.grow(extension(4, 2))

    assert [plan.epoch_of(i) for i in range(6)] == [0, 0, 0, 0, 1, 1]
    assert [plan.epoch_range(i) for i in (0, 1)] == [(0, 4), (4, OPEN)]
    plan.forget(below=5)
    assert plan.epoch_range(1) == (4, OPEN)
    assert [each.number for each in plan.state().files] == [5]
    plan.grow(extension(6, 0, ends=True))
    assert (plan.epoch_range(1), plan.total) == ((4, 6), 6)


def test_an_extension_that_does_not_follow_is_refused() -> None:
    plan = GrowingPlan(PlanState(), lanes=1)
    plan.grow(extension(0, 4))

    plan.grow(extension(0, 4, closes=True))  # an old one changes nothing
    assert plan.epoch_range(0) == (0, OPEN)
    with pytest.raises(ValueError, match="has 4 batches"):
        plan.grow(extension(5, 1))


def test_a_damaged_state_is_refused() -> None:
    plan = GrowingPlan(PlanState(), lanes=1)
    plan.grow(extension(0, 2, closes=True))
    good = to_json(plan.state())
    assert from_json(PlanState, good) == plan.state()

    for damage in (
        {"planned": 1},
        {"begins": [5]},
        {"begins": []},
        {"files": []},
        {"cursor": {**good["cursor"], "rest": [[0, 0, 5, 11]]}},
    ):
        with pytest.raises(ValueError, match=r"begin|plan"):
            from_json(PlanState, {**good, **damage})


def finish(ledger: Ledger, step: int) -> bool:
    """Lease and finish a batch; return whether there was one."""
    token = ledger.lease(0, step_now=step, at_step=lambda step: step)
    if token is not None:
        assert ledger.finish(Finished(token, "done", B))
    return token is not None


def test_a_step_waits_for_its_batches_until_the_epoch_is_closed() -> None:
    plan = GrowingPlan(PlanState(), lanes=1)
    ledger = Ledger(plan, group_size=M)
    assert (ledger.idle, ledger.exhausted) == (True, False)
    plan.grow(extension(0, 2))
    assert not ledger.idle
    assert [finish(ledger, 0) for _ in range(3)] == [True, True, False]
    assert ledger.idle
    assert ledger.num_due == M > ledger.num_ended

    plan.grow(extension(2, 0, closes=True))

    assert ledger.num_due == ledger.num_ended_of_step(0) == 2
    for batch in ledger.ended_of_epoch():
        ledger.resolve(batch, Status.APPLIED)
    plan.grow(extension(2, 1))
    token = ledger.lease(0, step_now=1, at_step=lambda step: step)
    assert token is not None
    assert token.step == 1, "a closed step gains no batch"


def test_a_ledger_goes_on_where_another_was() -> None:
    plan = GrowingPlan(PlanState(), lanes=1)
    ledger = Ledger(plan, group_size=M, batch_is_step=True)
    plan.grow(extension(0, 5, closes=True))
    for _ in range(3):
        finish(ledger, 0)
    for batch in ledger.ended_of_epoch()[:2]:
        ledger.resolve(batch, Status.APPLIED)

    other = Ledger(
        GrowingPlan(plan.state(), lanes=1),
        group_size=M,
        batch_is_step=True,
        first_step=2,
        state=ledger.state(),
    )
    other.plan.grow(extension(5, 1, ends=True))

    while finish(other, 2):
        batch = other.next_ended()
        assert batch is not None
        other.resolve(batch, Status.APPLIED)
    assert other.exhausted
    assert other.samples.applied == 6 * B


def test_a_plan_that_begins_after_what_is_not_resolved_is_refused() -> None:
    plan = GrowingPlan(PlanState(), lanes=1)
    plan.grow(extension(0, 5))
    plan.forget(below=3)

    with pytest.raises(ValueError, match="batch 0 is not resolved"):
        Ledger(GrowingPlan(plan.state(), lanes=1), group_size=M, state=LedgerState())
