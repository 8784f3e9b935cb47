"""Figures of frozen tables: the pause, reading beside a copy, and what a step pays meanwhile."""

from collections import deque
from statistics import median

from bench.limits import copying
from bench.lines import GIGA, Times, emit, emit_rate
from bench.tables import Setting, millions
from embedding.table.frozen import FrozenTable

_ROWS_AT_ONCE = 65_536
_BATCHES = 16  # of rows that are copied as they change; they are kept until the next freeze


def freeze(setting: Setting) -> None:
    """Freeze all rows, read them, and apply while they are frozen and while they are not."""
    size, table, batches = setting.size, setting.resident, setting.uniform[:_BATCHES]
    num_bytes = size.rows * size.row_bytes
    copy, _ = copying(num_bytes)
    copy()
    pauses, copies, reads, plain, copying_first = (Times() for _ in range(5))
    for _ in range(size.repeats):
        frozen: list[FrozenTable] = []
        pauses.add(lambda frozen=frozen: frozen.append(table.rows.freeze(changed_only=False)))  # type: ignore[misc]
        copies.add(copy)
        pieces = frozen[0].rows(_ROWS_AT_ONCE)
        reads.add(lambda pieces=pieces: deque(pieces, maxlen=0))  # type: ignore[misc]
        plain.add(lambda: table.apply(batches))
        again = table.rows.freeze(changed_only=False)
        copying_first.add(lambda: table.apply(batches))
        again.close()
    emit(
        "freeze_pause",
        1e3 * median(pauses.wall),
        "ms",
        limit=None,
        ratio=None,
        target=10,
        at_most=True,
        rows=size.rows,
    )
    emit_rate(
        "read_frozen",
        num_bytes / GIGA,
        reads,
        "GB/s",
        limit=copies,
        limit_name="limit_memcpy",
        target=0.5,
        bytes=num_bytes,
    )
    emit_rate(
        "apply_frozen",
        millions(batches),
        copying_first,
        "M keys/s",
        times_as_long_as_apply=median(copying_first.cpu) / median(plain.cpu),
    )
