"""One full checkpoint in the place of a chain, and what is said of two that differ."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from embedding import TableEntries
from ps.checkpoint.compact import compact
from ps.checkpoint.compare import difference
from ps.checkpoint.manifest import CheckpointError
from ps.checkpoint.read import CheckpointReader
from ps.checkpoint.restore import start_shard_from


@pytest.fixture
def chain(cut_job: Any) -> list[Path]:
    """A full cut and two deltas; rows and counters went between them."""
    paths = []
    for number in range(3):
        cut_job.train(3, evict=True)
        paths.append(cut_job.cut(changed_only=number > 0))
    return paths


def test_a_compacted_chain_is_the_same_model(
    small_job: Any, cut_job: Any, chain: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ps.checkpoint.bucket_ranges._RANGE_BYTES", 3000)
    monkeypatch.setattr("ps.checkpoint.compact.PART_BYTES", 500)
    reader = CheckpointReader(chain[-1])

    path, digest = compact(reader, chain[-1].with_name("full-000000000009"))

    assert digest == cut_job.job.digest
    found = CheckpointReader(path)
    found.verify()
    assert (found.manifest.kind, found.manifest.sorted, len(found.chain)) == ("full", True, 1)
    assert found.manifest.training == reader.manifest.training
    assert found.manifest.job["model_digest"] == digest
    job = small_job(cut_job.tables, num_shards=2, dense_size=2500, initialize=False)
    for shard in job.shards:
        start_shard_from(shard, found, recovery_epoch=3, goes_on=True)
    assert job.digest == digest
    assert all(table.changed == 0 for table in difference(reader, found).tables)


def test_rows_from_elsewhere_take_the_place_of_rows_and_counters(
    chain: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ps.checkpoint.bucket_ranges._RANGE_BYTES", 3000)
    reader = CheckpointReader(chain[-1])
    spec, counted = next(
        (spec, keys)
        for spec in reader.store.tables
        if (keys := [k for part in reader.counters(spec) for k in part.keys.tolist()])
    )
    held = [k for part in reader.rows(spec) for k in part.keys.tolist()]
    keys = np.array([held[0], counted[0], 2**40])
    empty = TableEntries.empty(spec)
    its = TableEntries(
        keys,
        np.zeros(3, np.int64),
        np.zeros(3, np.int64),
        np.full((3, spec.dim), 0.25, np.float32),
        np.zeros((3, empty.slots.shape[1]), np.float32),
    )

    path, _ = compact(reader, chain[-1].with_name("full-000000000009"), {spec.name: its})

    found = CheckpointReader(path)
    found.verify()
    rows = {k: v for p in found.rows(spec) for k, v in zip(p.keys.tolist(), p.vectors, strict=True)}
    assert sorted(rows) == sorted({*held, *keys.tolist()})
    assert all((rows[key] == 0.25).all() for key in keys.tolist())
    left = [k for part in found.counters(spec) for k in part.keys.tolist()]
    assert sorted(left) == sorted(set(counted) - {counted[0]})
    others = [table for table in difference(reader, found).tables if table.name != spec.name]
    assert all(table.changed == table.added == table.removed == 0 for table in others)


def test_nothing_is_left_where_a_chain_can_not_be_read(chain: list[Path], tmp_path: Path) -> None:
    next(chain[0].glob("tables/adam/rows-*")).write_bytes(b"")
    before = sorted(tmp_path.iterdir())

    with pytest.raises(CheckpointError, match="is damaged"):
        compact(CheckpointReader(chain[-1]), tmp_path / "full-000000000009")

    assert sorted(tmp_path.iterdir()) == before


def test_a_difference_counts_rows_that_came_went_and_changed(
    cut_job: Any, chain: list[Path]
) -> None:
    older, newer = CheckpointReader(chain[1]), CheckpointReader(chain[2])
    found = difference(older, newer)

    for spec, table in zip(sorted(cut_job.tables, key=lambda t: t.name), found.tables, strict=True):
        keys = [{k for e in r.rows(spec) for k in e.keys.tolist()} for r in (older, newer)]
        assert table.name == spec.name
        assert (table.added, table.removed) == (len(keys[1] - keys[0]), len(keys[0] - keys[1]))
        assert table.changed + table.same == len(keys[0] & keys[1])
    assert any(t.added and t.removed and t.changed and t.same for t in found.tables)
    dense = older.dense_vector().astype(np.float64) - newer.dense_vector()
    assert found.dense_norm == pytest.approx(np.linalg.norm(dense))
    back = difference(newer, older).tables
    assert [(t.added, t.removed) for t in back] == [(t.removed, t.added) for t in found.tables]
