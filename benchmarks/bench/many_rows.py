"""So many rows in a table with tiers, in so much memory: made, pulled, cut and restored."""

import os
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from bench.cut_shard import restore, store_of
from bench.disk_speed import forget
from bench.keys import EXPONENT, Int64Array, keys_of
from bench.lines import MEGA, Times, emit
from embedding import EmbeddingVariable, Tiers, step_scalars
from embedding.table.rows import ON_DISK, memory_of
from embedding.table.tiered_values import PLACE_BYTES
from ps.checkpoint.cut import CutWriter
from ps.checkpoint.manifest import Manifest, write_manifest
from ps.checkpoint.placed import is_extent
from ps.messages.records import Freeze
from ps.server.read_write_lock import ReadWriteLock
from ps.shard.shard import Shard
from ps.spec import StoreSpec

_BATCH = 1 << 14  # distinct keys that are pulled at once
_LEAST = 1 << 20  # of memory for values


def measure_many_rows(
    rows: int, dim: int, memory: int, path: str, folder: Path, *, batch: int, batches: int
) -> None:
    """Make rows by applies, pull them, write a full cut and restore it; print what each took.

    Args:
        memory: bytes that the table may have, its index and all else of a row among them.
        path: of the tiers.
        folder: for the checkpoint, on the same disk.
        batch: keys of an apply.
        batches: that are pulled.

    Raises:
        ValueError: that memory does not hold what each row has there.
    """
    of_rows = memory_of(rows, 0, density=ON_DISK) + PLACE_BYTES * rows
    if memory < of_rows + _LEAST:
        raise ValueError(f"--memory must be >= {of_rows + _LEAST} for {rows} rows, got {memory}")
    store = store_of(dim, track_usage=True)
    tiers = Tiers(memory_bytes=memory - of_rows, path=path)
    shard = Shard(store, 0, tiers={"t": tiers})
    shard.initialize(1, dense=np.zeros(store.dense_size, np.float32))
    before = _resident()
    _make(shard.tables[0], rows, batch, before)
    _pull(shard.tables[0], rows, batches)
    _cut(shard, store, folder)
    del shard
    forget(file for file in folder.rglob("*") if file.is_file())
    _restart_peak()
    times, cpu = Times(), time.process_time()
    times.add(lambda: _restored(store, folder, tiers, rows))
    emit("restore by reference", times.wall[0], "s", cpu=time.process_time() - cpu,
         resident_peak=_resident("VmHWM") / MEGA, unit_resident="MB")  # fmt: skip


def _make(table: EmbeddingVariable, rows: int, batch: int, before: int) -> None:
    ones, gradients = np.ones(batch, np.int64), np.full((batch, table.spec.dim), 0.01, np.float32)
    cpu, began = time.process_time(), time.perf_counter()
    for step, start in enumerate(range(0, rows, batch)):
        keys = keys_of(np.arange(start, min(start + batch, rows)))
        n = keys.size
        scalars = step_scalars(table.spec.optimizer, learning_rate=0.01, step=step)
        table.apply(keys, ones[:n], gradients[:n], None, step=step, scale=1.0, scalars=scalars)
    seconds = time.perf_counter() - began
    emit("rows made by applies", rows / seconds / MEGA, "M rows/s", seconds=seconds,
         cpu_ns=1e9 * (time.process_time() - cpu) / rows, load=os.getloadavg()[0])  # fmt: skip
    figures, memory = table.tiers(), table.memory()
    assert figures is not None
    places = PLACE_BYTES * rows
    emit("memory of a row", memory["total"] / rows, "bytes", total=memory["total"] / MEGA,
         keys=memory["keys"] / rows, usage=memory["metadata"] / rows, place=places / rows,
         index=memory["index"] / rows, values_buffers_cache=(memory["rows"] - places) / rows,
         resident=(_resident() - before) / rows, resident_peak=_resident("VmHWM") / MEGA,
         resident_before=before / MEGA, unit_total="MB")  # fmt: skip
    emit("disk of a row", figures.disk_bytes / rows, "bytes", rows_in_memory=figures.memory_rows,
         rows_on_disk=figures.disk_rows, disk=figures.disk_bytes / MEGA,
         written=figures.bytes_written / MEGA, unit_disk="MB")  # fmt: skip


def _pull(table: EmbeddingVariable, rows: int, batches: int) -> None:
    values = np.empty((_BATCH, table.spec.dim), np.float32)
    admitted = np.empty(_BATCH, np.uint8)
    for name, drawn in (("uniform", _uniform(rows)), ("Zipf", _zipf(rows))):
        times, count, before = Times(), 0, table.tiers()
        for _ in range(batches):
            keys = next(drawn)
            n = keys.size
            times.add(lambda k=keys, n=n: table.pull(k, None, values[:n], admitted[:n]))  # type: ignore[misc]
            count += n
        after = table.tiers()
        assert before is not None
        assert after is not None
        emit(f"pull, {name} keys", count / sum(times.wall) / 1e3, "thousand keys/s",
             reads_of_keys=(after.reads - before.reads) / count, cpu_share=times.cpu_share,
             milliseconds=1e3 * float(np.median(times.wall)), keys=count / batches)  # fmt: skip


def _uniform(rows: int) -> Iterator[Int64Array]:
    rng = np.random.default_rng(1)
    while True:
        yield keys_of(np.unique(rng.integers(0, rows, _BATCH)))


def _zipf(rows: int) -> Iterator[Int64Array]:
    rng = np.random.default_rng(2)
    while True:
        ranks = rng.zipf(EXPONENT, 8 * _BATCH)
        yield keys_of(np.unique(ranks[ranks <= rows][:_BATCH] - 1))


def _cut(shard: Shard, store: StoreSpec, folder: Path) -> None:
    lock = ReadWriteLock()
    began = time.perf_counter()
    shard.handle(Freeze(1, 1, 1, shard.step, changed_only=False), "bench")
    frozen, freeze = shard.frozen, time.perf_counter() - began
    assert frozen is not None, "just frozen"
    _restart_peak()
    cpu, began = time.process_time(), time.perf_counter()
    writer = CutWriter(folder, store, 0, locked=lock.shared, changed_only=False, pace=None)
    files = writer.write(frozen.tables, frozen.dense)
    seconds = time.perf_counter() - began
    shard.thaw()
    manifest = Manifest(
        kind="full", step=shard.step, recovery_epoch=1, store=store.to_json(), model={}, job={},
        files=tuple(files), parent=None, sorted=False,
    )  # fmt: skip
    write_manifest(folder, manifest)
    written = sum(each.bytes for each in files if not is_extent(each.path))
    emit("cut by reference", seconds, "s", cpu=time.process_time() - cpu, freeze_ms=1e3 * freeze,
         written=written / MEGA, referred=sum(e.bytes for e in files) / MEGA - written / MEGA,
         resident_peak=_resident("VmHWM") / MEGA, unit_written="MB")  # fmt: skip


def _restored(store: StoreSpec, folder: Path, tiers: Tiers, rows: int) -> None:
    restored = restore(store, folder, tiers)
    if len(restored.tables[0]) != rows:
        raise RuntimeError(f"{len(restored.tables[0])} rows came back of {rows}")


def _resident(what: str = "VmRSS") -> int:
    """Return the bytes that this process has resident, or had at the most: VmHWM."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(what):
            return 1024 * int(line.split()[1])
    return 0


def _restart_peak() -> None:
    Path("/proc/self/clear_refs").write_text("5")
