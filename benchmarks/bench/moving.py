"""Figures of whole tables: export, import, eviction."""

from dataclasses import replace
from statistics import median

from bench.limits import copying
from bench.lines import GIGA, MEGA, Times, emit_rate
from bench.tables import Setting, Table, new_keys
from embedding import TableEntries


def transfer(setting: Setting) -> None:
    """Export of all rows and import into an empty table, beside copies of as many bytes."""
    size, source = setting.size, setting.resident.rows
    num_bytes = size.rows * size.row_bytes
    copy, copy_new = copying(num_bytes)
    copy()
    copies, new_copies, exports, imports = Times(), Times(), Times(), Times()
    entries: list[TableEntries] = []
    for _ in range(size.repeats):
        copies.add(copy)
        new_copies.add(copy_new)
        entries.clear()
        exports.add(lambda: entries.append(source.export()))
        target = Table(size)
        imports.add(lambda target=target: target.rows.import_rows(entries[0]))  # type: ignore[misc]
    for name, times in (("export", exports), ("import", imports)):
        emit_rate(
            name,
            num_bytes / GIGA,
            times,
            "GB/s",
            limit=copies,
            limit_name="limit_memcpy",
            target=0.5,
            bytes=num_bytes,
            copy_into_new_memory=num_bytes / GIGA / median(new_copies.wall),
        )


def evict(setting: Setting) -> None:
    """Looking through all rows where none is old, and where the oldest tenth goes each time."""
    size = replace(setting.size, track_usage=True)
    table = Table(size)
    batches = new_keys(size)
    table.apply(batches)  # a step for each batch, so a tenth of the batches is a tenth of the rows
    nothing, tenth = Times(), Times()
    looked_at = 0
    for repeat in range(1, size.repeats + 1):
        looked_at += len(table.rows)
        nothing.add(lambda: table.rows.evict(0))
        min_version = 1 + round(repeat * len(batches) / max(10, size.repeats))
        tenth.add(lambda version=min_version: table.rows.evict(version))  # type: ignore[misc]
    rows = looked_at / size.repeats / MEGA
    emit_rate("evict_nothing", rows, nothing, "M rows/s looked at")
    emit_rate(
        "evict_tenth",
        rows,
        tenth,
        "M rows/s looked at",
        removed=table.rows.num_evicted // size.repeats,
    )
