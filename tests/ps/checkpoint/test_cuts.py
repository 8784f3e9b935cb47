"""Cuts: what is written while shards go on is what they held, in full or as a chain of deltas."""

import hashlib
import itertools
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from ps.checkpoint.digest import bucket_digests, model_digest
from ps.checkpoint.file_parts import HashedFile
from ps.checkpoint.key_set import KeySet
from ps.checkpoint.manifest import CheckpointError, write_manifest
from ps.checkpoint.read import CheckpointReader
from ps.checkpoint.restore import load_tables, start_shard_from


def restored(small_job: Any, cut_job: Any, path: Path, num_shards: int) -> str:
    """The digest of a job that goes on from a checkpoint."""
    job = small_job(cut_job.tables, num_shards=num_shards, dense_size=2500, initialize=False)
    for shard in job.shards:
        start_shard_from(shard, CheckpointReader(path), recovery_epoch=3, goes_on=True)
    return str(job.digest)


@pytest.fixture
def small_buffers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Several groups of buckets, parts of few rows, and pieces of fewer."""
    monkeypatch.setattr("ps.checkpoint.bucket_groups._LEAST_PART_BYTES", 300)
    monkeypatch.setattr("ps.checkpoint.bucket_groups._MOST_PART_BYTES", 300)
    monkeypatch.setattr("ps.checkpoint.cut._PIECE_BYTES", 700)
    monkeypatch.setattr("ps.checkpoint.cut._BLOOM_PART_BYTES", 700)


@pytest.mark.parametrize(
    "compression",
    [
        pytest.param("none", marks=pytest.mark.slow),
        pytest.param("lz4", marks=pytest.mark.slow),
        "zstd",
    ],
)
def test_a_chain_of_cuts_holds_what_the_job_held_at_each(
    small_job: Any, cut_job: Any, small_buffers: None, compression: str
) -> None:
    """Rows and counters come, change, go and come again, also while a cut is written."""
    chain: list[tuple[Path, str]] = []
    for number in range(4):
        cut_job.train(3, evict=number == 2)
        digest = cut_job.job.digest
        path = cut_job.cut(
            changed_only=number > 0,
            meanwhile=lambda: cut_job.train(evict=cut_job.batches % 7 == 0),
            compression=compression,
        )
        chain.append((path, digest))
    assert len({digest for _, digest in chain}) == 4

    for path, digest in chain:
        assert {restored(small_job, cut_job, path, shards) for shards in (1, 2, 3)} == {digest}
        reader = CheckpointReader(path)
        found = {n: bucket_digests(t, (0, 4096)) for n, t in load_tables(reader).items()}
        blocks = [hashlib.sha256(row).digest() for row in reader.dense_rows()]
        assert model_digest(found, blocks) == digest
        reader.verify()
    newest = CheckpointReader(chain[-1][0])
    assert [len(files.manifest.files) > 0 for files in newest.chain] == [True] * 4
    assert newest.manifest.training == {"clock": newest.manifest.step}
    gone = [newest.chain[i].batches("tables/counted/removed-", pa.schema([("key", pa.int64())]),
            (0, 4096)) for i in range(2)]  # fmt: skip
    assert any(batch.num_rows for batches in gone for batch in batches), "something was evicted"


def test_every_key_of_a_chain_is_read_once_by_any_ranges_of_buckets(
    cut_job: Any, small_buffers: None
) -> None:
    for number in range(3):
        cut_job.train(3, evict=True)
        path = cut_job.cut(changed_only=number > 0)
    reader = CheckpointReader(path)

    for number, table in enumerate(cut_job.tables):
        own = [shard.tables[number] for shard in cut_job.job.shards]
        rows = [k for t in own for k in t.export().keys.tolist()]
        counted = [k for t in own for k in t.export_counters().keys.tolist()]
        for edges in ((0, 4096), (0, 1000, 2500, 4096)):
            parts = list(itertools.pairwise(edges))
            got = [k for part in parts for e in reader.rows(table, part) for k in e.keys.tolist()]
            assert sorted(got) == sorted(rows)
            got = [k for p in parts for e in reader.counters(table, p) for k in e.keys.tolist()]
            assert sorted(got) == sorted(counted)


def test_who_wants_some_buckets_of_a_cut_reads_their_parts_only(
    cut_job: Any, small_buffers: None
) -> None:
    cut_job.train(6)
    path = cut_job.cut(changed_only=False)
    whole, some = CheckpointReader(path), CheckpointReader(path)

    list(whole.rows(cut_job.tables[2]))
    list(some.rows(cut_job.tables[2], (0, 400)))

    lists = sum(entry.bytes for entry in whole.manifest.files if entry.path.startswith("parts-"))
    assert 0 < some.bytes_read - lists < (whole.bytes_read - lists) / 3


def test_a_delta_without_changes_is_small_and_holds_what_was_there(
    small_job: Any, cut_job: Any
) -> None:
    cut_job.train(3)
    full = cut_job.cut(changed_only=False)
    delta = cut_job.cut(changed_only=True)

    assert restored(small_job, cut_job, delta, 1) == restored(small_job, cut_job, full, 1)
    entries = CheckpointReader(delta).manifest.files
    assert sum(entry.rows for entry in entries if entry.path.startswith("tables/")) == 0


@pytest.mark.parametrize("num_shards", [2, 3])
def test_the_first_cut_of_shards_that_went_back_may_be_a_delta_on_what_they_went_back_to(
    small_job: Any, cut_job: Any, num_shards: int
) -> None:
    cut_job.train(5)
    cut_job.cut(changed_only=False)
    cut_job.train(2, evict=True)
    below = CheckpointReader(cut_job.cut(changed_only=True))
    cut_job.train(3)  # which is lost
    cut_job.job = small_job(
        cut_job.tables, num_shards=num_shards, dense_size=2500, initialize=False
    )
    for shard in cut_job.job.shards:
        start_shard_from(shard, below, recovery_epoch=cut_job.job.epoch, goes_on=True)
    assert below.can_bear(cut_job.job.spec)

    cut_job.freeze(changed_only=True)
    frozen = [table for shard in cut_job.job.shards for table in shard.frozen.tables]
    assert sum(t.num_rows + t.num_counters + t.num_blocks + t.removed.size for t in frozen) == 0
    cut_job.train(1, evict=True)
    digest = cut_job.job.digest
    path = cut_job.cut(changed_only=True, meanwhile=cut_job.train)

    assert {restored(small_job, cut_job, path, shards) for shards in (1, 2, 3)} == {digest}
    files = CheckpointReader(path).manifest.files
    changed = sum(e.rows for e in files if e.path.startswith("tables/plain/rows-"))
    assert 0 < changed < sum(len(shard.tables[3]) for shard in cut_job.job.shards)
    gone = sum(e.rows for e in files if "/removed-" in e.path)
    assert gone > 0, "something was evicted"


def test_on_what_has_other_tables_no_delta_may_lie(cut_job: Any) -> None:
    cut_job.train(1)
    reader = CheckpointReader(cut_job.cut(changed_only=False))
    spec = cut_job.job.spec

    assert reader.can_bear(replace(spec, num_shards=5))
    assert not reader.can_bear(replace(spec, tables=spec.tables[:2]))
    assert not reader.can_bear(replace(spec, dense_size=7))


# What is wrong with a chain ----------------------------------------------------------------------


@pytest.fixture
def chain(cut_job: Any) -> list[Path]:
    """A full cut and two deltas."""
    paths = []
    for number in range(3):
        cut_job.train(2)
        paths.append(cut_job.cut(changed_only=number > 0))
    return paths


def test_a_parent_that_is_gone_or_another_one_is_named(chain: list[Path], tmp_path: Path) -> None:
    full, delta, newest = chain
    kept = full.rename(tmp_path / "kept")
    with pytest.raises(
        CheckpointError, match=rf"{delta.name} lies on {full.name}, .*no checkpoint"
    ):
        CheckpointReader(newest)

    shutil.copytree(kept, full)
    manifest = CheckpointReader(kept).manifest
    seal = write_manifest(full, replace(manifest, job={"name": "another"}))
    with pytest.raises(CheckpointError, match=rf"not the one that {delta.name} .*{seal}, expected"):
        CheckpointReader(newest)


@pytest.mark.parametrize(
    ("changes", "text"),
    [({"step": 1}, "is of step 1, what it lies on of step 2"), ({"store": {}}, "has other tables")],
)
def test_a_delta_of_another_job_is_refused(
    chain: list[Path], changes: dict[str, Any], text: str
) -> None:
    manifest = CheckpointReader(chain[1]).manifest
    if "store" in changes:
        tables = [{**table, "seed": 9} for table in manifest.store["tables"]]
        changes = {"store": {**manifest.store, "tables": tables}}
    write_manifest(chain[1], replace(manifest, **changes))

    with pytest.raises(CheckpointError, match=text):
        CheckpointReader(chain[1])


def test_a_chain_may_not_be_longer_than_a_limit(
    chain: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ps.checkpoint.chain.MAX_CHAIN", 2)
    CheckpointReader(chain[1])

    with pytest.raises(CheckpointError, match="lies on more than 1 others"):
        CheckpointReader(chain[2])


@pytest.mark.parametrize("damage", ["flip", "truncate", "remove", "foreign"])
@pytest.mark.parametrize("which", [0, 1, 2])
def test_a_shard_stays_as_it_was_where_a_file_of_the_chain_is_damaged(
    small_job: Any, cut_job: Any, chain: list[Path], which: int, damage: str
) -> None:
    job = small_job(cut_job.tables, num_shards=1, dense_size=2500)
    job.train(0, [1], [2], [3], [4])
    before = job.state
    (path,) = chain[which].glob("tables/adam/rows-00001-*")
    data = path.read_bytes()
    half = len(data) // 2
    if damage == "flip":
        path.write_bytes(data[:half] + bytes([data[half] ^ 1]) + data[half + 1 :])
    elif damage == "truncate":
        path.write_bytes(data[:half])
    elif damage == "remove":
        path.unlink()
    else:
        (other,) = chain[which].glob("tables/counted/rows-00001-*")
        path.write_bytes(other.read_bytes())

    with pytest.raises(CheckpointError, match=rf"{chain[which].name}/tables/adam/{path.name}"):
        start_shard_from(job.shards[0], CheckpointReader(chain[2]), recovery_epoch=4)

    assert job.state == before


# What can go wrong while it is written -----------------------------------------------------------


def test_an_error_of_the_disk_fails_the_cut_and_leaves_no_file(
    cut_job: Any, tmp_path: Path, small_buffers: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    cut_job.train(5)
    written = 0

    def write(self: Any, data: Any) -> int:
        nonlocal written
        written += memoryview(data).nbytes
        if written > 20_000:
            raise OSError(28, "No space left on device")
        return real(self, data)

    real = HashedFile.write
    monkeypatch.setattr("ps.checkpoint.write.HashedFile.write", write)

    with pytest.raises(OSError, match="No space left"):
        cut_job.cut(changed_only=False)

    assert not list(tmp_path.rglob("manifest.json"))
    assert not list(tmp_path.rglob(".partial*"))


def test_a_cut_ends_where_tables_are_frozen_again_meanwhile(cut_job: Any) -> None:
    cut_job.train(5)

    with pytest.raises(RuntimeError, match="frozen"):
        cut_job.cut(changed_only=False, meanwhile=lambda: cut_job.job.shards[0].thaw())


def test_a_set_of_keys_has_what_was_added() -> None:
    rng, keys = np.random.default_rng(0), KeySet()
    every = np.unique(rng.integers(-(2**63), 2**63 - 1, 5000))
    rng.shuffle(every)

    for start in range(0, 2500, 100):
        keys.add(every[start : start + 100])
    keys.add(every[:50])

    assert len(keys) == 2500
    assert keys.has(every).tolist() == [True] * 2500 + [False] * (len(every) - 2500)
    keys.add(np.array([-(2**63), 2**63 - 1, 0]))
    assert keys.has(np.array([-(2**63), 2**63 - 1, 0, 1])).tolist() == [True, True, True, False]
