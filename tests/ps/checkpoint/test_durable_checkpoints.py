"""Files that are written whole or not at all, whatever happens to who writes them."""

import mmap
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from ps.checkpoint.read import CheckpointReader
from ps.checkpoint.write import begin_checkpoint, publish_checkpoint
from runtime.durable import PARTIAL, new_file, write_text

ROOT = Path(__file__).parents[3]


def test_who_has_the_old_file_mapped_keeps_it(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_text(path, "old" * 5000)
    with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as view:
        write_text(path, "new")

        assert bytes(view[-3:]) == b"old"
    assert path.read_text() == "new"


def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_text(path, "old")

    def write_half() -> None:
        with new_file(path) as file:
            file.write(b"half of")
            raise OSError("the disk is full")

    with pytest.raises(OSError, match="full"):
        write_half()

    assert path.read_text() == "old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["file"]


def test_two_who_write_one_file_at_once_do_not_mix(tmp_path: Path) -> None:
    path = tmp_path / "file"

    with new_file(path) as first, new_file(path) as second:
        for half in (b"1", b"2"):
            first.write(b"first" + half)
            second.write(b"second" + half)

    assert path.read_text() == "first1first2"
    assert [entry.name for entry in tmp_path.iterdir()] == ["file"]


def test_a_checkpoint_of_a_step_that_is_there_gets_another_name(
    saved_job: Any, tmp_path: Path
) -> None:
    first, job = tmp_path / "full-000000000004", saved_job(1)
    published = []
    for _ in range(3):
        partial = begin_checkpoint(first)
        job.write_checkpoint(partial)
        published.append(publish_checkpoint(partial, first).name)

    assert published == [first.name, f"{first.name}-2", f"{first.name}-3"]
    assert all(CheckpointReader(tmp_path / name).manifest.step == 4 for name in published)


# Writes a checkpoint of one table where another one stands, and dies as it gives a file its name.
DYING = """
import os, sys
from pathlib import Path
import numpy as np
from embedding import Sgd, TableSpec
from ps.checkpoint.manifest import Manifest, write_manifest
from ps.checkpoint.write import begin_checkpoint, publish_checkpoint, write_shard
from ps.shard.shard import Shard
from ps.spec import StoreSpec

path, names_left = Path(sys.argv[1]), int(sys.argv[2])

def dying(real):
    def call(*arguments):
        global names_left
        if names_left == 0:
            os._exit(9)
        names_left -= 1
        real(*arguments)
    return call

os.replace, os.rename = dying(os.replace), dying(os.rename)
store = StoreSpec(tables=(TableSpec(name="a", dim=2, optimizer=Sgd()),), dense_size=4,
                  dense_optimizer=Sgd(), num_shards=1)
shard = Shard(store, 0)
shard.initialize(0, dense=np.full(4, float(sys.argv[2]), np.float32))
partial = begin_checkpoint(path)
files = write_shard(partial, shard)
write_manifest(partial, Manifest("full", 5, 0, store.to_json(), {}, {}, tuple(files)))
publish_checkpoint(partial, path)
"""


def test_a_writer_that_is_killed_leaves_the_checkpoint_that_was_there(tmp_path: Path) -> None:
    path = tmp_path / "full-000000000005"

    def write(names: int) -> int:
        command = [sys.executable, "-c", DYING, str(path), str(names)]
        return subprocess.run(command, cwd=ROOT, check=False).returncode

    assert write(99) == 0
    before = {file: file.read_bytes() for file in path.rglob("*") if file.is_file()}
    assert len(before) == 4, "rows, blocks, the list of their parts and a manifest"
    # One file, two, three, the manifest too: killed before the next gets its name.
    assert [write(names) for names in (1, 2, 3, 4)] == [9, 9, 9, 9]

    assert {file: file.read_bytes() for file in path.rglob("*") if file.is_file()} == before
    assert CheckpointReader(path).dense_vector().tolist() == [99.0] * 4
    others = [entry.name for entry in tmp_path.iterdir() if entry != path]
    assert len(others) == 4
    assert all(name.startswith(PARTIAL) for name in others), "none looks like a checkpoint"


def test_every_name_of_a_checkpoint_is_on_the_disk_before_it_is_published(
    saved_job: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of folders too: a file is lost with the name of the folder that it is in."""
    flushed: dict[Path, set[str]] = {}
    fsync = os.fsync

    def look(descriptor: int) -> None:
        path = Path(os.readlink(f"/proc/self/fd/{descriptor}"))
        if path.is_dir():
            flushed[path] = set(os.listdir(path))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", look)
    partial = begin_checkpoint(tmp_path / "run" / "checkpoints" / "full-000000000004")
    saved_job(1).write_checkpoint(partial)

    folders = [tmp_path, tmp_path / "run", tmp_path / "run" / "checkpoints", partial]
    folders += [path for path in partial.rglob("*") if path.is_dir()]
    assert {folder: flushed.get(folder) for folder in folders} == {
        folder: set(os.listdir(folder)) for folder in folders
    }
