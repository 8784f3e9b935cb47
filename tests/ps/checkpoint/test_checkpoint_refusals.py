import hashlib
import json
import os
import shutil
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from earlier_format import without_parts

from embedding.spec.optimizers import Adagrad, Sgd
from embedding.spec.table import TableSpec
from ps.checkpoint import manifest as checkpoint
from ps.checkpoint.manifest import CheckpointError
from ps.checkpoint.read import CheckpointReader
from ps.checkpoint.restore import check_fits, load_tables, start_shard_from
from ps.checkpoint.sealed_json import SEAL, sealed_text, unsealed


@pytest.fixture
def own(saved: Path, tmp_path: Path) -> Path:
    """A copy to be damaged."""
    return shutil.copytree(saved, tmp_path / "copy")


def edit(directory: Path, change: Callable[[dict[str, Any]], Any]) -> Path:
    path = directory / "manifest.json"
    data = unsealed(json.loads(path.read_text()))
    change(data)
    path.write_text(sealed_text(data)[0])
    return directory


def read_everything(directory: Path) -> None:
    reader = CheckpointReader(directory)
    load_tables(reader)
    reader.dense_vector()


# What is no checkpoint ----------------------------------------------------------------------------


def test_a_directory_without_a_manifest_is_no_checkpoint(own: Path) -> None:
    (own / "manifest.json").unlink()

    with pytest.raises(CheckpointError, match=r"no checkpoint: .*manifest\.json: No such file"):
        CheckpointReader(own)


def test_the_manifest_is_only_written_when_every_file_is_there(
    saved_job: Any, saved: Path, tmp_path: Path
) -> None:
    files = CheckpointReader(saved).manifest.files
    job = saved_job(2)
    cases = (
        (replace(files[0], path="tables/none.arrow"), "none.arrow has None bytes"),
        (replace(files[0], bytes=files[0].bytes + 1), "says"),
    )
    for entry, text in cases:
        with pytest.raises(CheckpointError, match=text):
            job.write_checkpoint(tmp_path, files=(*files[1:], entry))
        assert not list(tmp_path.glob("manifest*"))


@pytest.mark.parametrize("with_parts", [True, False])
@pytest.mark.parametrize("name", ["rows-00001", "counters-00000", "blocks-00001"])
def test_a_damaged_file_is_named(own: Path, name: str, with_parts: bool) -> None:
    if not with_parts:
        without_parts(own)
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


def test_a_file_is_checked_before_its_first_row_is_used(
    small_job: Any, saved_job: Any, own: Path
) -> None:
    for path in own.rglob("rows-00001*"):
        path.write_bytes(path.read_bytes()[:-8])
    job = small_job(saved_job.tables, num_shards=2, dense_size=2500, initialize=False)

    with pytest.raises(CheckpointError, match="is damaged"):
        start_shard_from(job.shards[1], CheckpointReader(own), recovery_epoch=0)

    assert job.shards[1].fenced


def drop(name: str) -> Callable[[dict[str, Any]], Any]:
    return lambda data: data.pop(name)


def put(name: str, value: Any) -> Callable[[dict[str, Any]], Any]:
    return lambda data: data.__setitem__(name, value)


def as_delta(name: str, seal: str = "0" * 64) -> Callable[[dict[str, Any]], Any]:
    return lambda data: data.update(kind="delta", parent={"name": name, "seal": seal})


def in_file(name: str, value: Any) -> Callable[[dict[str, Any]], Any]:
    return lambda data: data["files"][0].__setitem__(name, value)


def in_table(name: str, value: Any) -> Callable[[dict[str, Any]], Any]:
    return lambda data: data["store"]["tables"][0].__setitem__(name, value)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (drop("format"), "not the manifest of a checkpoint"),
        (put("format", "another"), "not the manifest of a checkpoint"),
        (put("format_version", 5), "has format version 5, this software reads 1 to 4"),
        (drop("format_version"), "has format version None"),
        *((drop(n), n) for n in ("files", "step", "store", "kind", "recovery_epoch", "model")),
        (put("more", 1), "more"),
        (put("step", "4"), "int64"),
        (put("step", None), "int64"),
        (put("kind", 1), "one of"),
        (put("kind", "delta"), "delta checkpoint with parent None"),
        (put("parent", {"name": "a", "seal": "0" * 64}), "full checkpoint with parent"),
        *(
            (as_delta(name), "names a parent that is no folder beside it")
            for name in ("", "..", "a/b", "/etc", ".partial-a", "a\0")
        ),
        (as_delta("a", "0" * 63), "seal"),
        (put("training", []), "mapping"),
        (put("store", []), "mapping"),
        (put("model", "x"), "mapping"),
        (put("files", {"a": 1}), "wrong"),
        (put("files", []), "lists 0 files of rows of table adagrad, but 2 shards wrote one each"),
        (lambda data: data["files"].pop(2), "lists 1 files of rows of table adam"),
        (put("files", [[1]]), "wrong"),
        (put("files", 5), "wrong"),
        (in_file("bytes", "12"), "int64"),
        (in_file("digest", 12), "string"),
        (in_file("path", None), "string"),
        (in_file("more", None), "more"),
        (in_file("bytes", -1), "-1 bytes"),
        (in_file("rows", -1), "-1 rows"),
        (in_file("digest", "0"), "digest '0'"),
        (in_file("path", "manifest.json"), "may be listed once"),
        (lambda data: data["files"].append(data["files"][0]), "may be listed once"),
        (lambda data: data["files"][0].pop("rows"), "rows"),
        *(
            (in_file("path", path), "outside of its folder")
            for path in ("/etc/passwd", "../x", "tables/../../x", "a/..", "x\0y", "", "a\\b")
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
        *((in_table("seed", value), "TableSpec.seed") for value in ([], True, 1.0, "1", None)),
        (in_table("track_usage", 1), "TableSpec.track_usage"),
        (in_table("value_dtype", ["float32"]), "TableSpec.value_dtype"),
        (in_table("initializer", [1]), "initializer must be a mapping"),
        (in_table("initializer", {"type": ["uniform"]}), "initializer type must be one of"),
        (in_table("initializer", {"type": "constant", "value": "0"}), "Constant.value"),
        (in_table("eviction", {"steps_to_live": 0.5}), "Eviction.steps_to_live"),
        *(
            (lambda data, value=value: data["store"].__setitem__("dense_size", value), "dense_size")
            for value in (1e999, 2500.0, "2500", True)
        ),
        (lambda data: data["store"].__setitem__("dense_clip_norm", "1"), "dense_clip_norm"),
        (lambda data: data["store"]["dense_optimizer"].__setitem__("clip_norm", 1), "clip_norm"),
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
    "change",
    [
        put("step", 5),
        put("recovery_epoch", 1),
        put("time", {"clock": 3}),
        drop("job"),
        in_table("seed", 1),
        in_table("default_value", 0.5),
        lambda data: data["store"].pop("sparse_mean"),
        put(SEAL, "0" * 64),
        put(SEAL, None),
    ],
)
def test_a_changed_value_of_a_manifest_is_damage(
    own: Path, change: Callable[[dict[str, Any]], Any]
) -> None:
    path = own / "manifest.json"
    data = json.loads(path.read_text())
    change(data)
    path.write_text(json.dumps(data))

    with pytest.raises(CheckpointError, match=r"manifest\.json is damaged: .* the checksum"):
        CheckpointReader(own)


def test_a_sealed_manifest_that_is_nested_too_deeply_is_damage(own: Path) -> None:
    path = own / "manifest.json"
    deep = '"job": ' + '{"a": ' * 900 + "1" + "}" * 900
    path.write_text(path.read_text().replace('"job": {}', deep))

    with pytest.raises(CheckpointError, match=r"manifest\.json is damaged: .* nested too deeply"):
        CheckpointReader(own)


def test_a_manifest_that_is_written_otherwise_is_the_same(own: Path) -> None:
    path = own / "manifest.json"
    data = json.loads(path.read_text())
    path.write_text(json.dumps(dict(reversed(data.items())), indent=7))

    read_everything(own)


def test_a_manifest_without_a_checksum_is_one_of_the_first_version(own: Path) -> None:
    path = own / "manifest.json"
    data = unsealed(json.loads(path.read_text()))
    path.write_text(json.dumps(data))
    with pytest.raises(CheckpointError, match=r"manifest\.json is damaged: it lacks its checksum"):
        CheckpointReader(own)

    without_parts(own)
    data = unsealed(json.loads(path.read_text()))
    path.write_text(json.dumps({**data, "format_version": 1}))
    read_everything(own)


@pytest.mark.parametrize("dense_size", [2**40, 2**62])
def test_dense_parameters_that_no_memory_holds_are_refused(own: Path, dense_size: int) -> None:
    """With files that claim as many, so that nothing but the claim is there."""

    def claim(data: dict[str, Any]) -> None:
        data["store"]["dense_size"] = dense_size
        first, *others = (e for e in data["files"] if e["path"].startswith("dense/"))
        first["rows"] = dense_size // 1024 - sum(entry["rows"] for entry in others)

    edit(without_parts(own), claim)

    with pytest.raises(CheckpointError, match="for which there is no memory"):
        CheckpointReader(own).dense_vector()


@pytest.mark.timeout(20)
@pytest.mark.parametrize("with_parts", [True, False])
@pytest.mark.parametrize("kind", ["pipe", "device", "folder"])
@pytest.mark.parametrize("name", ["manifest.json", "rows-00001-of-00002.arrow"])
def test_what_is_no_file_is_refused_and_not_waited_for(
    own: Path, name: str, kind: str, with_parts: bool
) -> None:
    if not with_parts:
        without_parts(own)
    path = next(own.rglob(name))
    path.unlink()
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "device":
        path.symlink_to("/dev/zero")
    else:
        path.mkdir()

    for read in (read_everything, lambda directory: CheckpointReader(directory).verify()):
        with pytest.raises(CheckpointError, match=rf"{name}( is not a regular file| is damaged)"):
            read(own)


def test_links_to_files_are_followed(own: Path, tmp_path: Path) -> None:
    """As stores of models keep them: what is there has to have the checksum all the same."""
    for path in [*own.rglob("*.arrow"), own / "manifest.json"]:
        elsewhere = tmp_path / path.relative_to(own).as_posix().replace("/", "-")
        path.rename(elsewhere)
        path.symlink_to(elsewhere)
    read_everything(own)

    elsewhere.write_bytes(b"{}")
    with pytest.raises(CheckpointError, match=r"manifest\.json"):
        CheckpointReader(own)


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
    """Put another file in the place of one, with a manifest that agrees, and no list of parts."""
    without_parts(directory)
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


@pytest.mark.parametrize("column", ["key", "version", "vector", "slot_v"])
def test_a_file_with_nulls_is_refused_and_named(own: Path, column: str) -> None:
    path = own / "tables/adam/rows-00000-of-00002.arrow"
    with pa.ipc.open_file(path) as reader:
        table = reader.read_all()
    place = table.schema.get_field_index(column)
    values = [None, *table[column].to_pylist()[1:]]
    nulls = table.set_column(
        place, table.schema.field(column), pa.array(values, table[column].type)
    )
    rewrite(own, "tables/adam/rows-00000-of-00002.arrow", nulls)

    with pytest.raises(CheckpointError, match=rf"adam/rows-00000.*column '{column}' has 1 nulls"):
        read_everything(own)


def test_a_file_that_is_no_arrow_file_is_refused_and_named(own: Path) -> None:
    path = own / "tables/adam/rows-00000-of-00002.arrow"
    path.write_bytes(b"ARROW1 or not")

    def change(manifest: dict[str, Any]) -> None:
        (entry,) = [e for e in manifest["files"] if "adam/rows-00000" in e["path"]]
        entry |= {"bytes": 13, "sha256": hashlib.sha256(b"ARROW1 or not").hexdigest()}

    edit(without_parts(own), change)
    with pytest.raises(CheckpointError, match=r"adam/rows-00000-of-00002\.arrow can't be read"):
        read_everything(own)


def test_dense_blocks_that_are_not_listed_are_missed(own: Path) -> None:
    edit(without_parts(own), lambda data: data["files"].pop())

    with pytest.raises(CheckpointError, match="lists 1 dense blocks, its dense parameters need 3"):
        CheckpointReader(own).dense_vector()


# What does not fit --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"dim": 5}, "table adam: the dim is 2 in the checkpoint, 5 in the job"),
        ({"optimizer": Sgd()}, "the optimizer is adam_async in the checkpoint, sgd in the job"),
    ],
)
def test_a_table_of_another_shape_is_refused_before_anything_is_read(
    small_job: Any, saved_job: Any, saved: Path, changes: dict[str, Any], text: str
) -> None:
    tables = [replace(t, **changes) if t.name == "adam" else t for t in saved_job.tables]
    job = small_job(tables, dense_size=2500, initialize=False)

    with pytest.raises(CheckpointError, match=text):
        start_shard_from(job.shards[0], CheckpointReader(saved), recovery_epoch=0)

    assert job.shards[0].fenced
    assert all(len(table) == 0 for table in job.shards[0].tables)


@pytest.mark.parametrize("options", [{"dense_size": 2499}, {"dense_optimizer": Sgd()}])
def test_parameters_of_another_shape_are_refused(
    small_job: Any, saved_job: Any, saved: Path, options: dict[str, Any]
) -> None:
    job = small_job(saved_job.tables, initialize=False, **{"dense_size": 2500, **options})

    with pytest.raises(
        CheckpointError, match=r"model: the (optimizer|number of dense parameters) is"
    ):
        start_shard_from(job.shards[0], CheckpointReader(saved), recovery_epoch=0)

    assert job.shards[0].fenced


def test_a_new_table_starts_empty_and_one_that_is_gone_is_left_out(
    saved_job: Any, saved: Path
) -> None:
    tables = [saved_job.tables[1], TableSpec(name="new", dim=9)]
    job = saved_job.restore(saved, 2, tables)

    assert sum(len(shard.tables[0]) for shard in job.shards) == 181
    assert sum(len(shard.tables[1]) for shard in job.shards) == 0


def test_a_table_without_an_admission_rule_takes_no_counters(saved_job: Any, saved: Path) -> None:
    tables = [replace(saved_job.tables[0], admission=None), *saved_job.tables[1:]]
    job = saved_job.restore(saved, 1, tables)

    assert job.shards[0].tables[0].num_unadmitted == 0


def test_the_same_shape_fits_whatever_the_numbers(
    small_job: Any, saved_job: Any, saved: Path
) -> None:
    tables = [
        replace(saved_job.tables[0], optimizer=Adagrad(learning_rate=0.5), seed=4),
        *saved_job.tables[1:],
    ]
    spec = small_job(tables, num_shards=7, dense_size=2500).spec

    check_fits(CheckpointReader(saved).store, spec)


def test_specs_survive_json(small_job: Any, saved_job: Any) -> None:
    spec = small_job(saved_job.tables, num_shards=2).spec

    assert json.loads(json.dumps(spec.to_json())) == spec.to_json()
    assert asdict(type(spec).from_json(json.loads(json.dumps(spec.to_json())))) == asdict(spec)
