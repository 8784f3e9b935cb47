"""A folder as a stream: order, files that are not complete, late ones, and what is not listed."""

import os
from collections.abc import Iterator
from pathlib import Path

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from runtime.storage import StorageError
from worker.data.directory_stream import DirectoryStream

TABLE = pa.table({"a": [1, 2, 3]})


def write(folder: Path, *names: str) -> None:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(TABLE, path)


def taken(stream: DirectoryStream, now: float = 0.0, most: int = 100) -> list[str]:
    stream._next_listing = 0.0  # however long the last listing took
    paths = [arrival.path for arrival in stream.poll(most=most, now=now)]
    return [path.removeprefix(f"{stream.folder}/") for path in paths]


@pytest.fixture
def stream(tmp_path: Path) -> DirectoryStream:
    return DirectoryStream(str(tmp_path), late_seconds=10, settle_seconds=5)


def test_files_are_taken_once_in_natural_order(stream: DirectoryStream, tmp_path: Path) -> None:
    write(tmp_path, "part-10.parquet", "part-9.parquet", "_x.parquet", ".y.parquet", "z.txt")

    assert taken(stream, most=1) == ["part-9.parquet"]
    assert stream.lag().files == 1
    assert taken(stream) == ["part-10.parquet"]
    write(tmp_path, "part-11.parquet")
    assert taken(stream) == ["part-11.parquet"]
    assert taken(stream) == []


def test_another_stream_goes_on_from_the_position(stream: DirectoryStream, tmp_path: Path) -> None:
    write(tmp_path, "a.parquet", "b.parquet")
    taken(stream)
    position = stream.position
    write(tmp_path, "c.parquet")
    taken(stream)

    other = DirectoryStream(str(tmp_path))
    other.seek(position)

    assert taken(other) == ["c.parquet"]
    with pytest.raises(ValueError, match="no position"):
        other.seek({"after": 3})


def test_a_file_that_is_being_written_is_waited_for_but_holds_up_no_other(
    stream: DirectoryStream, tmp_path: Path
) -> None:
    write(tmp_path, "a.parquet", "b.parquet")
    whole = (tmp_path / "a.parquet").read_bytes()
    (tmp_path / "a.parquet").write_bytes(whole[:-9])

    assert taken(stream, now=0) == ["b.parquet"]
    (tmp_path / "a.parquet").write_bytes(whole[:-4])
    assert taken(stream, now=4) == []
    assert taken(stream, now=8) == [], "its size has changed 4 s ago"
    (tmp_path / "a.parquet").write_bytes(whole)
    assert taken(stream, now=8) == ["a.parquet"]


def test_a_file_without_an_end_that_does_not_change_is_taken_as_it_is(
    stream: DirectoryStream, tmp_path: Path
) -> None:
    (tmp_path / "a.parquet").write_bytes(b"PAR1 and no more")

    assert taken(stream, now=0) == []
    assert taken(stream, now=5) == ["a.parquet"]


def test_a_late_file_is_taken_while_what_follows_it_is_remembered(
    stream: DirectoryStream, tmp_path: Path
) -> None:
    write(tmp_path, "b.parquet")
    taken(stream, now=0)
    write(tmp_path, "a.parquet")

    assert taken(stream, now=10) == ["a.parquet"]
    taken(stream, now=11)  # b is forgotten
    write(tmp_path, "a2.parquet", "c.parquet")
    assert taken(stream, now=11) == ["c.parquet"]
    assert stream.lag().too_late == 1


def test_what_was_seen_is_taken_however_late(stream: DirectoryStream, tmp_path: Path) -> None:
    (tmp_path / "a.parquet").write_bytes(b"")
    write(tmp_path, "b.parquet")
    assert taken(stream, now=0) == ["b.parquet"]
    assert taken(stream, now=4) == []
    (tmp_path / "a.parquet").write_bytes(b"x")
    taken(stream, now=4)
    other = DirectoryStream(str(tmp_path), late_seconds=0)
    taken(stream, now=8.5)
    other.seek(stream.position)
    write(tmp_path, "a.parquet")

    assert taken(other, now=20) == ["a.parquet"]


def test_folders_that_are_over_are_not_listed_again(
    stream: DirectoryStream, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path, "hour=1/a.parquet", "hour=2/a.parquet")
    assert taken(stream, now=0) == ["hour=1/a.parquet", "hour=2/a.parquet"]
    write(tmp_path, "hour=10/a.parquet")
    assert taken(stream, now=20) == ["hour=10/a.parquet"]
    listed: list[str] = []
    scandir = os.scandir
    monkeypatch.setattr(
        os, "scandir", lambda path: (listed.append(Path(path).name), scandir(path))[1]
    )

    write(tmp_path, "hour=1/b.parquet", "hour=10/b.parquet")

    assert taken(stream, now=20) == ["hour=10/b.parquet"]
    assert "hour=1" not in listed
    assert "hour=10" in listed


def test_a_folder_that_has_not_changed_is_not_listed_again(
    stream: DirectoryStream, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path, "a.parquet")
    os.utime(tmp_path, (1e9, 1e9))
    assert taken(stream) == ["a.parquet"]
    monkeypatch.setattr(os, "scandir", lambda path: pytest.fail(f"{path} is listed again"))

    assert taken(stream) == []


def test_nothing_is_taken_of_what_was_there_before_now(
    stream: DirectoryStream, tmp_path: Path
) -> None:
    write(tmp_path, "a.parquet", "b.parquet")

    assert stream.skip_what_is_there() == str(tmp_path / "b.parquet")
    write(tmp_path, "c.parquet")

    assert taken(stream) == ["c.parquet"]
    assert stream.lag().too_late == 0


@pytest.fixture
def memory() -> Iterator[str]:
    yield "memory://stream"
    fsspec.filesystem("memory").store.clear()


def test_a_store_is_a_stream_too(memory: str, tmp_path: Path) -> None:
    files = fsspec.filesystem("memory")
    write(tmp_path, "a.parquet")
    for name in ("b/2.parquet", "a.parquet"):
        files.pipe(f"/stream/{name}", (tmp_path / "a.parquet").read_bytes())
    stream = DirectoryStream(memory)

    assert taken(stream) == ["a.parquet", "b/2.parquet"]
    files.pipe("/stream/b/3.parquet", (tmp_path / "a.parquet").read_bytes())
    assert taken(stream) == ["b/3.parquet"]


def test_a_folder_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="nowhere"):
        taken(DirectoryStream(str(tmp_path / "nowhere")))


def test_a_file_arrives_when_it_was_written(memory: str, tmp_path: Path) -> None:
    write(tmp_path, "a.parquet")
    os.utime(tmp_path / "a.parquet", (1000.0, 2000.0))
    (local,) = DirectoryStream(str(tmp_path)).poll(most=9, now=3000.0)
    fsspec.filesystem("memory").pipe("/stream/a.parquet", (tmp_path / "a.parquet").read_bytes())
    (stored,) = DirectoryStream(memory).poll(most=9, now=3000.0)

    assert local.at == 2000.0
    assert stored.at == 3000.0, "this store does not say when"


def test_only_who_is_to_removes_files_or_moves_them_away(tmp_path: Path) -> None:
    names = [f"hour=1/{name}.parquet" for name in "abc"]
    write(tmp_path / "in", *names)
    paths = [str(tmp_path / "in" / name) for name in names]
    archive = tmp_path / "old"

    DirectoryStream(str(tmp_path / "in")).remove(paths[0])
    DirectoryStream(str(tmp_path / "in"), removes=True).remove(paths[1])
    mover = DirectoryStream(str(tmp_path / "in"), removes=True, archive=str(archive))
    mover.remove(paths[2])
    mover.remove(paths[2])

    assert taken(mover) == [names[0]]
    assert taken(DirectoryStream(str(archive))) == [names[2]]


def test_a_file_of_a_store_is_removed_by_its_url(memory: str, tmp_path: Path) -> None:
    write(tmp_path, "a.parquet")
    files = fsspec.filesystem("memory")
    files.pipe("/stream/b/2.parquet", (tmp_path / "a.parquet").read_bytes())
    stream = DirectoryStream(memory, removes=True)
    (arrival,) = stream.poll(most=9, now=0.0)

    stream.remove(arrival.path)

    assert not files.exists("/stream/b/2.parquet")
