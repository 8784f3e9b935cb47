"""Records that are read from a file, many at once, with the kernel's queue and without."""

import os
import tempfile
from collections.abc import Iterator

import numpy as np
import pytest

from embedding.kernels import disk_reads
from embedding.kernels.disk_reads import Layout, aligned, one_file, read_records

WIDTH = 100
LAYOUT = Layout(per_block=10, record_words=WIDTH + 1, block_words=1024)
BLOCKS = 700


@pytest.fixture
def file() -> Iterator[int]:
    """Record n holds n in all of its values, and something else before them."""
    words = aligned(BLOCKS * LAYOUT.block_words).reshape(BLOCKS, LAYOUT.block_words)
    numbers = np.arange(BLOCKS * LAYOUT.per_block, dtype=np.float32).reshape(BLOCKS, -1)
    for at in range(LAYOUT.per_block):
        first = at * LAYOUT.record_words
        words[:, first] = -1
        words[:, first + 1 : first + 1 + WIDTH] = numbers[:, at, None]
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "records")
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | getattr(os, "O_DIRECT", 0))
        os.pwrite(descriptor, memoryview(words).cast("B"), 0)
        yield descriptor
        os.close(descriptor)


@pytest.fixture(params=[True, False], ids=["queue", "one after another"])
def queue(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(disk_reads, "_readers", disk_reads._Readers())
    monkeypatch.setattr(disk_reads, "_SUPPORTED", disk_reads._SUPPORTED and request.param)


@pytest.mark.parametrize("count", [0, 1, 300, 5000])
@pytest.mark.usefixtures("queue")
def test_every_record_comes_in_its_place(file: int, count: int) -> None:
    numbers = np.random.default_rng(count).integers(0, BLOCKS * LAYOUT.per_block, count)
    records = np.zeros((count, WIDTH), np.float32)

    read_records(one_file(file), LAYOUT, numbers, records)

    assert np.array_equal(records, np.broadcast_to(numbers[:, None], records.shape))


@pytest.mark.usefixtures("queue")
def test_a_file_that_ends_before_is_told(file: int) -> None:
    numbers = np.array([5, BLOCKS * LAYOUT.per_block + 3])
    with pytest.raises(OSError, match="it ends before what was written to it"):
        read_records(one_file(file), LAYOUT, numbers, np.zeros((2, WIDTH), np.float32))


@pytest.mark.usefixtures("queue")
def test_what_the_system_says_is_told() -> None:
    descriptor = os.open(os.devnull, os.O_WRONLY)
    try:
        with pytest.raises(OSError, match="Bad file descriptor"):
            read_records(
                one_file(descriptor), LAYOUT, np.arange(3), np.zeros((3, WIDTH), np.float32)
            )
    finally:
        os.close(descriptor)
