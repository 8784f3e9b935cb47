"""Figures of a table that grows from nothing: insertion, the worst batch, memory of a row."""

from dataclasses import replace
from itertools import cycle
from pathlib import Path
from resource import getpagesize

import numpy as np
import numpy.typing as npt

from bench.keys import Size, in_order, uniform
from bench.lines import MEGA, Times, emit, emit_rate
from bench.tables import Setting, Table, key_batches, new_keys

Float64Array = npt.NDArray[np.float64]

_NEIGHBOURS = 8  # batches on either side whose median is a batch's usual time


def insert(setting: Setting) -> None:
    """New keys into an empty table, up to all rows: with drawn and with constant initial values.

    The first figure's runs give the worst batch, too. Each batch counts with its best repeat, so
    that what remains slow is slow at that size and not by chance.
    """
    batches = new_keys(setting.size)
    million_rows = setting.size.rows / MEGA
    for name, zeros in (("insert", False), ("insert_zeros", True)):
        whole, by_repeat = Times(), []
        for _ in range(setting.size.repeats):
            table, times = Table(setting.size, zeros=zeros), Times()
            whole.add(lambda table=table, times=times: table.apply(batches, times))  # type: ignore[misc]
            by_repeat.append(times.wall)
        emit_rate(name, million_rows, whole, "M keys/s", target=8.0)
        if not zeros:
            whole_batches = np.array(by_repeat)[:, : setting.size.rows // setting.size.batch]
            _emit_growth("growth_worst_batch", whole_batches, 0, setting.size.batch)


def growth(setting: Setting) -> None:
    """The same of batches that bring few new keys, as in training: a quarter of each.

    From half of all rows to all of them an index doubles once, wherever its load makes it.
    """
    size = setting.size
    start, new = size.rows // 2, size.batch // 4
    known = [batch[: size.batch - new] for batch in uniform(replace(size, rows=start))]
    added = in_order(start, (size.rows - start) // new * new, new)
    batches = key_batches([np.concatenate(pair) for pair in zip(cycle(known), added, strict=False)])
    by_repeat = []
    for _ in range(min(size.repeats, 2)):
        table, times = Table(size), Times()
        table.apply(new_keys(replace(size, rows=start)))
        table.apply(batches, times)
        by_repeat.append(times.wall)
    _emit_growth("growth_worst_mixed_batch", np.array(by_repeat), start, new)


def _emit_growth(name: str, full: Float64Array, first: int, new_keys: int) -> None:
    """Print the worst batch and its usual time.

    Args:
        full: float64[repeats, batches], seconds of batches of one size.
        first: rows before the first of them.
        new_keys: how many each brings.
    """
    best = full.min(axis=0)
    usual = np.array([_usual_time(best, i) for i in range(best.size)])
    ratios = best / usual
    worst = int(np.argmax(ratios))
    slowest = np.unravel_index(np.argmax(full), full.shape)
    emit(
        name,
        float(ratios[worst]),
        "times its neighbours",
        limit=None,
        ratio=None,
        target=2.0,
        at_most=True,
        repeats=len(full),
        milliseconds=float(1e3 * best[worst]),
        neighbours_milliseconds=float(1e3 * usual[worst]),
        median_milliseconds=float(1e3 * np.median(best)),
        at_batch=worst,
        at_rows=first + worst * new_keys,
        slowest_milliseconds=float(1e3 * full[slowest]),
        slowest_at_rows=first + int(slowest[1]) * new_keys,
        batches_over_twice=int((ratios > 2).sum()),
    )


def _usual_time(seconds: Float64Array, i: int) -> float:
    around = seconds[max(i - _NEIGHBOURS, 0) : i + _NEIGHBOURS + 1]
    return float(np.median(around))


def memory(setting: Setting) -> None:
    """Bytes of a row with its usage, by the table's count and by what the process grew."""
    for rows in (setting.size.rows // 10, setting.size.rows):
        _emit_memory(replace(setting.size, rows=rows, track_usage=True))


def _emit_memory(size: Size) -> None:
    payload = size.row_bytes
    batches = new_keys(size)
    before = _resident_bytes()
    table = Table(size)
    table.apply(batches)
    grown = _resident_bytes() - before
    parts = {name: part / size.rows for name, part in table.rows.memory().items()}
    emit(
        "memory_per_row",
        parts["total"] / payload,
        "times the payload",
        limit=None,
        ratio=None,
        target=1.35,
        at_most=True,
        rows=size.rows,
        payload_bytes=payload,
        process_bytes_per_row=grown / size.rows,
        **{f"{name}_bytes_per_row": part for name, part in parts.items()},
    )


def _resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * getpagesize()
