import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from blake3 import blake3

from embedding.spec.optimizers import (
    Adagrad,
    AdagradDecay,
    AdagradDecayV2,
    AdamAsync,
    Optimizer,
    Sgd,
)
from embedding.spec.table import TableSpec
from ps.checkpoint.digest import bucket_digests, model_digest
from ps.checkpoint.read import CheckpointReader
from ps.checkpoint.restore import MovedDense, load_tables, start_shard_from

# What comes back ----------------------------------------------------------------------------------


@pytest.mark.parametrize("written_by", [1, 2, 3, 7])
def test_tables_and_parameters_come_back_bit_for_bit(
    saved_job: Any, tmp_path: Path, written_by: int
) -> None:
    job = saved_job(written_by)
    reader = CheckpointReader(job.write_checkpoint(tmp_path))

    tables = load_tables(reader)

    digests = {name: bucket_digests(table, (0, 4096)) for name, table in tables.items()}
    blocks = [hashlib.sha256(row).digest() for row in reader.dense_rows()]
    assert model_digest(digests, blocks) == job.digest
    parameters = np.concatenate([shard.dense.vector for shard in job.shards])
    assert reader.dense_vector().tobytes() == parameters.tobytes()
    assert reader.table_names() == [table.name for table in saved_job.tables]
    assert (reader.manifest.step, reader.manifest.recovery_epoch) == (4, 3)


def test_any_number_of_shards_restores_what_any_number_has_written(
    saved_job: Any, saved: Path, tmp_path: Path
) -> None:
    other = saved_job(3).write_checkpoint(tmp_path)

    digests = {
        saved_job.restore(directory, num_shards).digest
        for directory in (saved, other)
        for num_shards in (1, 2, 3, 7)
    }

    assert len(digests) == 1


def test_a_restored_job_has_vectors_slots_frequencies_and_counters(
    saved_job: Any, saved: Path
) -> None:
    before, after = saved_job(1), saved_job.restore(saved, 1)

    for old, new in zip(before.shards[0].tables, after.shards[0].tables, strict=True):
        a, b = old.export(), new.export()
        for name in ("keys", "frequency", "vectors", "slots"):
            assert getattr(a, name).tobytes() == getattr(b, name).tobytes()
        assert (b.version == 0).all(), "steps start again"
        c, d = old.export_counters(), new.export_counters()
        assert (c.keys.tolist(), c.frequency.tolist()) == (d.keys.tolist(), d.frequency.tolist())
        assert (d.version == 0).all()
    assert before.shards[0].tables[0].num_unadmitted > 0
    assert before.shards[0].dense.rows.tobytes() == after.shards[0].dense.rows.tobytes()
    assert (after.shards[0].step, after.shards[0].fenced) == (0, False)


@pytest.mark.parametrize("num_shards", [1, 3])
@pytest.mark.parametrize(
    "optimizer",
    [Adagrad(), AdamAsync(), AdagradDecay(decay_steps=2), AdagradDecayV2(decay_steps=2)],
)
def test_dense_parameters_come_from_elsewhere_with_their_slots_or_begin_anew(
    small_job: Any, tmp_path: Path, num_shards: int, optimizer: Optimizer
) -> None:
    """2500 parameters, of which the job has every third, the last first, and 1000 new ones."""
    tables = [TableSpec(name="t", dim=2)]
    job = small_job(tables, num_shards=2, dense_size=2500, dense_optimizer=optimizer)
    for step in range(3):
        job.train(step, range(20))
    sources = np.concatenate([np.full(1000, -1), np.arange(0, 2500, 3)[::-1]])
    initial = np.linspace(5, 6, sources.size, dtype=np.float32)
    again, fresh = (
        small_job(
            tables,
            num_shards=shards,
            dense_size=sources.size,
            dense_optimizer=optimizer,
            initialize=initialize,
        )
        for shards, initialize in ((num_shards, False), (1, True))
    )
    reader = CheckpointReader(job.write_checkpoint(tmp_path))

    for shard in again.shards:
        part = slice(*again.spec.routing.dense_range(shard.index))
        moved = MovedDense(initial[part], sources[part])
        start_shard_from(shard, reader, recovery_epoch=3, goes_on=True, moved=moved)

    new = np.vstack([shard.dense.rows for shard in again.shards])
    old, begun = reader.dense_rows(), fresh.shards[0].dense.rows
    whole = new.shape[1] // 1024
    for slot in range(whole):
        values, was, first = (
            rows[:, 1024 * slot : 1024 * (slot + 1)].reshape(-1) for rows in (new, old, begun)
        )
        assert (values[1000 : sources.size] == was[sources[1000:]]).all()
        assert (values[:1000] == (initial if slot == 0 else first)[:1000]).all()
    rest = slice(1024 * whole, None)
    assert (new[:, rest] == old[:1, rest]).all(), "one number a block is that of all blocks"


def test_training_goes_on_alike_on_any_number_of_shards(saved_job: Any, saved: Path) -> None:
    digests = set()
    for num_shards in (1, 2, 5):
        job = saved_job.restore(saved, num_shards)
        job.train(0, range(30), range(50), [5], [1, 2])
        digests.add(job.digest)

    assert len(digests) == 1


@pytest.mark.parametrize(
    "optimizer", [Sgd(), Adagrad(), AdamAsync(), AdamAsync(apply_sparse_rmsprop=True)]
)
def test_slots_of_every_optimizer_come_back(
    small_job: Any, tmp_path: Path, optimizer: Optimizer
) -> None:
    tables = [TableSpec(name="t", dim=2, optimizer=optimizer)]
    job = small_job(tables, num_shards=2, dense_size=1030, dense_optimizer=optimizer)
    job.train(0, range(20))
    again = small_job(
        tables, num_shards=1, dense_size=1030, dense_optimizer=optimizer, initialize=False
    )

    start_shard_from(
        again.shards[0], CheckpointReader(job.write_checkpoint(tmp_path)), recovery_epoch=3
    )

    assert again.digest == job.digest, "trained at step 0, so versions are 0 too"


@pytest.mark.parametrize("dense_size", [0, 1, 1024, 5000])
def test_parameters_of_any_number_come_back(
    small_job: Any, saved_job: Any, tmp_path: Path, dense_size: int
) -> None:
    job = small_job(saved_job.tables[3:], num_shards=3, dense_size=dense_size)
    reader = CheckpointReader(job.write_checkpoint(tmp_path))

    parameters = np.concatenate([shard.dense.vector for shard in job.shards])
    assert reader.dense_vector().tobytes() == parameters.tobytes()
    assert reader.dense_rows((0, 0)).shape[0] == 0


def test_rows_are_read_by_bucket(saved: Path) -> None:
    reader = CheckpointReader(saved)
    table = reader.store.tables[1]

    def keys(first: int, last: int) -> list[int]:
        return [k for part in reader.rows(table, (first, last)) for k in part.keys.tolist()]

    assert keys(0, 100) + keys(100, 3000) + keys(3000, 4096) == keys(0, 4096)
    assert keys(7, 7) == []
    assert len(set(keys(0, 4096))) == 181


def test_large_tables_are_written_in_parts(
    saved_job: Any, saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ps.checkpoint.file_rows.PART_BYTES", 50 * 40)
    job = saved_job(2)

    directory = job.write_checkpoint(tmp_path)

    parts = list(CheckpointReader(directory).rows(saved_job.tables[1]))
    assert len(parts) > 2
    assert saved_job.restore(directory, 3).digest == saved_job.restore(saved, 3).digest


def test_only_named_tables_are_loaded(saved: Path) -> None:
    assert list(load_tables(CheckpointReader(saved), ["adam"])) == ["adam"]


# The format ---------------------------------------------------------------------------------------


def digest_by_hand(directory: Path, path: Path) -> bytes:
    """BLAKE3 of those of a file's parts and of the rest; of a list of parts, of the file."""
    data, place = path.read_bytes(), path.relative_to(directory).as_posix()
    if place.startswith("parts-"):
        return blake3(data).digest()
    digests, at = b"", 0
    for listed in sorted(directory.glob("parts-*")):
        with pa.ipc.open_file(listed) as reader:
            for part in reader.read_all().to_pylist():
                if part["path"] == place:
                    digests += blake3(data[at : at + part["num_bytes"]]).digest()
                    at += part["num_bytes"]
    return blake3(digests + blake3(data[at:]).digest()).digest()


def test_files_are_what_the_format_says(saved: Path) -> None:
    """A change here needs another format version, and a reader for the old one."""
    manifest = json.loads((saved / "manifest.json").read_text())
    schemas = {}
    for entry in manifest["files"]:
        path = saved / entry["path"]
        with pa.ipc.open_file(path) as reader:
            table = reader.read_all()
        schemas[entry["path"]] = ", ".join(f"{f.name} {f.type}" for f in table.schema)
        assert entry["rows"] == table.num_rows
        assert entry["bytes"] == path.stat().st_size
        assert entry["digest"] == digest_by_hand(saved, path).hex()

    def vectors(n: int, *names: str) -> str:
        return "".join(f", {name} fixed_size_list<item: float>[{n}]" for name in names)

    key = "key int64, frequency int64, version int64"
    expected = {}
    for part in ("00000-of-00002.arrow", "00001-of-00002.arrow"):
        expected |= {
            f"tables/adagrad/rows-{part}": key + vectors(3, "vector", "slot_accumulator"),
            f"tables/adagrad/counters-{part}": key,
            f"tables/adam/rows-{part}": key + vectors(2, "vector", "slot_m", "slot_v"),
            f"tables/sgd.1-x_y/rows-{part}": key + vectors(1, "vector"),
            f"tables/empty/rows-{part}": key + vectors(4, "vector", "slot_accumulator"),
            f"dense/blocks-{part}": "block int64" + vectors(1024, "values", "slot_accumulator"),
            f"parts-{part}": "path string, first int64, end int64, rows int64, num_bytes int64,"
            " digest fixed_size_binary[32]",
        }
    assert schemas == expected
    assert sorted(manifest) == [
        "files", "format", "format_version", "job", "kind", "model", "parent", "recovery_epoch",
        "sha256_of_the_rest", "sorted", "step", "store", "time", "training",
    ]  # fmt: skip
    assert (manifest["format"], manifest["format_version"]) == ("synchromesh-checkpoint", 3)
    assert sorted(p.relative_to(saved).as_posix() for p in saved.rglob("*") if p.is_file()) == (
        sorted([*expected, "manifest.json"])
    )


def test_another_tool_sees_rows_sorted_by_bucket_and_key(saved_job: Any, saved: Path) -> None:
    table = saved_job(1).shards[0].tables[1].export()
    columns = []
    for part in (0, 1):
        path = saved / f"tables/adam/rows-0000{part}-of-00002.arrow"
        with pa.ipc.open_file(path) as reader:
            columns.append(reader.read_all())
    together = pa.concat_tables(columns)

    assert together["key"].to_pylist() == table.keys.tolist()
    assert together["frequency"].to_pylist() == table.frequency.tolist()
    assert together["version"].to_pylist() == table.version.tolist()
    assert together["vector"].to_pylist() == table.vectors.tolist()
    assert together["slot_v"].to_pylist() == table.slots[:, 2:].tolist()


def test_a_store_comes_back_from_json(saved_job: Any, saved: Path) -> None:
    assert CheckpointReader(saved).store == saved_job(2).spec
