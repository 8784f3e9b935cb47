"""Measure cuts against the disk: one JSON line a figure.

    python benchmarks/checkpoint.py                    # 1 and 10 million rows of dim 16
    python benchmarks/checkpoint.py --rows 1_000_000 --folder /mnt/disk
    python benchmarks/checkpoint.py --quick            # small: see that it runs

One shard in this process, of one table with Adagrad. The disk's own speed is measured in the same
run with a file as large, flushed, and read again after the page cache has let it go. What each
line means: docs/performance.md.
"""

import argparse
import os
import shutil
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

import numpy as np

from bench.beside_checkpoints import beside
from bench.command_line import finish
from bench.cut_shard import CutShard, Pace, restore, store_of
from bench.disk_speed import forget, read_seconds, write_seconds
from bench.lines import MEGA, emit

_QUIET_SECONDS = 3.0


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", default="1_000_000,10_000_000", help="default: %(default)s")
    parser.add_argument("--dim", type=int, default=16, help="default: %(default)s")
    parser.add_argument("--track-usage", action="store_true", help="with frequency and version")
    parser.add_argument("--repeats", type=int, default=3, help="default: %(default)s")
    parser.add_argument("--folder", type=Path, help="where files are written (the temporary one)")
    parser.add_argument("--quick", action="store_true", help="small sizes: see that it runs")
    arguments = parser.parse_args(argv)
    if arguments.quick:
        parser.set_defaults(rows="20_000", repeats=1)
        arguments = parser.parse_args(argv)
    arguments.rows = [int(rows) for rows in arguments.rows.split(",")]
    if min(arguments.rows) < 1000 or arguments.repeats < 1 or arguments.dim < 1:
        parser.error("--rows must be >= 1000, --repeats and --dim >= 1")
    return arguments


def measure(rows: int, folder: Path, arguments: argparse.Namespace) -> None:
    """Print all figures of a shard of so many rows."""
    store = store_of(arguments.dim, track_usage=arguments.track_usage)
    cut = CutShard(store, rows)
    cut.train(_after(0.5))  # kernels are loaded
    quiet, busy, own_writes, own_reads, alone, beside_training, reads = ([] for _ in range(7))
    held, cpu = [], []
    for number in range(arguments.repeats + 1):
        path = folder / f"full-{number}"
        held.append(cut.freeze(changed_only=False))
        before = time.process_time()
        began = time.perf_counter()
        files = cut.write(path, changed_only=False)
        alone.append(time.perf_counter() - began)
        cpu.append(time.process_time() - before)
        parent = cut.finish(path, files)
        num_bytes = sum(entry.bytes for entry in files)
        own_writes.append(write_seconds(folder / "disk", num_bytes))
        own_reads.append(read_seconds(folder / "disk"))
        forget(file for file in path.rglob("*") if file.is_file())
        began = time.perf_counter()
        found = restore(store, path)
        reads.append(time.perf_counter() - began)
        if len(found.tables[0]) != rows:
            raise RuntimeError(f"{len(found.tables[0])} rows came back of {rows}")
        del found
        quiet.append(cut.train(_after(min(_QUIET_SECONDS, 2 * alone[-1]))))
        cut.freeze(changed_only=False)
        pace, took = cut.train_while(lambda: cut.write(folder / "busy", changed_only=False))
        busy.append(pace)
        beside_training.append(took)
        shutil.rmtree(folder / "busy")
        if number < arguments.repeats:
            shutil.rmtree(path)
        if number == 0:  # first touches of files and kernels
            for times in (quiet, busy, own_writes, own_reads, alone, beside_training, reads, held,
                          cpu):  # fmt: skip
                times.clear()
    size = {"rows": rows, "bytes": num_bytes, "repeats": arguments.repeats}
    own_write, own_read = median(own_writes), median(own_reads)
    emit("disk_write", num_bytes / own_write / MEGA, "MB/s", **size)
    emit("disk_read", num_bytes / own_read / MEGA, "MB/s", **size)
    emit("freeze", 1e3 * median(held), "ms", **size)
    emit("cut_write", num_bytes / median(alone) / MEGA, "MB/s", of_disk=own_write / median(alone),
         target=0.6, cpu_s=median(cpu), **size)  # fmt: skip
    emit("cut_write_while_training", num_bytes / median(beside_training) / MEGA, "MB/s",
         of_disk=own_write / median(beside_training), **size)  # fmt: skip
    emit("restore", num_bytes / median(reads) / MEGA, "MB/s", of_disk=own_read / median(reads),
         target=0.6, **size)  # fmt: skip
    _emit_training(quiet, busy, size)
    _measure_delta(cut, folder, parent, rows)
    beside(folder, rows, 2 * arguments.dim)


def _emit_training(quiet: list[Pace], busy: list[Pace], size: dict[str, int]) -> None:
    slower = [q.rate / b.rate - 1 for q, b in zip(quiet, busy, strict=True)]
    emit("training_slower", median(slower), "of its rate", target=0.05, at_most=True,
         min=min(slower), max=max(slower), **size)  # fmt: skip
    usual = median(pull for pace in quiet for pull in pace.pulls)
    for name, share in (("longest", 100), ("p99", 99)):
        of_quiet, of_busy = (
            float(np.percentile([pull for pace in paces for pull in pace.pulls], share))
            for paces in (quiet, busy)
        )
        emit(f"{name}_pull", of_busy / usual, "of the usual one", target=2.0, at_most=True,
             ms=1e3 * of_busy, usual_ms=1e3 * usual, without_cut=of_quiet / usual,
             **size)  # fmt: skip


def _measure_delta(cut: CutShard, folder: Path, parent, rows: int) -> None:  # type: ignore[no-untyped-def]
    """Print what a delta takes of which some rows have changed, and a restore of the chain."""
    rng = np.random.default_rng(1)
    cut.freeze(changed_only=True)
    cut.shard.thaw()
    for share in (0.001, 0.01, 0.1):
        changed = np.unique(rng.integers(0, rows, max(1, int(share * rows))))
        for start in range(0, changed.size, 1 << 16):
            cut.change(changed[start : start + (1 << 16)])
        path = folder / f"delta-{share}"
        cut.freeze(changed_only=True)
        began = time.perf_counter()
        files = cut.write(path, changed_only=True)
        took = time.perf_counter() - began
        parent = cut.finish(path, files, parent)
        num_bytes = sum(e.bytes for e in files if not e.path.startswith("dense/"))
        emit("delta", num_bytes / changed.size, "bytes a changed row", changed=int(changed.size),
             share=share, seconds=took, rows=rows)  # fmt: skip
    began = time.perf_counter()
    restore(cut.store, path)
    emit("restore_chain", time.perf_counter() - began, "s", deltas=3, rows=rows)


def _after(seconds: float):  # type: ignore[no-untyped-def]
    end = time.perf_counter() + seconds
    return lambda: time.perf_counter() >= end


def run(arguments: argparse.Namespace) -> None:
    cores, load = len(os.sched_getaffinity(0)), os.getloadavg()[0]
    emit("machine", None, "", cores=cores, load=load)
    for rows in arguments.rows:
        with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
            measure(rows, Path(folder), arguments)


def main(argv: list[str] | None = None) -> int:
    arguments = parse(argv)
    return finish(lambda: run(arguments))


if __name__ == "__main__":
    sys.exit(main())
