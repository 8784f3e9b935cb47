import hashlib
import json
import shutil
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from embedding.spec import Adagrad, AdamAsync, CounterAdmission, Optimizer, Sgd, TableSpec
from ps import checkpoint
from ps.checkpoint import (
    CheckpointError,
    CheckpointReader,
    Manifest,
    write_manifest,
    write_shard,
)
from ps.digest import bucket_digests, model_digest
from ps.restore import check_fits, load_tables, start_shard_from
from ps.spec import bucket_range

TABLES = (
    TableSpec(name="adagrad", dim=3, admission=CounterAdmission(min_count=2)),
    TableSpec(name="adam", dim=2, optimizer=AdamAsync()),
    TableSpec(name="sgd.1-x_y", dim=1, optimizer=Sgd()),
    TableSpec(name="empty", dim=4),
)


def trained(small_job: Any, num_shards: int, **options: Any) -> Any:
    job = small_job(TABLES, num_shards=num_shards, dense_size=2500, **options)
    rng = np.random.default_rng(1)
    for step in range(4):
        keys = rng.zipf(1.3, 300) % 1000
        job.train(step, keys, [*range(step * 40, step * 40 + 60), -(2**63)], keys[:50], [])
    return job


def write(job: Any, directory: Path, **changes: Any) -> Path:
    """Write a job's shards and the manifest as a driver does."""
    files = []
    for shard in job.shards:
        files += write_shard(
            directory,
            tables=shard.tables,
            dense=shard.dense,
            shard=shard.index,
            num_shards=len(job.shards),
            buckets=bucket_range(shard.index, len(job.shards)),
        )
    fields = {
        "kind": "full", "step": 4, "recovery_epoch": 3, "store": job.spec.to_json(),
        "model": {}, "job": {}, "files": tuple(files),
    }  # fmt: skip
    write_manifest(directory, Manifest(**{**fields, **changes}))
    return directory


def restored(small_job: Any, directory: Path, num_shards: int, tables: Any = TABLES) -> Any:
    job = small_job(tables, num_shards=num_shards, dense_size=2500, initialize=False)
    reader = CheckpointReader(directory)
    for shard in job.shards:
        start_shard_from(shard, reader, recovery_epoch=job.epoch)
    return job


@pytest.fixture(scope="module")
def saved(small_job: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of two shards; for reading only."""
    return write(trained(small_job, 2), tmp_path_factory.mktemp("checkpoint"))


@pytest.fixture
def own(saved: Path, tmp_path: Path) -> Path:
    """A copy to be damaged."""
    return shutil.copytree(saved, tmp_path / "copy")


def edit(directory: Path, change: Callable[[dict[str, Any]], Any]) -> Path:
    path = directory / "manifest.json"
    data = json.loads(path.read_text())
    change(data)
    path.write_text(json.dumps(data))
    return directory


def read_everything(directory: Path) -> None:
    reader = CheckpointReader(directory)
    load_tables(reader)
    reader.dense_vector()


# What comes back ----------------------------------------------------------------------------------


@pytest.mark.parametrize("written_by", [1, 2, 3, 7])
def test_tables_and_parameters_come_back_bit_for_bit(
    small_job: Any, tmp_path: Path, written_by: int
) -> None:
    job = trained(small_job, written_by)
    reader = CheckpointReader(write(job, tmp_path))

    tables = load_tables(reader)

    digests = {name: bucket_digests(table, (0, 4096)) for name, table in tables.items()}
    blocks = [hashlib.sha256(row).digest() for row in reader.dense_rows()]
    assert model_digest(digests, blocks) == job.digest
    parameters = np.concatenate([shard.dense.vector for shard in job.shards])
    assert reader.dense_vector().tobytes() == parameters.tobytes()
    assert reader.table_names() == [table.name for table in TABLES]
    assert (reader.manifest.step, reader.manifest.recovery_epoch) == (4, 3)


def test_any_number_of_shards_restores_what_any_number_has_written(
    small_job: Any, saved: Path, tmp_path: Path
) -> None:
    other = write(trained(small_job, 3), tmp_path)

    digests = {
        restored(small_job, directory, num_shards).digest
        for directory in (saved, other)
        for num_shards in (1, 2, 3, 7)
    }

    assert len(digests) == 1


def test_a_restored_job_has_vectors_slots_frequencies_and_counters(
    small_job: Any, saved: Path
) -> None:
    before, after = trained(small_job, 1), restored(small_job, saved, 1)

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


def test_training_goes_on_alike_on_any_number_of_shards(small_job: Any, saved: Path) -> None:
    digests = set()
    for num_shards in (1, 2, 5):
        job = restored(small_job, saved, num_shards)
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

    start_shard_from(again.shards[0], CheckpointReader(write(job, tmp_path)), recovery_epoch=3)

    assert again.digest == job.digest, "trained at step 0, so versions are 0 too"


@pytest.mark.parametrize("dense_size", [0, 1, 1024, 5000])
def test_parameters_of_any_number_come_back(
    small_job: Any, tmp_path: Path, dense_size: int
) -> None:
    job = small_job(TABLES[3:], num_shards=3, dense_size=dense_size)
    reader = CheckpointReader(write(job, tmp_path))

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
    small_job: Any, saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ps.digest._ROWS_AT_ONCE", 50)
    job = trained(small_job, 2)

    directory = write(job, tmp_path)

    parts = list(CheckpointReader(directory).rows(TABLES[1]))
    assert len(parts) > 2
    assert restored(small_job, directory, 3).digest == restored(small_job, saved, 3).digest


def test_only_named_tables_are_loaded(saved: Path) -> None:
    assert list(load_tables(CheckpointReader(saved), ["adam"])) == ["adam"]


# The format ---------------------------------------------------------------------------------------


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
        assert entry["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()

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
        }
    assert schemas == expected
    assert sorted(manifest) == [
        "files", "format", "format_version", "job", "kind", "model", "recovery_epoch", "step",
        "store",
    ]  # fmt: skip
    assert (manifest["format"], manifest["format_version"]) == ("synchromesh-checkpoint", 1)
    assert sorted(p.relative_to(saved).as_posix() for p in saved.rglob("*") if p.is_file()) == (
        sorted([*expected, "manifest.json"])
    )


def test_another_tool_sees_rows_sorted_by_bucket_and_key(small_job: Any, saved: Path) -> None:
    table = trained(small_job, 1).shards[0].tables[1].export()
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


def test_a_store_comes_back_from_json(small_job: Any, saved: Path) -> None:
    assert CheckpointReader(saved).store == trained(small_job, 2).spec


# What is no checkpoint ----------------------------------------------------------------------------


def test_a_directory_without_a_manifest_is_no_checkpoint(own: Path) -> None:
    (own / "manifest.json").unlink()

    with pytest.raises(CheckpointError, match=r"no checkpoint: .*manifest\.json: No such file"):
        CheckpointReader(own)


def test_the_manifest_is_only_written_when_every_file_is_there(
    small_job: Any, saved: Path, tmp_path: Path
) -> None:
    files = CheckpointReader(saved).manifest.files
    job = trained(small_job, 2)
    cases = (
        (replace(files[0], path="tables/none.arrow"), "none.arrow has None bytes"),
        (replace(files[0], bytes=files[0].bytes + 1), "says"),
    )
    for entry, text in cases:
        with pytest.raises(CheckpointError, match=text):
            write(job, tmp_path, files=(*files[1:], entry))
        assert not list(tmp_path.glob("manifest*"))


@pytest.mark.parametrize("name", ["rows-00001", "counters-00000", "blocks-00001"])
def test_a_damaged_file_is_named(own: Path, name: str) -> None:
    (path,) = [p for p in own.rglob("*.arrow") if name in p.name and "empty" not in str(p)][:1]
    data = bytearray(path.read_bytes())
    whole = bytes(data)
    data[len(data) // 2] ^= 1

    for bad in (bytes(data), whole[:-1], whole + b"\0", b""):
        path.write_bytes(bad)
        with pytest.raises(CheckpointError, match=rf"{path.name} is damaged"):
            read_everything(own)
    path.unlink()
    with pytest.raises(CheckpointError, match=rf"{path.name}: No such file"):
        read_everything(own)
    path.write_bytes(whole)
    read_everything(own)


def test_a_file_is_checked_before_its_first_row_is_used(small_job: Any, own: Path) -> None:
    for path in own.rglob("rows-00001*"):
        path.write_bytes(path.read_bytes()[:-8])
    job = small_job(TABLES, num_shards=2, dense_size=2500, initialize=False)

    with pytest.raises(CheckpointError, match="is damaged"):
        start_shard_from(job.shards[1], CheckpointReader(own), recovery_epoch=0)

    assert job.shards[1].fenced


def drop(name: str) -> Callable[[dict[str, Any]], Any]:
    return lambda data: data.pop(name)


def put(name: str, value: Any) -> Callable[[dict[str, Any]], Any]:
    return lambda data: data.__setitem__(name, value)


def in_file(name: str, value: Any) -> Callable[[dict[str, Any]], Any]:
    return lambda data: data["files"][0].__setitem__(name, value)


def in_table(name: str, value: Any) -> Callable[[dict[str, Any]], Any]:
    return lambda data: data["store"]["tables"][0].__setitem__(name, value)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (drop("format"), "not the manifest of a checkpoint"),
        (put("format", "another"), "not the manifest of a checkpoint"),
        (put("format_version", 2), "has format version 2, this software reads 1"),
        (drop("format_version"), "has format version None"),
        *((drop(n), n) for n in ("files", "step", "store", "kind", "recovery_epoch", "model")),
        (put("more", 1), "more"),
        (put("step", "4"), "int64"),
        (put("step", None), "int64"),
        (put("kind", 1), "string"),
        (put("store", []), "mapping"),
        (put("model", "x"), "mapping"),
        (put("files", {"a": 1}), "wrong"),
        (put("files", []), "lists 0 files of rows of table adagrad, but 2 shards wrote one each"),
        (lambda data: data["files"].pop(2), "lists 1 files of rows of table adam"),
        (put("files", [[1]]), "wrong"),
        (put("files", 5), "wrong"),
        (in_file("bytes", "12"), "int64"),
        (in_file("sha256", 12), "string"),
        (in_file("path", None), "string"),
        (in_file("more", None), "more"),
        (lambda data: data["files"][0].pop("rows"), "rows"),
        *(
            (in_file("path", path), "outside of its folder")
            for path in ("/etc/passwd", "../x", "tables/../../x", "a/..", "x\0y")
        ),
        (put("store", {}), "tables"),
        (lambda data: data["store"].__setitem__("tables", 3), "store|tables"),
        (lambda data: data["store"].__setitem__("dense_size", -1), "dense_size"),
        (lambda data: data["store"].__setitem__("num_shards", 0), "num_shards"),
        (in_table("dim", 0), "dim"),
        (in_table("dim", "x"), "store|tables"),
        (in_table("name", "../x"), "name"),
        (in_table("name", "adam"), "unique"),
        (in_table("optimizer", {"type": "magic"}), "magic"),
        (in_table("optimizer", "adam"), "store|tables"),
        (in_table("more", 1), "more"),
    ],
)
def test_a_manifest_that_is_not_ours_is_refused_and_named(
    own: Path, change: Callable[[dict[str, Any]], Any], text: str
) -> None:
    edit(own, change)

    with pytest.raises(CheckpointError, match=text) as caught:
        CheckpointReader(own)

    assert str(own / "manifest.json") in str(caught.value)


@pytest.mark.parametrize(
    "data", [b"", b"{", b"null", b"[]", b"7", b"\xff\xfe", b"[" * 100_000, b'{"format": NaN}']
)
def test_a_manifest_that_is_no_json_mapping_is_refused_and_named(own: Path, data: bytes) -> None:
    (own / "manifest.json").write_bytes(data)

    with pytest.raises(CheckpointError, match=r"manifest\.json is not"):
        CheckpointReader(own)


def test_a_huge_manifest_is_not_read(own: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoint, "MAX_MANIFEST_BYTES", 1000)

    with pytest.raises(CheckpointError, match=r"has \d+ bytes, a manifest 1000 at most"):
        CheckpointReader(own)


def rewrite(directory: Path, name: str, table: Any) -> None:
    """Put another file in the place of one, with a manifest that agrees."""
    path = next(directory.rglob(name))
    with pa.ipc.new_file(path, table.schema) as writer:
        writer.write_table(table)
    data = path.read_bytes()

    def change(manifest: dict[str, Any]) -> None:
        relative = path.relative_to(directory).as_posix()
        (entry,) = [e for e in manifest["files"] if e["path"] == relative]
        entry |= {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}

    edit(directory, change)


def test_a_file_with_other_columns_is_refused_and_named(own: Path) -> None:
    n = pa.array([1, 2], pa.int64())
    tables = (
        pa.table({"key": n}),
        pa.table({"key": n, "frequency": n, "version": n, "vector": n, "slot_accumulator": n}),
        pa.table({"version": n, "frequency": n, "key": n}),
    )
    for table in tables:
        rewrite(own, "rows-00000-of-00002.arrow", table)
        with pytest.raises(CheckpointError, match=r"rows-00000-of-00002\.arrow has columns"):
            read_everything(own)


def test_a_file_that_is_no_arrow_file_is_refused_and_named(own: Path) -> None:
    path = own / "tables/adam/rows-00000-of-00002.arrow"
    path.write_bytes(b"ARROW1 or not")

    def change(manifest: dict[str, Any]) -> None:
        (entry,) = [e for e in manifest["files"] if "adam/rows-00000" in e["path"]]
        entry |= {"bytes": 13, "sha256": hashlib.sha256(b"ARROW1 or not").hexdigest()}

    edit(own, change)
    with pytest.raises(CheckpointError, match=r"adam/rows-00000-of-00002\.arrow can't be read"):
        read_everything(own)


def test_dense_blocks_that_are_not_listed_are_missed(own: Path) -> None:
    edit(own, lambda data: data["files"].pop())

    with pytest.raises(CheckpointError, match="lacks 2 dense blocks"):
        CheckpointReader(own).dense_vector()


# What does not fit --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"dim": 5}, "table adam has dim 2 .* in the checkpoint, 5"),
        ({"optimizer": Sgd()}, "optimizer adam_async in the checkpoint, 2 and sgd in the job"),
    ],
)
def test_a_table_of_another_shape_is_refused_before_anything_is_read(
    small_job: Any, saved: Path, changes: dict[str, Any], text: str
) -> None:
    tables = [replace(t, **changes) if t.name == "adam" else t for t in TABLES]
    job = small_job(tables, dense_size=2500, initialize=False)

    with pytest.raises(CheckpointError, match=text):
        start_shard_from(job.shards[0], CheckpointReader(saved), recovery_epoch=0)

    assert job.shards[0].fenced
    assert all(len(table) == 0 for table in job.shards[0].tables)


@pytest.mark.parametrize("options", [{"dense_size": 2499}, {"dense_optimizer": Sgd()}])
def test_parameters_of_another_shape_are_refused(
    small_job: Any, saved: Path, options: dict[str, Any]
) -> None:
    job = small_job(TABLES, initialize=False, **{"dense_size": 2500, **options})

    with pytest.raises(CheckpointError, match="dense parameters with"):
        start_shard_from(job.shards[0], CheckpointReader(saved), recovery_epoch=0)

    assert job.shards[0].fenced


def test_a_new_table_starts_empty_and_one_that_is_gone_is_left_out(
    small_job: Any, saved: Path
) -> None:
    tables = [TABLES[1], TableSpec(name="new", dim=9)]
    job = restored(small_job, saved, 2, tables)

    assert sum(len(shard.tables[0]) for shard in job.shards) == 181
    assert sum(len(shard.tables[1]) for shard in job.shards) == 0


def test_a_table_without_an_admission_rule_takes_no_counters(small_job: Any, saved: Path) -> None:
    tables = [replace(TABLES[0], admission=None), *TABLES[1:]]
    job = restored(small_job, saved, 1, tables)

    assert job.shards[0].tables[0].num_unadmitted == 0


def test_the_same_shape_fits_whatever_the_numbers(small_job: Any, saved: Path) -> None:
    tables = [replace(TABLES[0], optimizer=Adagrad(learning_rate=0.5), seed=4), *TABLES[1:]]
    spec = small_job(tables, num_shards=7, dense_size=2500).spec

    check_fits(CheckpointReader(saved).store, spec)


def test_specs_survive_json(small_job: Any) -> None:
    spec = small_job(TABLES, num_shards=2).spec

    assert json.loads(json.dumps(spec.to_json())) == spec.to_json()
    assert asdict(type(spec).from_json(json.loads(json.dumps(spec.to_json())))) == asdict(spec)
