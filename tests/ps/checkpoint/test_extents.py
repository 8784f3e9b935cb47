"""Cuts of tables with tiers name the files in which their rows are: what these hold, and keep."""

import errno
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from embedding import Adam, CounterAdmission, TableSpec, Tiers
from embedding.table import tier_extents
from embedding.table.tier_extents import TierError
from ps.checkpoint.compact import compact
from ps.checkpoint.manifest import CheckpointError, read_manifest
from ps.checkpoint.read import CheckpointReader
from ps.checkpoint.restore import start_shard_from
from ps.checkpoint.summary import overview_of
from ps.messages.records import TableEviction

TABLES = (
    TableSpec(name="a", dim=60, optimizer=Adam()),
    TableSpec(name="b", dim=31, value_dtype="float16", admission=CounterAdmission(min_count=2)),
    TableSpec(name="c", dim=90, track_usage=False),
)


def tiers_in(folder: Path, memory_bytes: int = 1 << 16) -> dict[str, Tiers]:
    folder.mkdir(exist_ok=True)
    return {table.name: Tiers(memory_bytes=memory_bytes, path=str(folder)) for table in TABLES}


@pytest.fixture
def tiered(small_job: Any, make_cut_job: Any, tmp_path: Path) -> Any:
    """A job of two shards with rows on the disk, of which cuts are written beside these."""
    job = make_cut_job(TABLES, tiers=tiers_in(tmp_path / "disk"), keys=3000, batch=200)
    job.train(12)
    return job


@pytest.fixture
def restored(small_job: Any, tmp_path: Path) -> Callable[..., Any]:
    """A job that goes on from a checkpoint."""

    def restore(
        path: Path, num_shards: int = 2, *, with_tiers: bool = True, memory_bytes: int = 1 << 16
    ) -> Any:
        options = {"tiers": tiers_in(tmp_path / "disk", memory_bytes)} if with_tiers else {}
        job = small_job(TABLES, num_shards=num_shards, dense_size=2500, initialize=False, **options)
        for shard in job.shards:
            start_shard_from(shard, CheckpointReader(path), recovery_epoch=3, goes_on=True)
        return job

    return restore


def extents_of(path: Path) -> list[Path]:
    return sorted(path.glob("tables/*/extent.*"))


def test_a_full_cut_names_extents_and_holds_what_the_job_held(
    tiered: Any, restored: Callable[..., Any]
) -> None:
    digest = tiered.job.digest
    path = tiered.cut(changed_only=False, meanwhile=tiered.train)

    assert len(extents_of(path)) >= 4
    assert read_manifest(path / "manifest.json")[0].format_version == 4
    CheckpointReader(path).verify()
    assert tiered.job.digest != digest
    for num_shards in (2, 3):
        assert restored(path, num_shards).digest == digest
    assert restored(path, 1, with_tiers=False).digest == digest


@pytest.mark.parametrize("num_shards", [2, 4])
def test_a_server_takes_its_extents_as_they_lie_and_trains_on(
    tiered: Any, restored: Callable[..., Any], num_shards: int
) -> None:
    tiered.cut(changed_only=False)
    tiered.job.train(12, [1, 2], [3], [4], evict=(TableEviction(0, min_version=3),))
    path = tiered.cut(changed_only=True)

    taken, plain = restored(path, num_shards), restored(path, 1, with_tiers=False)
    figures = [table.tiers() for shard in taken.shards for table in shard.tables]
    written = sum(each.bytes_written for each in figures)  # by rows that were copied
    assert written < 4096 * sum(each.disk_rows for each in figures) / 5 / 2
    rng = np.random.default_rng(6)
    for step in range(taken.shards[0].step, taken.shards[0].step + 40):
        keys = [rng.integers(-200, 2800, 300) for _ in TABLES]
        old = (TableEviction(0, min_version=step - 30),) if step % 9 == 0 else ()
        for job in (taken, plain):
            job.train(step, *keys, evict=old)
    assert taken.digest == plain.digest
    CheckpointReader(path).verify()  # nothing was written over


@pytest.mark.parametrize("memory_bytes", [1 << 17, 1 << 18])
def test_extents_of_segments_of_another_size_are_read_row_by_row(
    tiered: Any, restored: Callable[..., Any], memory_bytes: int
) -> None:
    """As of a server with another budget, or a build that shared the same one out otherwise."""
    digest = tiered.job.digest
    path = tiered.cut(changed_only=False)
    files = {os.stat(each).st_ino for each in extents_of(path)}

    copied = restored(path, memory_bytes=memory_bytes)

    assert copied.digest == digest
    copied.train(12, [1, 2], [3], [4])
    of_tables = {
        os.fstat(extent.descriptor).st_ino
        for shard in copied.shards
        for table in shard.tables
        for extent in table._rows.tiered._file._extents
        if extent is not None
    }
    assert of_tables.isdisjoint(files) == (memory_bytes > 1 << 17)
    CheckpointReader(path).verify()


def test_deltas_with_tombstones_lie_on_extents(tiered: Any, restored: Callable[..., Any]) -> None:
    tiered.cut(changed_only=False, meanwhile=tiered.train)
    tiered.train(3, evict=True)
    digest = tiered.job.digest
    path = tiered.cut(changed_only=True, meanwhile=tiered.train)

    assert not extents_of(path)
    assert restored(path).digest == digest
    whole, of_whole = compact(CheckpointReader(path), path.with_name("compact"))
    assert of_whole == digest
    assert restored(whole, 1, with_tiers=False).digest == digest


def test_a_later_cut_shares_extents_and_outlives_the_one_before(
    tiered: Any, restored: Callable[..., Any]
) -> None:
    first = tiered.cut(changed_only=False)
    files = {os.stat(path).st_ino for path in extents_of(first)}
    tiered.train()
    digest = tiered.job.digest
    second = tiered.cut(changed_only=False)
    shared = files & {os.stat(path).st_ino for path in extents_of(second)}
    shutil.rmtree(first)
    tiered.train(40)  # what the table leaves is not written over

    assert shared
    CheckpointReader(second).verify()
    assert restored(second).digest == digest


def test_what_checkpoints_keep_is_the_disks_again_once_they_go(tiered: Any, tmp_path: Path) -> None:
    def on_disk() -> int:
        """Bytes of all files that any table or checkpoint has."""
        found = {}
        names = [f"/proc/self/fd/{name}" for name in os.listdir("/proc/self/fd")]
        for name in [*names, *map(str, tmp_path.rglob("extent.*"))]:
            try:
                of_tiers = os.readlink(name).startswith(str(tmp_path)) if name in names else True
                stat = os.stat(name)
            except FileNotFoundError:
                continue
            if of_tiers:
                found[stat.st_ino] = stat.st_blocks * 512
        return sum(found.values())

    def of_tables() -> int:
        return sum(t.tiers().disk_bytes for shard in tiered.job.shards for t in shard.tables)

    assert on_disk() <= of_tables()
    paths = []
    for _ in range(3):
        paths.append(tiered.cut(changed_only=False))
        tiered.train(20)
    assert of_tables() < on_disk() < 5 * of_tables()
    for path in paths:
        shutil.rmtree(path)
    assert on_disk() <= of_tables()


def test_a_manifest_counts_rows_in_extents(tiered: Any) -> None:
    reader = CheckpointReader(tiered.cut(changed_only=False))

    for number, table in enumerate(TABLES):
        rows = sum(len(shard.tables[number]) for shard in tiered.job.shards)
        assert overview_of(reader, table).rows == rows
        assert reader.num_rows(table) == rows


def test_damage_to_an_extent_is_named_and_fills_nothing(
    tiered: Any, restored: Callable[..., Any]
) -> None:
    path = tiered.cut(changed_only=False)
    extent = extents_of(path)[3]
    with open(extent, "r+b") as file:
        file.seek(40)
        byte = file.read(1)
        file.seek(40)
        file.write(bytes([byte[0] ^ 1]))

    for look in (lambda: CheckpointReader(path).verify(), lambda: restored(path)):
        with pytest.raises(CheckpointError, match=f"{extent} is damaged: bytes 0 to 4096"):
            look()


def test_rows_are_copied_where_a_checkpoint_is_on_another_disk(
    tiered: Any, restored: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tier_extents.Extent, "device", -1)
    path = tiered.cut(changed_only=False)

    assert not extents_of(path)
    assert read_manifest(path / "manifest.json")[0].format_version == 3
    assert restored(path).digest == tiered.job.digest


def test_an_extent_whose_last_name_was_removed_is_copied(
    tiered: Any, restored: Callable[..., Any]
) -> None:
    first = tiered.cut(changed_only=False)
    files = {os.stat(path).st_ino for path in extents_of(first)}
    shutil.rmtree(first)
    path = tiered.cut(changed_only=False)

    assert not files & {os.stat(each).st_ino for each in extents_of(path)}
    CheckpointReader(path).verify()
    assert restored(path).digest == tiered.job.digest


def test_a_cut_whose_extents_can_not_be_kept_fails_and_the_job_goes_on(
    tiered: Any, restored: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, "link", full)
        with pytest.raises(OSError, match="No space left"):
            tiered.cut(changed_only=False)
    for shard in tiered.job.shards:
        shard.thaw()
    tiered.train(5)

    digest = tiered.job.digest
    assert restored(tiered.cut(changed_only=False)).digest == digest


def test_a_disk_that_has_no_room_beside_what_checkpoints_keep_says_so(
    tiered: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    digest = tiered.job.digest
    path = tiered.cut(changed_only=False)
    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises((TierError, MemoryError), match=r"No space left.*checkpoints keep [0-9,]+"):
        tiered.train(60)

    # Nothing is lost: the cut is whole.
    reader = CheckpointReader(path)
    reader.verify()
    assert digest
