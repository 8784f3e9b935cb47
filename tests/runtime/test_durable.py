"""Files that are put onto the disk together, while others are written."""

import errno
import os
import threading
from contextlib import suppress
from pathlib import Path

import pytest

from runtime.durable import Flushes, new_file


def open_files() -> list[str]:
    """Return what this process has open; others may close their files meanwhile."""
    found = []
    for descriptor in Path("/proc/self/fd").iterdir():
        with suppress(OSError):
            found.append(os.readlink(descriptor))
    return found


def test_files_and_their_names_are_on_the_disk_once_the_block_has_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flushed: list[int] = []
    fsync = os.fsync

    def note(descriptor: int) -> None:
        flushed.append(os.fstat(descriptor).st_ino)
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", note)
    paths = [tmp_path / f"folder-{number % 2}" / f"file-{number}" for number in range(6)]

    with Flushes() as flushes:
        for path in paths:
            flushes.make_folder(path.parent)
            with new_file(path, flushes) as file:
                file.write(path.name.encode())
            assert path.read_text() == path.name

    wanted = {*paths, *(path.parent for path in paths), tmp_path}
    assert {path.stat().st_ino for path in wanted} <= set(flushed)
    assert len(flushed) == len(wanted), "each once"
    assert not [where for where in open_files() if where.startswith(str(tmp_path))]


def test_several_wait_for_the_disk_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    together = threading.Barrier(3, timeout=30)
    monkeypatch.setattr(os, "fsync", lambda descriptor: together.wait())

    with Flushes(threads=3) as flushes:
        for number in range(3):
            with new_file(tmp_path / f"{number}", flushes) as file:
                file.write(b"x")
        monkeypatch.setattr("runtime.durable.flush_directory", lambda path: None)


def test_a_file_that_can_t_be_put_there_is_an_error_at_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)

    with pytest.raises(OSError, match="No space left"):
        write_in(tmp_path, "a", "b")

    assert (tmp_path / "b").exists(), "the next one is written all the same"


def test_what_fails_in_the_block_is_what_is_raised(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="wrong"):
        write_in(tmp_path, "a", error=ValueError("wrong"))


def write_in(folder: Path, *names: str, error: Exception | None = None) -> None:
    with Flushes() as flushes:
        for name in names:
            with new_file(folder / name, flushes) as file:
                file.write(b"x")
        if error is not None:
            raise error
