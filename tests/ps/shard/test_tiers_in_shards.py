"""Shards whose rows are mostly on a disk: the same bits, over checkpoints too; what fails."""

import errno
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from embedding import Adam, CounterAdmission, TableSpec, Tiers
from embedding.table import tier_file
from embedding.table.tier_extents import TierError
from ps.checkpoint.read import CheckpointReader
from ps.checkpoint.restore import start_shard_from
from ps.messages.exchange import Refusal
from ps.messages.records import Freeze, TableEviction

TABLES = (
    TableSpec(name="a", dim=60, optimizer=Adam()),
    TableSpec(name="b", dim=30, optimizer=Adam(), admission=CounterAdmission(min_count=2)),
)


def tiers_in(folder: Path) -> dict[str, Tiers]:
    return {table.name: Tiers(memory_bytes=1 << 16, path=str(folder)) for table in TABLES}


def trained(job: Any) -> Any:
    """Train some steps, with an eviction and a cut among them that is read step by step."""
    rng = np.random.default_rng(3)
    pieces = []
    for step in range(12):
        keys = [np.unique(rng.zipf(1.2, 300) % 900).tolist() for _ in TABLES]
        evict = {"evict": (TableEviction(0, step - 4),)} if step == 8 else {}
        job.train(step, *keys, **evict)
        if step == 4:
            for shard in range(len(job.shards)):
                job.send(shard, Freeze(9, job.epoch, 1, 5, False))
            pieces = [shard.frozen.tables[0].rows(50) for shard in job.shards]
        for piece in pieces:
            next(piece, None)
    return job


@pytest.fixture
def disk(tmp_path: Path) -> Path:
    folder = tmp_path / "disk"
    folder.mkdir()
    return folder


def test_steps_evictions_and_cuts_leave_the_same_bits(small_job: Any, disk: Path) -> None:
    plain = trained(small_job(TABLES, num_shards=2))
    tiered = trained(small_job(TABLES, num_shards=2, tiers=tiers_in(disk)))

    assert tiered.digest == plain.digest
    assert all(shard.tables[0].tiers().disk_rows > 100 for shard in tiered.shards)


def test_a_checkpoint_goes_from_memory_to_tiers_and_back(
    small_job: Any, disk: Path, tmp_path: Path
) -> None:
    plain = trained(small_job(TABLES))
    path = plain.write_checkpoint(tmp_path / "plain")

    tiered = small_job(TABLES, num_shards=2, initialize=False, tiers=tiers_in(disk))
    for shard in tiered.shards:
        start_shard_from(shard, CheckpointReader(path), recovery_epoch=plain.epoch, goes_on=True)
    assert tiered.digest == plain.digest

    again = small_job(TABLES, initialize=False)
    path = tiered.write_checkpoint(tmp_path / "tiered")
    start_shard_from(
        again.shards[0], CheckpointReader(path), recovery_epoch=plain.epoch, goes_on=True
    )
    assert again.digest == plain.digest


def test_a_disk_that_fails_ends_the_shard_with_the_table_and_the_folder(
    small_job: Any, disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    job = small_job(TABLES, tiers=tiers_in(disk))
    monkeypatch.setattr(tier_file, "_write_all", broken)

    def train() -> None:
        for step in range(50):
            job.train(step, list(range(200 * step, 200 * step + 200)), [1])

    with pytest.raises(TierError, match=f"table a can't write its rows below {disk}"):
        train()

    shard = job.shards[0]
    assert shard.dead is not None
    refused = job.send(0, job.pull(0, job.unique([1], [1])))
    assert isinstance(refused, Refusal)
    assert "table a can't write its rows" in refused.text
