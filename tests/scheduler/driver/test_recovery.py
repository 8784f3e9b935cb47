"""Where a job goes on after which loss; without Ray."""

from collections.abc import Callable, Collection
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from ray.exceptions import RayTaskError

import scheduler.driver.recovery
from ps.checkpoint.file_parts import CheckpointError
from ps.checkpoint.manifest import Parent
from scheduler.coordinator.clock import ClockState
from scheduler.coordinator.coordinator_state import CoordinatorState
from scheduler.coordinator.ledger_state import LedgerState
from scheduler.coordinator.mode_control import ModeState
from scheduler.coordinator.modes.shift import Shift
from scheduler.coordinator.rebuilding import with_orders
from scheduler.coordinator.status import Status
from scheduler.driver.points import Point
from scheduler.driver.processes import COORDINATOR, ProcessLostError, Who
from scheduler.driver.recovery import Recovery
from scheduler.driver.standbys import StandbysMadeError
from scheduler.run.recoveries import Recoveries

SERVER: Who = ("server", 1)
BEGINNING = CoordinatorState(
    step=0, ledger=LedgerState(), modes=ModeState(mode="sync"), clock=ClockState()
)
OLD, NEW = (
    Point(state=replace(BEGINNING, step=step), checkpoint=Path(f"full-{step}")) for step in (3, 7)
)


class Job:
    """Epochs and supervisor of a job whose losses are made up.

    Args:
        begins: what each beginning of an epoch comes to, an exception or None.
        works: what the work comes to in each.
    """

    last_status = None
    has_standby = False  # server 1

    def __init__(
        self,
        monkeypatch: pytest.MonkeyPatch,
        begins: list[Exception | None],
        works: list[Exception | None],
        points: list[Point],
    ) -> None:
        monkeypatch.setattr(scheduler.driver.recovery, "TOGETHER_SECONDS", 0.0)
        self.begun: list[Point | None] = []
        self.parents: list[Parent | None] = []
        self.replaced: list[list[Who]] = []
        self.notes: list[str] = []
        self.status_ends: Exception | None = None
        self._begins, self._works, self._points = begins, works, points
        self.recoveries = Recoveries(-1)
        self._recovery = Recovery(
            epochs=self,  # type: ignore[arg-type]
            supervisor=self,  # type: ignore[arg-type]
            recoveries=self.recoveries,
            newest_point=lambda damaged: next(
                p for p in self._points if p.checkpoint not in damaged
            ),
            note=self.notes.append,
        )

    def run(self) -> str:
        return self._recovery.run(Point(state=BEGINNING), self._work)

    def begin(
        self, point: Point | None, last: Any, *, stays: bool, other_routing: bool
    ) -> CoordinatorState:
        assert not stays
        assert not other_routing
        self.begun.append(point)
        _come_to(self._begins.pop(0) if self._begins else None)
        return BEGINNING if point is None else point.state

    def replace(self, lost: Collection[Who]) -> list[int] | None:
        self.replaced.append(sorted(lost))
        servers = [who for who in lost if who[0] == "server"]
        standby = [1] if self.has_standby else []
        return [index for _, index in servers] if len(servers) <= len(standby) else None

    def begin_epoch(self, state: CoordinatorState, parent: Parent | None) -> None:
        self.parents.append(parent)

    @property
    def parent(self) -> Parent | None:
        point = self.begun[-1]
        return None if point is None else point.parent

    @property
    def moves(self) -> "Job":
        return self

    def is_on_drained_node(self, who: Who) -> bool:
        return False

    def lost_servers(self) -> dict[Who, str]:
        return {}

    def status(self) -> None:
        _come_to(self.status_ends)

    def _work(self) -> str:
        _come_to(self._works.pop(0) if self._works else None)
        return "done"


def _come_to(end: Exception | None) -> None:
    if end is not None:
        raise end


def lost(*who: Who) -> ProcessLostError:
    return ProcessLostError({each: f"{each[0]} {each[1]} died" for each in who})


def raised(cause: Exception) -> RayTaskError:
    return RayTaskError("start_from", "traceback", cause)


Make = Callable[..., Job]


@pytest.fixture
def make(monkeypatch: pytest.MonkeyPatch) -> Make:
    return lambda begins, works, points: Job(monkeypatch, begins, works, points)


def test_a_coordinator_that_is_gone_when_it_is_asked_how_far_all_came_is_replaced_too(
    make: Make,
) -> None:
    job = make([], [lost(("server", 1))], [Point(state=BEGINNING)])
    job.status_ends = lost(COORDINATOR)

    assert job.run() == "done"
    assert job.replaced == [[COORDINATOR, ("server", 1)]]


@pytest.mark.parametrize(
    ("who", "goes_on_at"),
    [([SERVER], NEW), ([COORDINATOR], None), ([COORDINATOR, SERVER], NEW)],
)
def test_where_a_server_is_lost_all_go_back_and_where_the_coordinator_is_nobody(
    make: Make, who: list[Who], goes_on_at: Point | None
) -> None:
    job = make([], [lost(*who)], [NEW, OLD])

    assert job.run() == "done"

    assert job.begun[1:] == [goes_on_at]
    assert job.replaced == [who]


def test_the_first_cut_may_lie_on_what_all_went_back_to_where_a_delta_may(make: Make) -> None:
    bears = replace(NEW, bears=2, seal="a seal")
    job = make([], [lost(SERVER), lost(COORDINATOR)], [bears])
    assert job.run() == "done"

    assert job.parents == [None, Parent("full-7", "a seal"), None]
    assert NEW.parent is None, "of an earlier format, say"


def test_what_is_lost_on_the_way_back_is_replaced_too(make: Make) -> None:
    job = make([None, lost(("server", 0)), lost(COORDINATOR)], [lost(SERVER)], [NEW])

    assert job.run() == "done"

    assert job.begun[1:] == [NEW, NEW, NEW], "some of them may be there, and some where they were"


def test_nobody_goes_back_where_standbys_take_the_places_of_what_is_lost(make: Make) -> None:
    job = make([None, lost(("standby", 0))], [lost(SERVER, COORDINATOR)], [NEW])
    job.has_standby = True

    assert job.run() == "done"

    assert job.begun[1:] == [None, None]
    assert "the standby of server 1 takes its place" in job.notes
    assert job.recoveries.reached(9, trained=True, now=1.0).promoted == (1,)  # type: ignore[union-attr]


def test_standbys_that_are_made_join_without_a_loss(make: Make) -> None:
    job = make([], [StandbysMadeError()], [NEW])

    assert job.run() == "done"

    assert job.begun[1:] == [None]
    assert job.replaced == []


def test_servers_that_hold_no_one_state_go_back(make: Make) -> None:
    job = make([None, ValueError("shard 1 is of epoch 2")], [lost(COORDINATOR)], [NEW])

    assert job.run() == "done"

    assert job.begun[1:] == [None, NEW]
    assert "the servers don't hold one state of the job: shard 1 is of epoch 2" in job.notes


def test_a_checkpoint_that_is_found_damaged_is_told_and_an_older_one_taken(make: Make) -> None:
    damaged = raised(CheckpointError("its part 3 has another checksum"))
    job = make([None, damaged], [lost(SERVER)], [NEW, OLD])

    assert job.run() == "done"

    assert job.begun[1:] == [NEW, OLD]
    assert "full-7 can't be used: its part 3 has another checksum" in job.notes


def test_what_fails_at_the_start_or_in_the_work_ends_the_job(make: Make) -> None:
    with pytest.raises(RayTaskError, match="traceback"):
        make([raised(MemoryError("no room for the tables"))], [], [NEW]).run()
    with pytest.raises(ValueError, match="a fault of ours"):
        make([], [ValueError("a fault of ours")], [NEW]).run()


def test_what_people_have_ordered_since_a_cut_holds_on() -> None:
    shift = Shift(
        step=12, samples=120, seconds=9.0, from_mode="sync", to_mode="gba", cause="control",
        reason="asked for", reissued=3,
    )  # fmt: skip
    last = Status(mode="gba", mode_epoch=1, shifts=(shift,), num_workers=5, paused=True, limit=40)
    state = replace(BEGINNING, step=7, train_seconds=6.0)

    found = with_orders(state, last)

    assert (found.num_workers, found.paused, found.ledger.limit) == (5, True, 40)
    assert (found.modes.mode, found.modes.epoch, found.modes.automatic) == ("gba", 1, False)
    (told,) = found.modes.shifts
    assert (told.step, told.samples, told.seconds) == (7, 0, 6.0)
    assert with_orders(state, None) == state
    by_itself = replace(last, shifts=(replace(shift, cause="job"),))
    assert with_orders(state, by_itself).modes == state.modes, "it comes again when it is time"
