"""What the disk itself does with so many bytes, beside which files are measured."""

import os
import sys
import time
from collections.abc import Iterable
from pathlib import Path

import numpy as np

_BLOCK = 8 << 20


def write_seconds(path: Path, num_bytes: int) -> float:
    """Write a file of random bytes and flush it to the disk."""
    block = memoryview(np.random.default_rng(0).bytes(_BLOCK))
    began = time.perf_counter()
    with open(path, "wb", buffering=0) as file:
        left = num_bytes
        while left > 0:
            left -= file.write(block[: min(left, _BLOCK)])
        os.fsync(file.fileno())
    return time.perf_counter() - began


def read_seconds(path: Path) -> float:
    """Read a file that the page cache has let go."""
    forget([path])
    block = bytearray(_BLOCK)
    began = time.perf_counter()
    with open(path, "rb", buffering=0) as file:
        while file.readinto(block):
            pass
    return time.perf_counter() - began


def forget(paths: Iterable[Path]) -> None:
    """Have the page cache let go of files, where the system can."""
    if sys.platform != "linux":
        return
    for path in paths:
        with open(path, "rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
