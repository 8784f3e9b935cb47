"""What others take to write and read the same rows, where they are installed."""

import importlib
import shutil
import time
from pathlib import Path
from typing import Any

import numpy as np

from bench.disk_speed import forget
from bench.lines import MEGA, emit

_ROWS_AT_ONCE = 1 << 16


def beside(folder: Path, rows: int, row_floats: int) -> None:
    """Print how torch and RocksDB write and read so many rows of float32 values."""
    for name, module, run in (
        ("torch", "torch", _torch),
        ("rocksdb", "rocksdict", _rocksdb),
    ):
        try:
            found = importlib.import_module(module)
        except ImportError:
            emit(f"{name}_write", None, "MB/s", note=f"{module} is not installed")
            continue
        place = folder / name
        place.mkdir()
        write, read, num_bytes = run(found, place, rows, row_floats)
        emit(f"{name}_write", num_bytes / write / MEGA, "MB/s", rows=rows)
        emit(f"{name}_read", num_bytes / read / MEGA, "MB/s", rows=rows)
        shutil.rmtree(place)


def _torch(torch: Any, place: Path, rows: int, row_floats: int) -> tuple[float, float, int]:
    """torch.save of one tensor, flushed to the disk, and torch.load."""
    import os

    path, tensor = place / "tensor", torch.ones((rows, row_floats))
    began = time.perf_counter()
    with open(path, "wb") as file:
        torch.save(tensor, file)
        file.flush()
        os.fsync(file.fileno())
    write = time.perf_counter() - began
    forget([path])
    began = time.perf_counter()
    torch.load(path)
    return write, time.perf_counter() - began, path.stat().st_size


def _rocksdb(rocksdict: Any, place: Path, rows: int, row_floats: int) -> tuple[float, float, int]:
    """A key of 8 bytes and a value of a row, in batches; read in order of the keys."""
    options = rocksdict.Options(raw_mode=True)
    values = np.ones((_ROWS_AT_ONCE, row_floats), np.float32)
    began = time.perf_counter()
    store = rocksdict.Rdict(str(place), options)
    for start in range(0, rows, _ROWS_AT_ONCE):
        batch = rocksdict.WriteBatch(raw_mode=True)
        for key in range(start, min(start + _ROWS_AT_ONCE, rows)):
            batch.put(key.to_bytes(8, "big"), values[key - start].tobytes())
        store.write(batch)
    store.flush()
    write = time.perf_counter() - began
    store.close()
    forget(path for path in place.rglob("*") if path.is_file())
    began = time.perf_counter()
    store = rocksdict.Rdict(str(place), options)
    for _ in store.items():
        pass
    read = time.perf_counter() - began
    store.close()
    return write, read, rows * (8 + 4 * row_floats)
