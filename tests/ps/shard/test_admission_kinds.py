"""Tables with Bloom filters and chance in shards, digests and checkpoints."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from embedding.kernels.mixing import NUM_BUCKETS, buckets_of
from embedding.spec.admission import (
    Admission,
    BloomAdmission,
    CounterAdmission,
    ProbabilisticAdmission,
)
from embedding.spec.initial_values import Constant
from embedding.spec.optimizers import Sgd
from embedding.spec.table import TableSpec
from embedding.table.bloom import BloomSize
from ps.checkpoint.digest import bucket_digests
from ps.checkpoint.manifest import CheckpointError
from ps.checkpoint.read import CheckpointReader
from ps.checkpoint.restore import load_tables, start_shard_from
from ps.checkpoint.sealed_json import sealed_text, unsealed

BLOOM = BloomAdmission(min_count=3, max_elements=1, false_positive_probability=0.2)
TABLES = (
    TableSpec(name="bloom", dim=2, admission=BLOOM, default_value=-1.0),
    TableSpec(name="chance", dim=1, admission=ProbabilisticAdmission(probability=0.3)),
    TableSpec(name="all", dim=1),
)
# So many keys of few buckets that a filter made for one key a table takes some for others.
_KEYS = np.arange(200_000)
CROWDED = _KEYS[np.isin(buckets_of(_KEYS), [3, 1400, 2800, 4090])]


def trained(
    small_job: Any, num_shards: int, tables: tuple[TableSpec, ...] = TABLES, *, steps: int = 12
) -> Any:
    """A job after steps of two contributions each, some pulled a step before."""
    rng = np.random.default_rng(5)
    job = small_job(tables, num_shards=num_shards)
    for step in range(steps):
        for batch_id in (2 * step, 2 * step + 1):
            keys = rng.choice(CROWDED, 20)
            job.push(batch_id, *(keys for _ in tables))
        job.step(2 * step, 2 * step + 1)
    return job


@pytest.mark.parametrize("bits", [8, 16, 32, 64])
def test_any_number_of_shards_admits_the_same_keys(small_job: Any, bits: int) -> None:
    tables = (replace(TABLES[0], admission=replace(BLOOM, counter_bits=bits)), *TABLES[1:])
    jobs = [trained(small_job, n, tables) for n in (1, 3, 7)]

    assert len({job.digest for job in jobs}) == 1
    bloom, chance, everyone = (sum(len(s.tables[t]) for s in jobs[1].shards) for t in range(3))
    assert 0 < bloom < everyone
    assert 0 < chance < everyone


def test_a_crowded_filter_admits_some_keys_too_early_and_none_too_late(small_job: Any) -> None:
    exact = (replace(TABLES[0], admission=CounterAdmission(min_count=3)),)
    early, right = (trained(small_job, 1, t).shards[0].tables[0] for t in (TABLES[:1], exact))

    assert set(right.export().keys.tolist()) < set(early.export().keys.tolist())


@pytest.mark.parametrize(
    "rule",
    [
        None,
        CounterAdmission(min_count=3),
        replace(BLOOM, min_count=4),
        replace(BLOOM, max_elements=4096 * 50),
        replace(BLOOM, false_positive_probability=0.001),
        replace(BLOOM, counter_bits=16),
        ProbabilisticAdmission(probability=0.3),
        ProbabilisticAdmission(probability=0.31),
    ],
    ids=str,
)
def test_every_option_of_admission_makes_another_model(
    small_job: Any, rule: Admission | None
) -> None:
    changed = (replace(TABLES[0], admission=rule),)

    assert trained(small_job, 1, changed).digest != trained(small_job, 1, TABLES[:1]).digest


def test_a_pull_sent_again_at_the_same_step_draws_alike(small_job: Any) -> None:
    job = trained(small_job, 1, TABLES[1:2], steps=2)
    unique = job.unique(CROWDED)

    first, again = (job.send(0, job.pull(0, unique)).admitted.tolist() for _ in range(2))
    job.step()
    later = job.send(0, job.pull(0, unique)).admitted.tolist()

    assert first == again != later


# Digest -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bit", [0, 7])
def test_one_bit_of_a_filter_changes_the_digest_of_its_bucket(small_job: Any, bit: int) -> None:
    table = trained(small_job, 1, steps=2).shards[0].tables[0]
    before = bucket_digests(table, (0, NUM_BUCKETS))

    blocks = table.export_bloom((1400, 1401))
    blocks.counters[0, 5] ^= 1 << bit
    table.import_bloom(blocks)

    after = bucket_digests(table, (0, NUM_BUCKETS))
    assert np.flatnonzero((before != after).any(axis=1)).tolist() == [1400]


# Checkpoints --------------------------------------------------------------------------------------


def restored(small_job: Any, directory: Path, num_shards: int, tables: Any = TABLES) -> Any:
    job = small_job(tables, num_shards=num_shards, initialize=False)
    reader = CheckpointReader(directory)
    for shard in job.shards:
        start_shard_from(shard, reader, recovery_epoch=job.epoch)
    return job


@pytest.mark.parametrize("written_by", [1, 3])
def test_filters_come_back_bit_for_bit(small_job: Any, tmp_path: Path, written_by: int) -> None:
    job = trained(small_job, written_by)
    directory = job.write_checkpoint(tmp_path)

    table = load_tables(CheckpointReader(directory))["bloom"]

    expected = trained(small_job, 1).shards[0].tables[0]
    assert np.array_equal(
        bucket_digests(table, (0, NUM_BUCKETS)), bucket_digests(expected, (0, NUM_BUCKETS))
    )


def test_training_goes_on_alike_on_any_number_of_shards(small_job: Any, tmp_path: Path) -> None:
    directory = trained(small_job, 2, steps=4).write_checkpoint(tmp_path)
    digests = set()
    for num_shards in (1, 2, 5):
        job = restored(small_job, directory, num_shards)
        for batch_id in range(5):
            job.train(batch_id, *(CROWDED[batch_id::3] for _ in TABLES))
        digests.add(job.digest)

    assert len(digests) == 1


def test_blocks_lie_in_files_that_other_tools_open(
    small_job: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ps.checkpoint.write._BLOOM_BYTES_AT_ONCE", 1000)
    job = trained(small_job, 2)
    directory = job.write_checkpoint(tmp_path)

    buckets, counters = [], []
    for part in (0, 1):
        with pa.ipc.open_file(directory / f"tables/bloom/bloom-0000{part}-of-00002.arrow") as file:
            table = file.read_all()
        assert table.schema.field("counters").type == pa.list_(
            pa.uint8(), BloomSize.of(BLOOM).counters
        )
        buckets += table["bucket"].to_pylist()
        counters += table["counters"].to_pylist()
    assert buckets == [3, 1400, 2800, 4090], "blocks that were never written are left out"
    expected = trained(small_job, 1).shards[0].tables[0]
    assert counters == [expected.bloom_block(bucket).tolist() for bucket in buckets]
    assert restored(small_job, directory, 3).digest == restored(small_job, directory, 1).digest


@pytest.mark.parametrize(
    "change", [{"max_elements": 4096 * 50}, {"false_positive_probability": 0.001}], ids=str
)
def test_a_filter_of_another_size_is_refused_before_anything_changes(
    small_job: Any, tmp_path: Path, change: dict[str, Any]
) -> None:
    directory = trained(small_job, 1, steps=1).write_checkpoint(tmp_path)
    tables = (replace(TABLES[0], admission=replace(BLOOM, **change)), *TABLES[1:])

    with pytest.raises(CheckpointError, match=r"table bloom has a Bloom filter .* keep these two"):
        restored(small_job, directory, 1, tables)


def test_min_count_and_width_may_change_from_job_to_job(small_job: Any, tmp_path: Path) -> None:
    directory = trained(small_job, 1, steps=1).write_checkpoint(tmp_path)
    other = replace(BLOOM, min_count=300, counter_bits=16)

    job = restored(small_job, directory, 1, (replace(TABLES[0], admission=other), *TABLES[1:]))

    assert job.shards[0].tables[0].bloom_block(1400).dtype == np.uint16
    assert not job.admitted(job.unique([int(CROWDED[-1])], [], [])).any()


def test_counts_go_from_counters_to_a_filter_but_not_back(small_job: Any, tmp_path: Path) -> None:
    counter, filter_ = (
        (TableSpec(name="t", dim=1, initializer=Constant(), optimizer=Sgd(), admission=rule),)
        for rule in (CounterAdmission(min_count=3), BloomAdmission(min_count=3, max_elements=1000))
    )
    first = small_job(counter)
    first.train(0, [1, 1, 2])
    directory = first.write_checkpoint(tmp_path / "counter")

    second = restored(small_job, directory, 2, filter_)
    assert second.admitted(second.unique([1])).tolist() == [1]
    assert second.admitted(second.unique([2])).tolist() == [0]

    back = restored(small_job, second.write_checkpoint(tmp_path / "bloom"), 1, counter)
    assert back.admitted(back.unique([1])).tolist() == [0]


def test_a_filter_missing_from_the_manifest_is_refused(small_job: Any, tmp_path: Path) -> None:
    directory = trained(small_job, 2, steps=1).write_checkpoint(tmp_path)
    manifest = unsealed(json.loads((directory / "manifest.json").read_text()))
    manifest["files"] = [f for f in manifest["files"] if "bloom-00001" not in f["path"]]
    (directory / "manifest.json").write_text(sealed_text(manifest)[0])

    with pytest.raises(CheckpointError, match="lists 1 files of bloom of table bloom"):
        CheckpointReader(directory)
