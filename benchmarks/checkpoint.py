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
from collections import defaultdict
from pathlib import Path
from statistics import median

import numpy as np

from bench.beside_checkpoints import beside
from bench.command_line import finish
from bench.cut_shard import CutShard, Training, restore, store_of
from bench.disk_speed import forget, read_seconds, write_seconds
from bench.lines import MEGA, emit
from ps.checkpoint.pace import SHARE_OF_INTERVAL

EVERY_SECONDS = 600  # of a job that is not told otherwise


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", default="1_000_000,10_000_000", help="default: %(default)s")
    parser.add_argument("--dim", type=int, default=16, help="default: %(default)s")
    parser.add_argument("--track-usage", action="store_true", help="with frequency and version")
    parser.add_argument("--repeats", type=int, default=3, help="default: %(default)s")
    parser.add_argument("--seconds", type=float, default=10.0,
                        help="of training with a cut, and without (%(default)s)")  # fmt: skip
    parser.add_argument("--folder", type=Path, help="where files are written (the temporary one)")
    parser.add_argument("--quick", action="store_true", help="small sizes: see that it runs")
    arguments = parser.parse_args(argv)
    if arguments.quick:
        parser.set_defaults(rows="20_000", repeats=1, seconds=0.3)
        arguments = parser.parse_args(argv)
    arguments.rows = [int(rows) for rows in arguments.rows.split(",")]
    if min(arguments.rows) < 1000 or arguments.repeats < 1 or arguments.dim < 1:
        parser.error("--rows must be >= 1000, --repeats and --dim >= 1")
    if not arguments.seconds > 0:
        parser.error("--seconds must be > 0")
    return arguments


def measure(rows: int, folder: Path, arguments: argparse.Namespace) -> None:
    """Print all figures of a shard of so many rows."""
    store = store_of(arguments.dim, track_usage=arguments.track_usage)
    cut = CutShard(store, rows)
    cut.hammer(_after(0.5))  # kernels are loaded
    found: dict[str, list[float]] = defaultdict(list)
    training: dict[str, list[Training]] = defaultdict(list)
    for number in range(arguments.repeats + 1):
        path = folder / f"full-{number}"
        found["freeze"].append(cut.freeze(changed_only=False))
        before = time.process_time()
        began = time.perf_counter()
        files = cut.write(path, changed_only=False)
        found["cut"].append(time.perf_counter() - began)
        found["cut_cpu"].append(time.process_time() - before)
        parent = cut.finish(path, files)
        num_bytes = sum(entry.bytes for entry in files)
        # Memory that a virtual machine has not had before comes at .4 GB/s here: had before both.
        restore(store, path)
        found["disk_write"].append(write_seconds(folder / "disk", num_bytes))
        found["disk_read"].append(read_seconds(folder / "disk", num_bytes))
        forget(file for file in path.rglob("*") if file.is_file())
        began = time.perf_counter()
        restored = restore(store, path)
        found["restore"].append(time.perf_counter() - began)
        if len(restored.tables[0]) != rows:
            raise RuntimeError(f"{len(restored.tables[0])} rows came back of {rows}")
        del restored
        training["quiet"].append(cut.train(arguments.seconds))
        cut.freeze(changed_only=False)
        spread = EVERY_SECONDS * SHARE_OF_INTERVAL
        busy = cut.train_while_writing(folder / "busy", arguments.seconds, spread)
        training["busy"].append(busy)
        training["quiet_hammer"].append(cut.hammer(_after(min(3.0, 2 * found["cut"][-1]))))
        cut.freeze(changed_only=False)
        hammer, took = cut.hammer_while_writing(folder / "busy")
        training["busy_hammer"].append(hammer)
        found["cut_hammered"].append(took)
        shutil.rmtree(folder / "busy")
        if number < arguments.repeats:
            shutil.rmtree(path)
        if number == 0:  # first touches of files and kernels
            found.clear()
            training.clear()
    size = {"rows": rows, "bytes": num_bytes, "repeats": arguments.repeats}
    times = {name: median(seconds) for name, seconds in found.items()}
    rates = {name: num_bytes / seconds / MEGA for name, seconds in times.items()}
    emit("disk_write", rates["disk_write"], "MB/s", **size)
    emit("disk_read", rates["disk_read"], "MB/s", **size)
    emit("freeze", 1e3 * times["freeze"], "ms", **size)
    emit("cut_write", rates["cut"], "MB/s", of_disk=rates["cut"] / rates["disk_write"],
         target=0.6, cpu_ns_a_byte=1e9 * times["cut_cpu"] / num_bytes, **size)  # fmt: skip
    emit("cut_write_hammered", rates["cut_hammered"], "MB/s",
         of_disk=rates["cut_hammered"] / rates["disk_write"], **size)  # fmt: skip
    emit("restore", rates["restore"], "MB/s", of_disk=rates["restore"] / rates["disk_read"],
         target=0.6, **size)  # fmt: skip
    _emit_training("training", training["quiet"], training["busy"], size, target=0.05)
    _emit_training("hammer", training["quiet_hammer"], training["busy_hammer"], size)
    _measure_delta(cut, folder, parent, rows)
    beside(folder, rows, 2 * arguments.dim)


def _emit_training(
    name: str,
    quiet: list[Training],
    busy: list[Training],
    size: dict[str, int],
    target: float | None = None,
) -> None:
    slower = [q.rate / b.rate - 1 for q, b in zip(quiet, busy, strict=True)]
    by_cpu = [b.cpu_of_step / q.cpu_of_step - 1 for q, b in zip(quiet, busy, strict=True)]
    emit(f"{name}_slower", median(slower), "of its rate", target=target, at_most=True,
         min=min(slower), max=max(slower), by_cpu=median(by_cpu),
         steps_a_second=median(q.rate for q in quiet), **size)  # fmt: skip
    usual = median(pull for one in quiet for pull in one.pulls)
    for which, share in (("longest", 100), ("p99", 99)):
        of_quiet, of_busy = (
            float(np.percentile([pull for one in all_of for pull in one.pulls], share))
            for all_of in (quiet, busy)
        )
        emit(f"{name}_{which}_pull", of_busy / of_quiet, "of the same without a cut",
             target=None if target is None else 2.0, at_most=True, ms=1e3 * of_busy,
             usual_ms=1e3 * usual, **size)  # fmt: skip


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
