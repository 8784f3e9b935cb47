"""Who may change the mode, when, and what is remembered of it."""

import pytest

from scheduler.coordinator.ledger import Ledger
from scheduler.coordinator.ledger_plan import LedgerPlan
from scheduler.coordinator.mode_control import STEPS_IN_SYNC, ModeControl
from scheduler.coordinator.modes.policy import PolicyOptions
from scheduler.coordinator.modes.rules import ModeOptions, PlannedShift, rule_of
from scheduler.coordinator.modes.shift import Wish, check_shift, described
from scheduler.coordinator.spec import CoordinatorSpec
from worker.protocol import Finished, Token

PLAN = LedgerPlan(batches_per_epoch=400, epochs=1, rows_of=lambda _: 10)
QUICK = PolicyOptions(window_seconds=1.0, windows=2, min_dwell_seconds=2.0)


def control(**spec: object) -> ModeControl:
    values = {
        "store": None, "plan": PLAN, "evaluation_plan": None, "mode": "sync", "group_size": 4,
        "global_batch": 40, "workers": 4, "depth": 2, "policy": QUICK,
    }  # fmt: skip
    return ModeControl(CoordinatorSpec(**{**values, **spec}))  # type: ignore[arg-type]


def shift(modes: ModeControl, wish: Wish, *, step: int = 3, seconds: float = 5.0) -> bool:
    return modes.shift(wish, Ledger(PLAN, group_size=4), step=step, seconds=seconds, now=seconds)


def test_a_shift_is_remembered_with_its_reason_and_its_cost() -> None:
    modes = control()
    assert shift(modes, Wish("gba", "control", "asked for"))
    modes.applied(3, seconds=5.5, now=5.5)
    modes.applied(4, seconds=6.25, now=6.25)
    modes.applied(5, seconds=9.0, now=9.0)

    (made,) = modes.shifts
    assert (made.from_mode, made.to_mode, made.cause, made.step) == ("sync", "gba", "control", 3)
    assert made.seconds_to_next_step == 1.25
    assert described(made) == "sync to gba, asked for"
    assert modes.epoch == 1


def test_the_mode_that_it_is_in_already_is_no_shift() -> None:
    modes = control()

    assert not shift(modes, Wish("sync", "control", "asked for"))
    assert (modes.shifts, modes.epoch) == ([], 0)


def test_planned_shifts_come_once_and_the_last_that_is_due_holds() -> None:
    modes = control(
        shifts=(
            PlannedShift(at=2, mode="gba"),
            PlannedShift(at=3, mode="async"),
            PlannedShift(at=9, mode="sync"),
        )
    )

    assert modes.planned(1) is None
    wish = modes.planned(4)
    assert wish is not None
    assert (wish.mode, wish.cause, wish.reason) == ("async", "job", "planned at 3 global batches")
    assert modes.planned(4) is None


def test_a_job_that_begins_in_sync_leaves_it_after_its_first_steps() -> None:
    modes = control(settles=True)
    wishes = [modes.formed(step) for step in range(1, 2 * STEPS_IN_SYNC)]

    (wish,) = (wish for wish in wishes if wish is not None)
    assert wishes.index(wish) + 1 == STEPS_IN_SYNC
    assert (wish.mode, wish.cause) == ("gba", "job")
    assert wish.reason == "begun with 20 steps of sync"


def test_a_job_that_does_not_begin_in_sync_wants_nothing() -> None:
    assert control().formed(STEPS_IN_SYNC) is None


def test_a_job_that_was_taken_to_another_mode_does_not_settle_any_more() -> None:
    modes = control(settles=True)
    shift(modes, Wish("async", "control", "asked for"))
    shift(modes, Wish("sync", "control", "asked for"), step=9)

    assert modes.formed(STEPS_IN_SYNC) is None
    going_on = ModeControl(modes._spec, modes.state())
    assert going_on.formed(STEPS_IN_SYNC) is None


def test_the_policy_does_not_choose_gba_in_the_first_steps() -> None:
    assert train(control(automatic=True, settles=True), [0.1, 0.1, 0.1, 0.8], until=20.0) is None

    modes = control(automatic=True, settles=True)
    assert modes.formed(STEPS_IN_SYNC) is None  # for the policy to decide
    wish = train(modes, [0.1, 0.1, 0.1, 0.8], until=20.0)
    assert wish is not None
    assert wish.mode == "gba"


def train(modes: ModeControl, seconds: list[float], *, until: float) -> Wish | None:
    """Let workers end batches, each in its own time; return the first thing that is wanted."""
    ledger = Ledger(PLAN, group_size=4)
    ends = list(seconds)
    now, next_look = 0.0, 0.2
    for worker in range(len(seconds)):
        ledger.lease(worker, step_now=0, at_step=lambda step: step)
        modes.leased(worker, ledger, now)
    while now < until:
        worker = min(range(len(ends)), key=ends.__getitem__)
        if ends[worker] > next_look:
            now, next_look = next_look, next_look + 0.2
            wish = modes.advice(ledger, now, applied_step=0, held=False)
            if wish is not None:
                return wish
            continue
        now = ends[worker]
        token = Token(step=0, batch_id=0, attempt=0, at_step=0)
        modes.finished(worker, Finished(token, "done", 10, seconds=seconds[worker]), now)
        ledger.samples.applied += 10
        ends[worker] += seconds[worker]
    return None


def test_the_policy_wants_gba_where_a_worker_is_slow() -> None:
    modes = control(automatic=True)

    wish = train(modes, [0.1, 0.1, 0.1, 0.8], until=20.0)

    assert wish is not None
    assert (wish.mode, wish.cause) == ("gba", "policy")
    shift(modes, wish)
    assert modes.shifts[0].gba_rate is not None
    assert modes.shifts[0].sync_rate is not None
    assert modes.shifts[0].gba_rate > 3 * modes.shifts[0].sync_rate
    assert "predicted samples/s" in described(modes.shifts[0])


def test_the_policy_is_content_with_even_workers_and_silent_where_people_decide() -> None:
    assert train(control(automatic=True), [0.1] * 4, until=10.0) is None

    modes = control(automatic=True)
    modes.set_automatic(False)
    assert train(modes, [0.1, 0.1, 0.1, 0.8], until=10.0) is None


def test_nothing_is_concluded_while_training_is_held() -> None:
    modes = control(automatic=True)
    ledger = Ledger(PLAN, group_size=4)
    modes.finished(0, Finished(Token(0, 0, 0, 0), "done", 10, seconds=0.1), 0.0)

    assert all(modes.advice(ledger, t, applied_step=0, held=True) is None for t in range(100))
    assert modes.prediction is None


@pytest.mark.parametrize(("before", "after"), [("ssp", "sync"), ("gba", "backup")])
def test_modes_for_comparison_are_refused(before: str, after: str) -> None:
    with pytest.raises(ValueError, match="is for comparison and fixed for a job's life"):
        check_shift(before, after)  # type: ignore[arg-type]


def test_async_has_learning_rates_of_its_own() -> None:
    options = ModeOptions(async_learning_rate_scale=0.25)

    scales = {mode: rule_of(mode, options).learning_rate_scale for mode in ("sync", "gba", "async")}  # type: ignore[arg-type]

    assert scales == {"sync": 1.0, "gba": 1.0, "async": 0.25}
