"""Whole jobs whose shards have rows on disk and are told ahead what will be pulled, or wrongly.

The model is that of a job in memory, whatever befalls what is told and the job beside it.
"""

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from embedding.kernels.disk_reads import Layout
from embedding.table import tier_file, tier_staged, tiered_values
from embedding.table.tiered_values import TieredValues
from simulation.engine import run, run_scenario, seed_that_fails
from simulation.parts import Parts
from simulation.prefetching import PrefetchingWorker, shard_on_disk
from simulation.scenario import draw, with_resizes

SEEDS = 6


@pytest.fixture
def parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Parts:
    """Shards with room for eight rows in memory, half of them staged, and for some in buffers."""
    monkeypatch.setattr(tiered_values, "shares_of", lambda *_, **__: (8, 4096))
    monkeypatch.setattr(tier_file, "layout_of", lambda width: Layout(1, width + 1, 1024))
    return Parts(shard=shard_on_disk(str(tmp_path)), worker=PrefetchingWorker)


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """What is prefetched, and what of it is used."""
    found: Counter[str] = Counter()
    fetch, prefetch = TieredValues._fetch, TieredValues.prefetch

    def ahead_of(values: TieredValues) -> int:
        return int(values._staged.state[tier_staged.NUM_AHEAD])

    def counted_fetch(self: TieredValues, *arguments: Any, **options: Any) -> Any:
        before = ahead_of(self)
        result = fetch(self, *arguments, **options)
        found["used"] += max(before - ahead_of(self), 0)
        return result

    def counted_prefetch(self: TieredValues, rows: Any) -> None:
        before = self._prefetched
        prefetch(self, rows)
        found["prefetched"] += self._prefetched - before

    monkeypatch.setattr(TieredValues, "_fetch", counted_fetch)
    monkeypatch.setattr(TieredValues, "prefetch", counted_prefetch)
    return found


def test_a_job_ends_right_whatever_becomes_of_what_is_told_ahead(
    parts: Parts, counted: Counter[str]
) -> None:
    for seed in range(SEEDS):
        run(seed, parts, shards=1 + seed % 2)
    for seed in range(2):
        run_scenario(with_resizes(draw(seed)), parts)

    assert counted["prefetched"] > 20
    assert counted["used"] > 15


def test_rows_that_are_prefetched_wrongly_are_noticed(
    parts: Parts, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stage(
        slots: Any, staged: Any, memory: Any, records: Any, values: Any, which: Any, ahead: bool
    ) -> None:
        values = values + np.float32(1) if ahead else values
        tier_staged.stage(slots, staged, memory, records, values, which, ahead)

    monkeypatch.setattr(tiered_values, "stage", stage)
    seed_that_fails(lambda seed: run(seed, parts, shards=1), range(SEEDS))
