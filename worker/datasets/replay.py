"""Replay of recorded data: files that appear in a folder one after another, at a steady rate."""

import time
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime

import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import fs as pafs

from runtime.storage import open_filesystem
from worker.data.footers import open_source
from worker.data.planning import find_files

_READ_ROWS = 1 << 16


def replay(
    patterns: Sequence[str],
    to: str,
    *,
    rate: float,
    every_seconds: float = 1.0,
    loops: int = 1,
    time_column: str | None = None,
    on_file: Callable[[str, int], None] = lambda path, rows: None,
    clock: Callable[[], float] = time.time,
    sleep: Callable[[float], None] = time.sleep,
) -> int:
    """Write the rows of files into a folder as if they happened now.

    Each file is `YYYY-MM-DD/HH/part-NANOSECONDS.parquet`, named by the time (UTC) at which it is
    written, and is there whole or not at all.

    Args:
        patterns: files as `data.train` names them, in order.
        to: folder, path or URL.
        rate: rows a second.
        every_seconds: a file is written so often.
        loops: how often the files are read.
        time_column: a column that gets the time at which its row was written, as a timestamp.
        on_file: is told of each file and its rows.
        clock, sleep: seconds since 1970, and what waits.

    Returns:
        How many rows were written.

    Raises:
        StorageError, OSError: a file can't be found, read or written.
    """
    rows_each = max(1, round(rate * every_seconds))
    filesystem, root = open_filesystem(to)
    began, written = clock(), 0
    for table in _tables(patterns, rows_each, loops):
        # A row happens before it is written, at the latest then.
        wait = began + (written + table.num_rows) / rate - clock()
        if wait > 0:
            sleep(wait)
        now = clock()
        if time_column is not None:
            stamp = pa.array([round(now * 1e6)] * table.num_rows, pa.timestamp("us", "UTC"))
            if time_column in table.column_names:
                table = table.drop_columns([time_column])
            table = table.append_column(time_column, stamp)
        path = _write(table, filesystem, root, now)
        written += table.num_rows
        on_file(path, table.num_rows)
    return written


def _tables(patterns: Sequence[str], rows_each: int, loops: int) -> Iterator[pa.Table]:
    """Yield so many rows at a time, across files; what is left at the end too."""
    waiting: list[pa.Table] = []
    num_waiting = 0
    for _ in range(loops):
        for found in find_files(patterns):
            with open_source(found.path) as source, pq.ParquetFile(source) as file:
                for batch in file.iter_batches(batch_size=min(_READ_ROWS, rows_each)):
                    table = pa.Table.from_batches([batch])
                    while num_waiting + table.num_rows >= rows_each:
                        take = rows_each - num_waiting
                        yield pa.concat_tables([*waiting, table.slice(0, take)])
                        table, waiting, num_waiting = table.slice(take), [], 0
                    if table.num_rows:
                        waiting.append(table)
                        num_waiting += table.num_rows
    if waiting:
        yield pa.concat_tables(waiting)


def _write(table: pa.Table, filesystem: pafs.FileSystem, root: str, now: float) -> str:
    folder = f"{root.rstrip('/')}/{datetime.fromtimestamp(now, UTC):%Y-%m-%d/%H}"
    name = f"part-{round(now * 1e9):019d}.parquet"
    filesystem.create_dir(folder, recursive=True)
    # In a store an object is there once it is whole; a file of a disk gets its name then.
    local = isinstance(filesystem, pafs.LocalFileSystem)
    partial = f"{folder}/.{name}" if local else f"{folder}/{name}"
    with filesystem.open_output_stream(partial) as sink:
        pq.write_table(table, sink)
    if local:
        filesystem.move(partial, f"{folder}/{name}")
    return f"{folder}/{name}"
