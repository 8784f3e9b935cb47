"""Jobs whose workers report by relays: they die; what they pass on is late, lost or repeated."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest

from scheduler.coordinator.coordinator import Coordinator
from scheduler.coordinator.events import Command
from simulation.engine import Parts, run_scenario, seed_that_fails
from simulation.scenario import Scenario, draw, with_orders, with_relays, with_standbys
from worker.protocol import Grant, Report
from worker.relay.gathering import Gathering


@pytest.mark.parametrize("block", range(4))
def test_a_job_ends_right_whatever_happens_to_its_relays(block: int) -> None:
    for seed in range(block, 24, 4):
        run_scenario(with_relays(draw(seed)), Parts())


def test_a_job_ends_right_whatever_is_wanted_of_it_while_relays_die() -> None:
    for seed in range(8):
        run_scenario(with_relays(with_orders(draw(seed))), Parts())


def test_relays_pass_on_reports_of_another_epoch_and_nothing_comes_of_it() -> None:
    for seed in range(8):
        run_scenario(with_relays(with_standbys(draw(seed))), Parts())


def test_a_report_of_an_earlier_epoch_that_a_relay_brings_late_says_nothing_of_its_worker() -> None:
    run_scenario(with_relays(draw(1280)), Parts())


@pytest.mark.slow
@pytest.mark.parametrize("block", range(8))
def test_thousands_of_jobs_with_relays_end_right(block: int) -> None:
    for seed in range(1000 + block, 4000, 8):
        run_scenario(with_relays(draw(seed)), Parts())


# Mutants ------------------------------------------------------------------------------------------


class HandsAnswersToOthers(Gathering):
    def answered(self, grants: Sequence[Grant]) -> list[tuple[int, Grant]]:
        answers = super().answered(grants)
        peers = [peer for peer, _ in answers]
        return list(zip(peers[1:] + peers[:1], [grant for _, grant in answers], strict=True))


class PassesOnToTheNext(Gathering):
    """Who has gone leaves its answer to the one after it."""

    def take(self) -> list[Report]:
        reports = super().take()
        if len(reports) > 1:
            assert self._asked is not None
            self._asked = [*self._asked[1:], self._asked[-1]]
        return reports


class AnswersInAnotherOrder(Coordinator):
    def _reported(self, reports: Sequence[Report], now: float) -> tuple[list[Command], list[Grant]]:
        commands, grants = super()._reported(reports, now)
        return commands, grants[::-1]


class IgnoresSequenceNumbers(Coordinator):
    def _take(self, report: Report, commands: list[Command], now: float) -> Grant | None:
        if report.worker in self.workers:
            self.workers[report.worker].last_grant = None
        return super()._take(report, commands, now)


class GrantsToTheFirstAlone(Coordinator):
    """Whoever reports together with others gets what the first of them is granted."""

    def _reported(self, reports: Sequence[Report], now: float) -> tuple[list[Command], list[Grant]]:
        commands, grants = super()._reported(reports, now)
        return commands, [replace(g, tokens=grants[0].tokens) for g in grants]


def with_many(seed: int) -> Scenario:
    """Return a scenario in which bundles have several reports."""
    options: dict[str, Any] = {"batches_per_epoch": 10, "limit": None, "depth": 2}
    return replace(with_relays(draw(seed, **options)), relays=1, workers=6)


@pytest.mark.parametrize(
    "parts",
    [
        Parts(gathering=HandsAnswersToOthers),
        Parts(gathering=PassesOnToTheNext),
        Parts(coordinator=AnswersInAnotherOrder),
        Parts(coordinator=IgnoresSequenceNumbers),
        Parts(coordinator=GrantsToTheFirstAlone),
    ],
    ids=lambda parts: (
        (parts.gathering if parts.gathering is not Gathering else parts.coordinator).__name__
    ),
)
def test_a_mutant_is_caught_where_the_real_one_passes(parts: Parts) -> None:
    seed = seed_that_fails(lambda seed: run_scenario(with_many(seed), parts), range(10))

    run_scenario(with_many(seed), Parts())
