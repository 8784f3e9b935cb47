"""Replay of recorded data: its rows happen once more, one after another, at a steady rate."""

import time
from collections.abc import Callable, Iterator, Sequence

import pyarrow as pa
import pyarrow.parquet as pq

from worker.data.footers import open_source
from worker.data.planning import find_files
from worker.datasets.delayed_labels import DelayedLabels, LabelDelay
from worker.datasets.targets import Target

_READ_ROWS = 1 << 16


def replay(
    patterns: Sequence[str],
    to: Target,
    *,
    rate: float,
    every_seconds: float = 1.0,
    loops: int = 1,
    time_column: str | None = None,
    number_column: str | None = None,
    labels_to: Target | None = None,
    label_delay: LabelDelay | None = None,
    on_part: Callable[[str, int], None] = lambda place, rows: None,
    clock: Callable[[], float] = time.time,
    sleep: Callable[[float], None] = time.sleep,
) -> int:
    """Write the rows of files as if they happened now.

    Args:
        patterns: files as `data.train` names them, in order.
        to: where to; it is closed at the end.
        rate: rows a second.
        every_seconds: a part is written so often.
        loops: how often the files are read.
        time_column: a column that gets the time at which its row was written, as a timestamp.
        number_column: a column that gets a number that no other row has, of whatever replay, int64.
        labels_to: where the labels of positives go, once they are due; closed at the end. None:
            rows keep them.
        label_delay: when they are due.
        on_part: is told where each part went, and its rows.
        clock, sleep: seconds since 1970, and what waits.

    Returns:
        How many rows were written, without labels.

    Raises:
        ValueError: rows have no label that could be told.
        StorageError, OSError: a file can't be found, read or written.
    """
    rows_each = max(1, round(rate * every_seconds))
    began, written = clock(), 0
    labels = None if labels_to is None else DelayedLabels(label_delay or LabelDelay())

    def tell_labels(now: float) -> None:
        found = None if labels is None else labels.due(now)
        if labels_to is not None and found is not None:
            on_part(labels_to.write(found, now), found.num_rows)

    for table in _tables(patterns, rows_each, loops):
        # A row happens before it is written, at the latest then.
        wait = began + (written + table.num_rows) / rate - clock()
        if wait > 0:
            sleep(wait)
        now = clock()
        if time_column is not None:
            stamp = pa.array([round(now * 1e6)] * table.num_rows, pa.timestamp("us", "UTC"))
            table = _with_column(table, time_column, stamp)
        numbered = [] if number_column is None else [number_column]
        if labels is not None and labels.key not in (*table.column_names, *numbered):
            numbered.append(labels.key)
        for name in numbered:
            # Nanoseconds since 1970: nobody replays a row in each.
            first = round(began * 1e6) * 1000 + written
            numbers = pa.array(range(first, first + table.num_rows), pa.int64())
            table = _with_column(table, name, numbers)
        if labels is not None:
            table = labels.split(table, now)
        place = to.write(table, now)
        written += table.num_rows
        on_part(place, table.num_rows)
        tell_labels(now)
    to.close()
    while labels is not None and (due := labels.next_due) is not None:
        sleep(max(due - clock(), every_seconds))
        tell_labels(clock())
    if labels_to is not None:
        labels_to.close()
    return written


def _with_column(table: pa.Table, name: str, values: pa.Array) -> pa.Table:
    if name in table.column_names:
        table = table.drop_columns([name])
    return table.append_column(name, values)


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
