"""What the disk itself does with so many bytes, beside which files are measured."""

import mmap
import os
import sys
import time
from collections.abc import Iterable
from pathlib import Path

import numpy as np

_BLOCK = 8 << 20


def write_seconds(path: Path, num_bytes: int) -> float:
    """Write a file of random bytes and flush it to the disk, in the faster one of two ways.

    They are through the page cache and, where that can be done, past it.
    """
    ways = [0, os.O_DIRECT] if hasattr(os, "O_DIRECT") else [0]
    return min(_seconds_of(path, num_bytes, flags) for flags in ways)


def _seconds_of(path: Path, num_bytes: int, flags: int) -> float:
    block = mmap.mmap(-1, _BLOCK)  # it begins with a page, as writes past the page cache need
    block.write(np.random.default_rng(0).bytes(_BLOCK))
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | flags)
    except OSError:
        return float("inf")  # not on this file system
    try:
        blocks = max(1, round(num_bytes / _BLOCK))
        began = time.perf_counter()
        for _ in range(blocks):
            if os.write(descriptor, block) < _BLOCK:
                raise OSError(f"{path} can't be written: the disk is full")
        os.fsync(descriptor)
        return (time.perf_counter() - began) * num_bytes / (blocks * _BLOCK)
    finally:
        os.close(descriptor)


def read_seconds(path: Path, num_bytes: int) -> float:
    """Read a file that the page cache has let go; return the time for so many bytes of it."""
    forget([path])
    block = bytearray(_BLOCK)
    began = time.perf_counter()
    with open(path, "rb", buffering=0) as file:
        while file.readinto(block):
            pass
    return (time.perf_counter() - began) * num_bytes / path.stat().st_size


def forget(paths: Iterable[Path]) -> None:
    """Have the page cache let go of files, where the system can."""
    if sys.platform != "linux":
        return
    for path in paths:
        with open(path, "rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
