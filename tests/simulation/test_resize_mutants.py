"""Buckets that move between shards which train on, and faults in that, which are noticed.

Each key has one owner under each routing, no step is done again, nothing that was pushed is lost or
counts twice, and in sync the model is that of a job whose buckets stay where they are.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from embedding.entries import CounterEntries
from ps.shard.shard import Shard
from scheduler.coordinator.status import Status
from simulation.cuts import KeptCut, KeptTable
from simulation.engine import Parts, SimulationError, run, run_scenario
from simulation.resizing import Incoming
from simulation.scenario import Faults, draw, with_resizes

SEEDS = 4
RESIZING: dict[str, Any] = {
    "mode": "async", "workers": 3, "shards": 3, "batches_per_epoch": 30, "epochs": 1, "limit": None,
    "max_seconds": None, "faults": Faults(resizes=(0.02, 0.6, 1.2), delay=0.05, until=3.0),
}  # fmt: skip


class CountsWhatItDoesNotOwn(Shard):
    """Rows that were taken in, and those that have left, are evicted, frozen and exported."""

    def _own_buckets(self) -> None:
        pass


class ForgetsWhatWasRemoved(Incoming):
    def lay_on(self, cut: KeptCut) -> None:
        super().lay_on(changed(cut, lambda table: replace(table, removed=table.removed[:0])))


class LeavesOutCounters(Incoming):
    def lay_on(self, cut: KeptCut) -> None:
        def without(table: KeptTable) -> KeptTable:
            rest = [piece for piece in table.pieces if not isinstance(piece, CounterEntries)]
            return replace(table, pieces=rest)

        super().lay_on(changed(cut, without))


def changed(cut: KeptCut, change: Callable[[KeptTable], KeptTable]) -> KeptCut:
    """Return a cut of which every table is changed."""
    tables = {shard: [change(table) for table in found] for shard, found in cut.tables.items()}
    return replace(cut, tables=tables)


def goes_by_it_too_soon(status: Status, saved_step: int | None) -> bool:
    return status.held and saved_step is not None


MUTANTS = {
    "others' rows count": Parts(shard=CountsWhatItDoesNotOwn),
    "removed rows come": Parts(incoming=ForgetsWhatWasRemoved),
    "counters stay": Parts(incoming=LeavesOutCounters),
    "too soon": Parts(stands_still=goes_by_it_too_soon),
}


@pytest.mark.parametrize("name", MUTANTS)
def test_mutant_is_caught_where_buckets_move(name: str) -> None:
    def is_caught() -> bool:
        for seed in range(SEEDS):
            try:
                run(seed, MUTANTS[name], **RESIZING)
            except SimulationError:
                return True
        return False

    assert is_caught()


@pytest.mark.parametrize("mode", ["sync", "gba", "async"])
def test_real_classes_pass_where_buckets_move(mode: str) -> None:
    outcomes = [run(seed, **RESIZING | {"mode": mode}) for seed in range(SEEDS)]

    assert sum(outcome.resizes for outcome in outcomes) >= SEEDS


@pytest.mark.parametrize("mode", ["sync", "gba", "async"])
def test_whoever_dies_while_buckets_move_leaves_one_routing_or_the_other(mode: str) -> None:
    outcomes = [
        run_scenario(with_resizes(draw(seed, mode=mode)), Parts()) for seed in range(2 * SEEDS)
    ]

    assert sum(outcome.resizes for outcome in outcomes) >= SEEDS / 2
    assert any(outcome.given_up for outcome in outcomes)
