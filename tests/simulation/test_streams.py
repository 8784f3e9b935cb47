"""Jobs whose plan grows: every invariant of a complete one, and mutants of what grows."""

from collections.abc import Iterable
from dataclasses import replace

import pytest

import scheduler.coordinator.coordinator
from scheduler.coordinator.coordinator import Coordinator
from scheduler.coordinator.coordinator_state import CoordinatorState
from scheduler.coordinator.growing_plan import Extension, GrowingPlan
from scheduler.coordinator.ledger import Ledger
from simulation.engine import Parts, SimulationError, run, run_scenario
from simulation.scenario import draw, with_orders

MODES = ("sync", "gba", "async", "ssp")


def run_seeds(seeds: Iterable[int], parts: Parts | None = None) -> None:
    for seed in seeds:
        run(seed, parts, arrives=True, mode=MODES[seed % 4])


@pytest.mark.parametrize("seed", range(16))
def test_each_batch_that_arrives_ends_once_in_the_step_that_it_belongs_to(seed: int) -> None:
    run(seed, arrives=True, mode=MODES[seed % 4])


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(16, 1000))
def test_each_batch_ends_once_in_many_jobs(seed: int) -> None:
    run_scenario(with_orders(draw(seed, arrives=True, mode=MODES[seed % 4])), Parts())


@pytest.mark.parametrize("seed", range(6))
def test_modes_change_while_batches_arrive(seed: int) -> None:
    run_scenario(with_orders(draw(seed, arrives=True, mode=MODES[seed % 3])), Parts())


class ClosesNothing(GrowingPlan):
    def grow(self, extension: Extension) -> None:
        super().grow(replace(extension, closes=False))


class ClosesTooEarly(GrowingPlan):
    def grow(self, extension: Extension) -> None:
        super().grow(replace(extension, closes=True))


class TakesAnExtensionTwice(GrowingPlan):
    def grow(self, extension: Extension) -> None:
        again = replace(extension, first=max(extension.first, self.planned))
        super().grow(again if extension.batches else extension)


class ForgetsTooMuch(GrowingPlan):
    def forget(self, *, below: int) -> None:
        super().forget(below=below + 1)


class ForgetsFiles(GrowingPlan):
    def forget(self, *, below: int) -> None:
        super().forget(below=below)
        if len(self._files) > 1:
            del self._files[next(iter(self._files))]


@pytest.mark.parametrize(
    "mutant",
    [
        ClosesNothing,
        ClosesTooEarly,
        TakesAnExtensionTwice,
        ForgetsTooMuch,
        ForgetsFiles,
    ],
    ids=lambda mutant: mutant.__name__,
)
def test_a_plan_that_grows_wrongly_is_found(
    mutant: type[GrowingPlan], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scheduler.coordinator.coordinator, "GrowingPlan", mutant)
    with pytest.raises(SimulationError):
        run_seeds(range(40))


class CutsWithoutThePlan(Coordinator):
    """What was planned and is not resolved is not in the cut."""

    def state(self) -> CoordinatorState:
        state = super().state()
        assert state.plan is not None
        plan = replace(
            state.plan, planned=state.plan.first, batches=(), begins=state.plan.begins[:1]
        )
        return replace(state, plan=plan)


class NeverIdle(Ledger):
    @property
    def idle(self) -> bool:
        return False


def test_a_cut_without_its_plan_is_found() -> None:
    with pytest.raises(SimulationError):
        run_seeds(range(60), Parts(coordinator=CutsWithoutThePlan))


def test_waiting_for_samples_is_no_stall(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scheduler.coordinator.coordinator, "Ledger", NeverIdle)
    with pytest.raises(SimulationError, match="no step was applied"):
        run_seeds(range(40))
