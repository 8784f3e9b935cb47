"""What a stream keeps aside because it can't be used: the newest of it, as a job runs for weeks."""

import os
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from runtime.durable import make_folder, new_file
from runtime.growing_files import GrowingFile
from runtime.strict_json import json_text

MOST_BYTES = 1 << 30
MOST_FILES = 10_000
_FILES = "files.jsonl"
_MOST_LIST_BYTES = 16 << 20


def keep_table(folder: Path, name: str, table: pa.Table) -> Path:
    """Write a table into a Parquet file of the folder, where the oldest ones make room for it.

    Done again it gives the same file.

    Raises:
        OSError: it can't be written.
    """
    make_folder(folder)
    path = folder / name
    with new_file(path) as sink:
        pq.write_table(table, sink)
    _make_room(folder, spared=name)
    return path


def keep_name(folder: Path, file: str, reason: str) -> None:
    """Write down that a file was left out; of very many the newest are known."""
    make_folder(folder)
    path = folder / _FILES
    line: dict[str, Any] = {"file": file, "reason": reason}
    if path.exists() and path.stat().st_size > _MOST_LIST_BYTES:
        path.replace(folder / "files.1.jsonl")
    GrowingFile(path, goes_on=True).append(f"{json_text(line)}\n".encode())


def _make_room(folder: Path, *, spared: str) -> None:
    found = []
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.endswith(".parquet"):
                about = entry.stat()
                found.append((about.st_mtime_ns, entry.name, about.st_size))
    num_files, num_bytes = len(found), sum(size for _, _, size in found)
    for _, name, size in sorted(found):
        if num_files <= MOST_FILES and num_bytes <= MOST_BYTES:
            return
        if name != spared:
            (folder / name).unlink(missing_ok=True)
            num_files, num_bytes = num_files - 1, num_bytes - size
