"""What is written block by block by another thread is what was given, whatever the disk does."""

import errno
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from runtime.streamed_file import BLOCK_BYTES, StreamedFile

DIRECT = getattr(os, "O_DIRECT", 0)


def write(path: Path, *pieces: bytes) -> None:
    with open(path, "wb") as file, StreamedFile(file) as streamed:
        for piece in pieces:
            streamed.write(piece)


@pytest.mark.parametrize(
    "sizes",
    [
        [],
        [0],
        [1],
        [5000, 3, 8],
        [BLOCK_BYTES],
        [BLOCK_BYTES - 1, 1, 1],
        [3 * BLOCK_BYTES + 4097, 1, BLOCK_BYTES],
    ],
)
def test_pieces_of_any_size_follow_one_another(tmp_path: Path, sizes: list[int]) -> None:
    rng = np.random.default_rng(0)
    pieces = [rng.bytes(size) for size in sizes]

    write(tmp_path / "file", *pieces)

    assert (tmp_path / "file").read_bytes() == b"".join(pieces)


@pytest.mark.skipif(not DIRECT, reason="the system has no direct writes")
@pytest.mark.parametrize("refused", ["when it is asked for", "when it writes"])
def test_a_file_system_without_direct_writes_gets_plain_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refused: str
) -> None:
    real, control = os.write, StreamedFile._set_direct
    direct: list[StreamedFile] = []

    def plain_only(descriptor: int, data: Any) -> int:
        if direct:
            raise OSError(errno.EINVAL, "Invalid argument")
        return real(descriptor, data)

    def set_direct(file: StreamedFile, *, wanted: bool) -> bool:
        if wanted and refused == "when it is asked for":
            return False
        direct[:] = [file] if wanted else []
        return control(file, wanted=wanted)

    monkeypatch.setattr("runtime.streamed_file.os.write", plain_only)
    monkeypatch.setattr(StreamedFile, "_set_direct", set_direct)
    data = np.random.default_rng(0).bytes(2 * BLOCK_BYTES + 5)

    write(tmp_path / "file", data)

    assert (tmp_path / "file").read_bytes() == data


def test_writes_that_take_a_part_are_gone_on_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.write
    monkeypatch.setattr("runtime.streamed_file.os.write", lambda d, data: real(d, data[:1_000_003]))
    data = np.random.default_rng(0).bytes(2 * BLOCK_BYTES + 5)

    write(tmp_path / "file", data)

    assert (tmp_path / "file").read_bytes() == data


@pytest.mark.parametrize("size", [10, BLOCK_BYTES + 10, 5 * BLOCK_BYTES])
def test_an_error_of_the_disk_is_raised(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    def full(descriptor: int, data: Any) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("runtime.streamed_file.os.write", full)

    with pytest.raises(OSError, match="No space left"):
        write(tmp_path / "file", bytes(size))
