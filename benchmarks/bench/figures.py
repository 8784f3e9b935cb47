"""Figures of a table whose size stays: limits, pulls, updates, two threads."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from statistics import median

from bench.keys import Int64Array
from bench.limits import BareIndex, BareRows, copying
from bench.lines import GIGA, alternate, emit, emit_rate
from bench.tables import Setting, Table, key_batches, millions, new_keys

Batches = list[Int64Array]


def limits(setting: Setting) -> None:
    """The machine alone. Figures measure their limit again, in turns with themselves."""
    size = setting.size
    num_bytes = size.rows * size.row_bytes
    touched, new = alternate(size.repeats, *copying(num_bytes))
    emit_rate("limit_memcpy", num_bytes / GIGA, touched, "GB/s", bytes=num_bytes)
    emit_rate("limit_memcpy_new_memory", num_bytes / GIGA, new, "GB/s", bytes=num_bytes)
    gather, update = setting.bare.gather, setting.bare.read_modify_write
    index = BareIndex(size)
    runs: list[tuple[str, Callable[[Batches], None], Batches]] = [
        ("limit_gather_uniform", gather, setting.uniform),
        ("limit_gather_zipf", gather, setting.zipf),
        ("limit_gather_zipf_deduplicated", gather, _distinct(setting)),
        ("limit_line_uniform", index.read_lines, setting.uniform),
        ("limit_count_uniform", index.count, setting.uniform),
        ("limit_read_modify_write_uniform", update, setting.uniform),
        ("limit_read_modify_write_zipf_deduplicated", update, _distinct(setting)),
    ]
    for name, run, batches in runs:
        (times,) = alternate(size.repeats, partial(run, batches))
        emit_rate(name, millions(batches), times, "M rows/s")


def pull(setting: Setting) -> None:
    """Pulls of keys that have rows, and of keys that have none."""
    table, gather = setting.resident, setting.bare.gather
    cases: list[tuple[str, Batches, float | None]] = [
        ("uniform", setting.uniform, 0.5),
        ("zipf", setting.zipf, 0.6),
        ("zipf_deduplicated", _distinct(setting), None),
    ]
    for name, numbers, target in cases:
        _beside_limit(
            setting, f"pull_{name}", table.pull, gather, numbers, f"limit_gather_{name}", target
        )
    unknown = new_keys(setting.size, first=setting.size.rows)
    (times,) = alternate(setting.size.repeats, partial(table.pull, unknown))
    emit_rate("pull_unknown", millions(unknown), times, "M keys/s")


def apply(setting: Setting) -> None:
    """Adagrad on distinct keys that have rows."""
    table, update = setting.resident, setting.bare.read_modify_write
    cases: list[tuple[str, Batches, float | None]] = [
        ("uniform", setting.uniform, 0.5),
        ("zipf_deduplicated", _distinct(setting), None),
    ]
    for name, numbers, target in cases:
        limit_name = f"limit_read_modify_write_{name}"
        _beside_limit(setting, f"apply_{name}", table.apply, update, numbers, limit_name, target)


def _distinct(setting: Setting) -> Batches:
    return [batch.keys for batch in setting.zipf_deduplicated]


def _beside_limit(
    setting: Setting,
    name: str,
    run: Callable[[Batches], None],
    limit: Callable[[Batches], None],
    numbers: Batches,
    limit_name: str,
    target: float | None,
) -> None:
    """Print the rate of a run over keys beside that of the limit over their row numbers."""
    runs = partial(run, key_batches(numbers)), partial(limit, numbers)
    times, limit_times = alternate(setting.size.repeats, *runs)
    emit_rate(
        name,
        millions(numbers),
        times,
        "M keys/s",
        limit=limit_times,
        limit_name=limit_name,
        target=target,
        batches=len(numbers),
        keys_per_batch=round(1e6 * millions(numbers) / len(numbers)),
    )


def threads(setting: Setting) -> None:
    """Two threads on two tables against one thread on one of them."""
    size = setting.size
    first, second = setting.resident, Table(size, name="second")
    second.apply(new_keys(size))
    bare = setting.bare, BareRows(size)
    keys = key_batches(setting.uniform)
    cases = [
        ("pull", (first.pull, second.pull), (bare[0].gather, bare[1].gather)),
        (
            "apply",
            (first.apply, second.apply),
            (bare[0].read_modify_write, bare[1].read_modify_write),
        ),
    ]
    with ThreadPoolExecutor(2) as pool:
        for name, calls, limits in cases:

            def both(runs: tuple[Callable[[Batches], None], ...], batches: Batches) -> None:
                list(pool.map(lambda run: run(batches), runs))

            alone, together, bare_alone, bare_together = alternate(
                size.repeats,
                partial(calls[0], keys),
                partial(both, calls, keys),
                partial(limits[0], setting.uniform),
                partial(both, limits, setting.uniform),
            )
            speedups = [2 * a / b for a, b in zip(alone.wall, together.wall, strict=True)]
            emit(
                f"threads_{name}",
                2 * median(alone.wall) / median(together.wall),
                "times one thread",
                limit=None,
                ratio=None,
                target=1.8,
                repeats=size.repeats,
                min=min(speedups),
                max=max(speedups),
                bare_rows=2 * median(bare_alone.wall) / median(bare_together.wall),
                keys_per_second=2e6 * millions(keys) / median(together.wall),
            )
