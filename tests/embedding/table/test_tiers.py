"""Tables of which a part is on a disk: what goes wrong, where files are, what is counted."""

import contextlib
import errno
import itertools
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from embedding import Adam, EmbeddingVariable, TableEntries, TableSpec, Tiers, step_scalars
from embedding.table import tier_file
from embedding.table.tier_extents import TierError
from embedding.table.tier_slots import NUM_FREE
from embedding.table.tiered_values import TieredValues, TierFigures

DIM = 61
MEMORY_BYTES = 1 << 16  # some 50 rows
SPEC = TableSpec(name="items", dim=DIM, optimizer=Adam())


@pytest.fixture
def table(tmp_path: Path) -> EmbeddingVariable:
    return EmbeddingVariable(SPEC, tiers=Tiers(memory_bytes=MEMORY_BYTES, path=str(tmp_path)))


def rows_of(keys: Any) -> TableEntries:
    keys = np.asarray(keys, np.int64)
    values = np.add.outer(keys, np.arange(3 * DIM) / 7).astype(np.float32)
    return TableEntries(
        keys=keys,
        frequency=keys % 5,
        version=keys % 3,
        vectors=np.ascontiguousarray(values[:, :DIM]),
        slots=np.ascontiguousarray(values[:, DIM:]),
    )


def pull(table: EmbeddingVariable, keys: np.ndarray, *, evaluates: bool = False) -> np.ndarray:
    values, admitted = np.empty((keys.size, DIM), np.float32), np.empty(keys.size, np.uint8)
    table.pull(keys, None if evaluates else np.ones(keys.size, np.uint32), values, admitted)
    return values


def apply(table: EmbeddingVariable, keys: np.ndarray, step: int = 0) -> None:
    scalars = step_scalars(SPEC.optimizer, learning_rate=0.1, step=step)
    gradients = np.ones((keys.size, DIM), np.float32)
    ones = np.ones(keys.size, np.int64)
    table.apply(keys, ones, gradients, None, step=step, scale=1.0, scalars=scalars)


def test_files_are_in_no_folder(table: EmbeddingVariable, tmp_path: Path) -> None:
    table.import_rows(rows_of(np.arange(1000)))

    figures = table.tiers()
    assert figures is not None
    assert figures.disk_rows > 900
    # So nothing is left of a process that was killed.
    assert list(tmp_path.iterdir()) == []


def test_files_are_closed_with_their_table(tmp_path: Path) -> None:
    def opened() -> int:
        count = 0
        for name in os.listdir("/proc/self/fd"):
            with contextlib.suppress(FileNotFoundError):  # the one that lists them
                count += os.readlink(f"/proc/self/fd/{name}").startswith(str(tmp_path))
        return count

    table = EmbeddingVariable(SPEC, tiers=Tiers(memory_bytes=MEMORY_BYTES, path=str(tmp_path)))
    table.import_rows(rows_of(np.arange(1000)))
    assert opened() > 1
    del table
    assert opened() == 0


def test_memory_is_bounded_and_the_disk_has_little_more_than_what_lives(
    table: EmbeddingVariable,
) -> None:
    rng = np.random.default_rng(0)
    table.import_rows(rows_of(np.arange(3000)))
    for step in range(300):
        apply(table, rng.choice(3000, 60, replace=False), step)

    figures = table.tiers()
    assert figures is not None
    assert figures.memory_bytes <= MEMORY_BYTES
    records = 4096 // (4 * (3 * DIM + 1))
    assert figures.disk_bytes < 4096 / records * figures.disk_rows / 0.6 * 1.6
    # Much more was written: what rows left behind was used again.
    assert figures.bytes_written > 2 * figures.disk_bytes


def test_what_was_pulled_is_not_read_again_to_be_updated(table: EmbeddingVariable) -> None:
    table.import_rows(rows_of(np.arange(3000)))
    keys = np.array([10, 20, 30])
    pull(table, keys)
    before = table.tiers()

    apply(table, keys)

    after = table.tiers()
    assert before is not None
    assert after is not None
    assert before.reads >= 3
    assert (after.reads, after.cached) == (before.reads, before.cached + 3)


def tiers_of(table: EmbeddingVariable) -> TierFigures:
    figures = table.tiers()
    assert figures is not None
    return figures


def test_what_was_prefetched_is_not_read_to_be_pulled_or_updated(table: EmbeddingVariable) -> None:
    rows = rows_of(np.arange(3000))
    table.import_rows(rows)
    keys = np.array([10, 20, 30, 99_999])  # the last one has no row
    table.prefetch(keys)
    before = tiers_of(table)

    values = pull(table, keys)
    apply(table, keys[:3])

    after = tiers_of(table)
    assert values[:3].tobytes() == rows.vectors[keys[:3]].tobytes()
    assert (before.prefetched, after.prefetched) == (3, 3)
    assert (after.reads, after.cached) == (before.reads, before.cached + 6)
    assert after.prefetched_lost == 0


def tiered_of(table: EmbeddingVariable) -> TieredValues:
    assert table.rows.tiered is not None
    return table.rows.tiered


def test_slots_are_kept_for_what_steps_read_at_most_half_of_all(table: EmbeddingVariable) -> None:
    table.import_rows(rows_of(np.arange(3000)))
    tiered = tiered_of(table)
    rng = np.random.default_rng(0)

    def free_after_steps_of(num_keys: int) -> int:
        for step in range(40):
            keys = rng.choice(3000, num_keys, replace=False)
            pull(table, keys)
            apply(table, keys, step)
        return int(tiered.slots.state[NUM_FREE])

    assert 4 <= free_after_steps_of(5) <= 9
    assert len(tiered.memory) // 3 <= free_after_steps_of(60) <= len(tiered.memory) // 2
    assert 4 <= free_after_steps_of(5) <= 9


def test_what_a_step_of_the_next_batch_prefetches_does_not_displace_what_was_pulled(
    table: EmbeddingVariable,
) -> None:
    table.import_rows(rows_of(np.arange(3000)))
    rng = np.random.default_rng(0)
    batches = [rng.choice(3000, 8, replace=False) for _ in range(60)]
    for step, (keys, following) in enumerate(itertools.pairwise(batches)):
        if step == 20:
            before = tiers_of(table)
        pull(table, keys)
        table.prefetch(following)
        apply(table, keys, step)

    after = tiers_of(table)
    # Where a batch has more on the disk than those before it some are read when they are asked for.
    assert after.reads - before.reads < 0.05 * (after.prefetched - before.prefetched)
    assert after.prefetched_lost == 0


def test_what_was_prefetched_and_nobody_asks_for_leaves_after_a_while(
    table: EmbeddingVariable,
) -> None:
    table.import_rows(rows_of(np.arange(3000)))
    pull(table, np.arange(100, 110))  # so that there is room for more than this
    apply(table, np.arange(100, 110))
    table.prefetch(np.arange(10, 15))
    prefetched = tiers_of(table).prefetched
    assert prefetched > 0

    for step in range(70):
        apply(table, np.arange(1000, 1005), step)

    assert tiers_of(table).prefetched_lost == prefetched


def test_an_evaluation_keeps_nothing_of_what_it_reads(table: EmbeddingVariable) -> None:
    table.import_rows(rows_of(np.arange(3000)))
    pull(table, np.arange(100, 120))
    apply(table, np.arange(100, 120))
    free = int(tiered_of(table).slots.state[NUM_FREE])
    assert free > 5
    table.prefetch(np.arange(10, 15))
    assert tiered_of(table).slots.state[NUM_FREE] < free

    pull(table, np.arange(10, 40), evaluates=True)

    assert tiered_of(table).slots.state[NUM_FREE] == free


def test_rows_that_are_updated_often_stay_in_memory(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    shares = {}
    for policy in ("frequency", "recency"):
        tiers = Tiers(memory_bytes=1 << 17, path=str(tmp_path), policy=policy)  # type: ignore[arg-type]
        table = EmbeddingVariable(SPEC, tiers=tiers)
        table.import_rows(rows_of(np.arange(3000)))
        for step in range(100):
            # One in four of some that are often updated, and others that never come again soon.
            often = rng.choice(60, 15, replace=False)
            apply(table, np.concatenate([often, 100 + np.arange(20 * step, 20 * step + 20)]), step)
        places = tiered_of(table).slots.places[table.rows.find(np.arange(60))]
        shares[policy] = np.count_nonzero(places > 0) / 60
    assert shares["frequency"] > 0.95
    assert 0.3 < shares["recency"] < shares["frequency"]


def test_prefetching_changes_no_place_and_without_tiers_nothing(table: EmbeddingVariable) -> None:
    table.import_rows(rows_of(np.arange(500)))
    tiered = tiered_of(table)
    before = tiered.slots.places[:1000].tobytes(), tiered.slots.scores[:1000].tobytes()

    table.prefetch(np.arange(-10, 510))
    EmbeddingVariable(SPEC).prefetch(np.arange(10))

    assert (tiered.slots.places[:1000].tobytes(), tiered.slots.scores[:1000].tobytes()) == before


def test_a_pull_changes_no_place(table: EmbeddingVariable) -> None:
    table.import_rows(rows_of(np.arange(500)))
    tiered = tiered_of(table)
    before = tiered.slots.places.tobytes(), tiered.slots.scores.tobytes()

    pull(table, np.arange(500))

    assert (tiered.slots.places.tobytes(), tiered.slots.scores.tobytes()) == before


def test_pulls_run_side_by_side(table: EmbeddingVariable) -> None:
    rows = rows_of(np.arange(2000))
    table.import_rows(rows)
    rng = np.random.default_rng(1)
    batches = [rng.integers(0, 2000, 200) for _ in range(60)]

    with ThreadPoolExecutor(4) as threads:
        found = list(threads.map(lambda keys: pull(table, keys), batches))

    for keys, values in zip(batches, found, strict=True):
        assert values.tobytes() == rows.vectors[keys].tobytes()


def test_a_disk_without_room_refuses_new_rows_and_nothing_else(
    table: EmbeddingVariable, monkeypatch: pytest.MonkeyPatch
) -> None:
    table.import_rows(rows_of(np.arange(200)))
    before = table.export()

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(MemoryError, match=r"table items needs .* bytes below .*No space left"):
        table.import_rows(rows_of(np.arange(10_000)))

    after = table.export()
    assert all(getattr(before, name).tobytes() == getattr(after, name).tobytes()
               for name in before.__slots__)  # fmt: skip
    apply(table, np.arange(200))  # known rows are updated as before


def test_a_write_that_fails_is_told_with_table_and_folder(
    table: EmbeddingVariable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(tier_file, "_write_all", broken)
    with pytest.raises(TierError, match=f"items can't write its rows below {tmp_path} .*Input/out"):
        table.import_rows(rows_of(np.arange(5000)))


def test_a_read_that_fails_is_told_with_table_and_folder(
    table: EmbeddingVariable, tmp_path: Path
) -> None:
    table.import_rows(rows_of(np.arange(3000)))
    tiered = tiered_of(table)
    for write in tiered._file._writes:
        if write is not None:
            write.result()  # which would make the file longer again
    for extent in filter(None, tiered._file._extents):
        os.truncate(f"/proc/self/fd/{extent.descriptor}", 0)

    with pytest.raises(TierError, match=f"items can't read its rows below {tmp_path} .*it ends"):
        pull(table, np.arange(3000))


def test_a_folder_that_is_not_there_is_refused(tmp_path: Path) -> None:
    tiers = Tiers(memory_bytes=MEMORY_BYTES, path=str(tmp_path / "none"))
    with pytest.raises(TierError, match=r"table items can't have a file for rows in .*none"):
        EmbeddingVariable(SPEC, tiers=tiers)


def test_too_little_memory_for_the_rows_that_are_worked_on_is_refused(tmp_path: Path) -> None:
    wide = TableSpec(name="wide", dim=4096, optimizer=Adam())
    with pytest.raises(ValueError, match="memory_bytes of table wide is 65536, and has no room"):
        EmbeddingVariable(wide, tiers=Tiers(memory_bytes=1 << 16, path=str(tmp_path)))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"memory_bytes": 100}, "memory_bytes must be >= 65536, got 100"),
        ({"memory_bytes": 1e6}, "memory_bytes must be a whole number of bytes, got 1000000.0"),
        ({"path": ""}, "path must name a folder"),
        ({"policy": "random"}, "policy must be one of frequency, recency"),
    ],
)
def test_a_spec_says_what_is_wrong(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Tiers(**{"memory_bytes": 1 << 20, "path": "/ssd", **options})


def test_rows_that_fill_more_than_a_block_are_kept(tmp_path: Path) -> None:
    spec = TableSpec(name="wide", dim=900, optimizer=Adam())
    tiers = Tiers(memory_bytes=1 << 20, path=str(tmp_path))
    tiered, plain = EmbeddingVariable(spec, tiers=tiers), EmbeddingVariable(spec)
    rng = np.random.default_rng(2)
    for step in range(6):
        keys = rng.permutation(500)[:200]
        gradients = rng.normal(size=(200, 900)).astype(np.float32)
        scalars = step_scalars(spec.optimizer, learning_rate=0.1, step=step)
        for table in (tiered, plain):
            table.apply(
                keys, np.ones(200, np.int64), gradients, None,
                step=step, scale=1.0, scalars=scalars,
            )  # fmt: skip
    assert tiered.export().slots.tobytes() == plain.export().slots.tobytes()
    assert tiered.export().vectors.tobytes() == plain.export().vectors.tobytes()


def test_an_extent_that_could_not_be_written_is_not_kept(
    table: EmbeddingVariable, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(tier_file, "_write_all", broken)
    table.digest_segments(bytes)
    table.import_rows(rows_of(np.arange(75)))  # not as many as have to wait for a buffer

    held = table.freeze(changed_only=False).held

    assert held is not None
    (extent,) = held.extents
    with pytest.raises(OSError, match="Input/output error"):
        extent.finish()
