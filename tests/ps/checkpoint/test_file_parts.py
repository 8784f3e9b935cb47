"""Shards read of a checkpoint what they keep; a list of parts that lies is found out in time."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from blake3 import blake3
from earlier_format import without_parts

from embedding.spec.admission import BloomAdmission
from embedding.spec.table import TableSpec
from ps.checkpoint.file_parts import PARTS_SCHEMA
from ps.checkpoint.manifest import CheckpointError
from ps.checkpoint.read import CheckpointReader
from ps.checkpoint.restore import MovedDense, load_tables, start_shard_from
from ps.checkpoint.sealed_json import sealed_text, unsealed

LIST = "parts-00000-of-00002.arrow"
ADAM = "tables/adam/rows-00000-of-00002.arrow"


def make_parts_small(patch: pytest.MonkeyPatch) -> None:
    """Write parts of a few rows each, and of two dense blocks."""
    patch.setattr("ps.checkpoint.file_rows.PART_BYTES", 2000)
    patch.setattr("ps.checkpoint.write.PART_BYTES", 2 * 8192)


@pytest.fixture
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    make_parts_small(monkeypatch)


@pytest.fixture(scope="module")
def written(saved_job: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of two shards whose files have small parts; for reading only."""
    with pytest.MonkeyPatch.context() as patch:
        make_parts_small(patch)
        return saved_job(2).write_checkpoint(tmp_path_factory.mktemp("parts"))


@pytest.fixture
def own(written: Path, tmp_path: Path) -> Path:
    """A copy to be damaged."""
    return shutil.copytree(written, tmp_path / "own")


def edit_manifest(directory: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    path = directory / "manifest.json"
    data = unsealed(json.loads(path.read_text()))
    change(data)
    path.write_text(sealed_text(data)[0])


def edit_list(directory: Path, change: Callable[[list[dict[str, Any]]], Any]) -> None:
    """Change a list of parts, with a manifest that agrees."""
    path = directory / LIST
    with pa.ipc.open_file(path.read_bytes()) as reader:
        parts = reader.read_all().to_pylist()
    change(parts)
    with pa.ipc.new_file(path, PARTS_SCHEMA) as writer:
        writer.write(pa.Table.from_pylist(parts, PARTS_SCHEMA))
    data = path.read_bytes()

    def agree(manifest: dict[str, Any]) -> None:
        (entry,) = [e for e in manifest["files"] if e["path"] == LIST]
        entry |= {"bytes": len(data), "digest": blake3(data).hexdigest()}

    edit_manifest(directory, agree)


def test_a_list_whose_texts_lie_outside_of_it_is_refused(own: Path) -> None:
    """Arrow follows the ends of texts wherever they point, unless it is told to look at them."""
    path = own / LIST
    with pa.ipc.open_file(path.read_bytes()) as reader:
        texts = reader.get_batch(0).column(0).buffers()[1].to_pybytes()
    data = path.read_bytes().replace(texts, b"\xff" * 8 + texts[8:])

    def agree(manifest: dict[str, Any]) -> None:
        (entry,) = [e for e in manifest["files"] if e["path"] == LIST]
        entry["digest"] = blake3(data).hexdigest()

    path.write_bytes(data)
    edit_manifest(own, agree)

    with pytest.raises(CheckpointError, match=rf"{LIST} can't be read"):
        CheckpointReader(own).verify()


def of_adam(parts: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [part for part in parts if part["path"] == ADAM]


# What is read -------------------------------------------------------------------------------------


def restored(small_job: Any, saved_job: Any, directory: Path, num_shards: int) -> tuple[str, int]:
    """Restore every shard by a reader of its own; return the digest and the bytes read."""
    job = small_job(saved_job.tables, num_shards=num_shards, dense_size=2500, initialize=False)
    bytes_read = 0
    for shard in job.shards:
        reader = CheckpointReader(directory)
        start_shard_from(shard, reader, recovery_epoch=3)
        bytes_read += reader.bytes_read
    return job.digest, bytes_read


@pytest.mark.parametrize("num_shards", [1, 2, 4, 7])
def test_all_shards_together_read_a_checkpoint_once(
    own: Path, small_job: Any, saved_job: Any, num_shards: int
) -> None:
    """But for the lists of parts, and for parts that two shards have buckets of."""
    sizes = {path: path.stat().st_size for path in own.rglob("*.arrow")}
    lists = sum(size for path, size in sizes.items() if path.name.startswith("parts-"))
    files = sum(sizes.values()) - lists

    _, bytes_read = restored(small_job, saved_job, own, num_shards)

    data_read = bytes_read - num_shards * lists
    if num_shards <= 2:
        assert data_read <= files, "no byte twice"
    else:
        largest_part = 2 * 8192 + 1000
        assert data_read <= files + (num_shards - 2) * (4 * 3000 + largest_part)
    without_parts(own)
    _, by_earlier_versions = restored(small_job, saved_job, own, num_shards)
    assert by_earlier_versions == num_shards * files


@pytest.mark.parametrize("written_by", [1, 2, 3])
def test_parts_give_what_whole_files_give(
    small_parts: None, small_job: Any, saved_job: Any, tmp_path: Path, written_by: int
) -> None:
    directory = saved_job(written_by).write_checkpoint(tmp_path)

    digests = {restored(small_job, saved_job, directory, n)[0] for n in (1, 2, 3, 5)}
    without_parts(directory)
    digests.add(restored(small_job, saved_job, directory, 2)[0])

    assert len(digests) == 1


def test_a_shard_opens_no_file_that_holds_nothing_for_it(
    own: Path, small_job: Any, saved_job: Any
) -> None:
    for path in [*own.glob("*/*/*-00001-of-*"), *own.glob("dense/*-00001-of-*")]:
        path.unlink()
    whole = saved_job(2)
    job = small_job(saved_job.tables, num_shards=2, dense_size=2500, initialize=False)

    start_shard_from(job.shards[0], CheckpointReader(own), recovery_epoch=3)

    for before, after in zip(whole.shards[0].tables, job.shards[0].tables, strict=True):
        assert before.export().vectors.tobytes() == after.export().vectors.tobytes()
    assert job.shards[0].dense.rows.tobytes() == whole.shards[0].dense.rows.tobytes()


def test_blocks_of_a_bloom_filter_are_read_by_bucket(small_job: Any, tmp_path: Path) -> None:
    table = TableSpec(name="t", dim=1, admission=BloomAdmission(min_count=9, max_elements=100))
    job = small_job([table], num_shards=3)
    job.train(0, range(50))
    reader = CheckpointReader(job.write_checkpoint(tmp_path))
    (spec,) = reader.store.tables

    def buckets(first: int, end: int) -> list[int]:
        return [b for part in reader.bloom_blocks(spec, (first, end)) for b in part.buckets]

    assert buckets(0, 1500) + buckets(1500, 3000) + buckets(3000, 4096) == buckets(0, 4096)
    assert len(buckets(0, 4096)) > 40


def test_dense_parameters_that_moved_are_read_from_where_they_were(
    small_parts: None, small_job: Any, tmp_path: Path
) -> None:
    tables = [TableSpec(name="t", dim=1)]
    job = small_job(tables, num_shards=1, dense_size=20 * 1024)
    directory = job.write_checkpoint(tmp_path)
    sources = np.arange(5 * 1024, 6 * 1024)
    initial = np.zeros(1024, np.float32)
    again = small_job(tables, num_shards=1, dense_size=1024, initialize=False)
    reader = CheckpointReader(directory)

    start_shard_from(again.shards[0], reader, recovery_epoch=3, moved=MovedDense(initial, sources))

    expected = job.shards[0].dense.vector[sources]
    assert again.shards[0].dense.vector.tobytes() == expected.tobytes()
    assert reader.bytes_read < 4 * 8192, "of 20 blocks of 8 KiB"


def test_one_table_is_loaded_from_its_own_files(own: Path) -> None:
    for path in own.glob("tables/*/*"):
        if path.parent.name != "adam":
            path.unlink()

    assert len(load_tables(CheckpointReader(own), ["adam"])["adam"]) == 181


# Lists that lie -----------------------------------------------------------------------------------


def narrower(parts: list[dict[str, Any]]) -> None:
    of_adam(parts)[1]["end"] -= 1


def later(parts: list[dict[str, Any]]) -> None:
    of_adam(parts)[1]["first"] += 1


def cut_elsewhere(parts: list[dict[str, Any]]) -> None:
    first, second = of_adam(parts)[:2]
    first["num_bytes"] += 8
    second["num_bytes"] -= 8


def swap_rows(parts: list[dict[str, Any]]) -> None:
    first, second = of_adam(parts)[:2]
    first["rows"] += 1
    second["rows"] -= 1


def swap_ends(parts: list[dict[str, Any]]) -> None:
    first, second = of_adam(parts)[:2]
    first["end"], second["end"] = second["end"], first["end"]


def swap_places(parts: list[dict[str, Any]]) -> None:
    first, second = of_adam(parts)[:2]
    first |= {name: second[name] for name in ("num_bytes", "digest", "rows")}


@pytest.mark.parametrize("change", [narrower, later, cut_elsewhere, swap_rows, swap_places])
def test_a_part_that_holds_other_keys_than_its_list_says_is_refused_and_leaves_no_row(
    own: Path, small_job: Any, saved_job: Any, change: Any
) -> None:
    good = shutil.copytree(own, own.with_name("good"))
    edit_list(own, change)
    job = small_job(saved_job.tables, num_shards=2, dense_size=2500, initialize=False)

    with pytest.raises(CheckpointError, match=ADAM):
        start_shard_from(job.shards[0], CheckpointReader(own), recovery_epoch=0)

    assert job.shards[0].fenced
    assert all(len(table) + table.num_unadmitted == 0 for table in job.shards[0].tables)
    for shard in job.shards:
        start_shard_from(shard, CheckpointReader(good), recovery_epoch=3)
    assert job.digest == saved_job.restore(good, 2).digest, "and may start from another one"


def put(name: str, value: Any, part: int = 1) -> Callable[[list[dict[str, Any]]], Any]:
    return lambda parts: of_adam(parts)[part].__setitem__(name, value)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (put("first", 0), r"buckets \[0, \d+\) of tables/adam/rows-00000.* can't follow"),
        (put("first", -1, 0), r"buckets \[-1, \d+\)"),
        (put("end", 4097, -1), r"buckets \[\d+, 4097\) of .* of 4096 at most"),
        (put("end", 0), r"buckets \[\d+, 0\)"),
        (put("end", 4096, -1), r"rows-00000.* and buckets .* of tables/adam/rows-00001"),
        (put("rows", 0), "0 rows in"),
        (put("rows", 2**62), "the manifest has"),
        (put("num_bytes", 2**62), "rows in 4611686018427387904 bytes"),
        (put("num_bytes", 2**30), "longer than its"),
        (put("num_bytes", 0), "rows in 0 bytes"),
        (put("num_bytes", -8), "rows in -8 bytes"),
        (put("path", "tables/adam/rows-1"), "the manifest does not list"),
        (put("path", "../x"), "the manifest does not list"),
        (put("path", "parts-00001-of-00002.arrow"), "the manifest does not list"),
        (put("path", "tables/adam/rows-00001-of-00002.arrow"), r"adam/rows-0000\d"),
        (lambda parts: parts.remove(of_adam(parts)[1]), "the manifest has"),
        (lambda parts: parts.append(of_adam(parts)[1]), r"buckets \["),
        (lambda parts: parts.clear(), r"with 0 rows, the manifest has"),
    ],
)
def test_a_list_that_can_not_be_right_is_refused_before_a_file_is_opened(
    own: Path, change: Any, text: str
) -> None:
    edit_list(own, change)
    for path in own.glob("*/*/*.arrow"):
        path.unlink()

    with pytest.raises(CheckpointError, match=text) as caught:
        load_tables(CheckpointReader(own))

    assert "parts-" in str(caught.value)


def test_a_list_that_is_damaged_lost_or_huge_is_refused_and_named(
    own: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def load() -> None:
        load_tables(CheckpointReader(own))

    data = (own / LIST).read_bytes()
    (own / LIST).write_bytes(data[:-9] + bytes(9))
    with pytest.raises(CheckpointError, match=rf"{LIST} is damaged"):
        load()
    (own / LIST).write_bytes(data)
    monkeypatch.setattr("ps.checkpoint.files.MAX_PARTS_BYTES", 1000)
    with pytest.raises(CheckpointError, match=rf"{LIST} has \d+ bytes, .* 1000 at most"):
        load()
    monkeypatch.undo()
    edit_manifest(
        own, lambda m: m["files"].remove(next(e for e in m["files"] if e["path"] == LIST))
    )
    with pytest.raises(CheckpointError, match=r"with 0 rows, the manifest has"):
        load()


def test_verify_looks_at_every_byte_and_at_the_lists(own: Path) -> None:
    """A damaged footer harms no restore here, but other tools need it."""
    CheckpointReader(own).verify()
    data = (own / ADAM).read_bytes()

    (own / ADAM).write_bytes(data[:-20] + bytes(20))
    assert len(load_tables(CheckpointReader(own), ["adam"])["adam"]) == 181
    with pytest.raises(CheckpointError, match=rf"{ADAM} is damaged"):
        CheckpointReader(own).verify()

    (own / ADAM).unlink()
    with pytest.raises(CheckpointError, match=rf"{ADAM}: there is no such file"):
        CheckpointReader(own).verify()

    (own / ADAM).write_bytes(data)
    edit_list(own, swap_ends)
    with pytest.raises(CheckpointError, match=r"can't follow"):
        CheckpointReader(own).verify()


@pytest.mark.parametrize("order", [[1, 0], [0, 0, 1]])
def test_rows_out_of_order_or_there_twice_are_refused_and_named(
    own: Path, order: list[int]
) -> None:
    """They would be missed, or one would silently replace the other."""
    path = own / ADAM
    with pa.ipc.open_file(path.read_bytes()) as reader:
        table = reader.read_all().combine_chunks()
    rows = [*order, *range(2, table.num_rows)]
    with pa.ipc.new_file(path, table.schema) as writer:
        writer.write(table.take(rows))
    without_parts(own)
    size = path.stat().st_size
    edit_manifest(own, lambda m: [e.update(bytes=size) for e in m["files"] if e["path"] == ADAM])

    with pytest.raises(CheckpointError, match=rf"{ADAM}: key .* comes after key"):
        load_tables(CheckpointReader(own))
