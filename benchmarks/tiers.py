"""Measure a table of which a tenth is in memory: one JSON line for each figure.

    python benchmarks/tiers.py --path /ssd            # 2 million rows
    python benchmarks/tiers.py --quick                # small: see that it runs
    python benchmarks/tiers.py --path /ssd --cuts     # cuts and restoring, instead
    python benchmarks/tiers.py --path /ssd --rows 100000000 --memory 4000000000
                                                      # so many rows in so much memory, instead

The same Zipf batches are pulled from and applied to a table in memory, a table with tiers and,
where `rocksdict` can be imported, RocksDB with the same budget, in turns. The disk's random reads
are measured in the same run. What each line means: docs/performance.md.
"""

import argparse
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from bench.keys import Size, keys_of, zipf
from bench.lines import MEGA, Times, emit
from bench.many_rows import measure_many_rows
from bench.rocks import RocksTable
from bench.tier_cuts import measure_cuts
from embedding import Adam, EmbeddingVariable, TableEntries, TableSpec, Tiers, step_scalars
from embedding.kernels.disk_reads import read_records
from embedding.table.tier_file import TierFile, layout_of

_FILL = 1 << 18  # rows
_READ = 1 << 14  # blocks of a measurement of the disk


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=2_000_000, help="default: %(default)s")
    parser.add_argument("--dim", type=int, default=16, help="default: %(default)s")
    parser.add_argument(
        "--batch", type=int, default=53_248, help="keys before duplicates go (%(default)s)"
    )
    parser.add_argument("--times", type=float, default=10, help="rows over budget (%(default)s)")
    parser.add_argument("--warm", type=int, default=60, help="batches before (%(default)s)")
    parser.add_argument("--batches", type=int, default=60, help="measured (%(default)s)")
    parser.add_argument("--seed", type=int, default=7, help="default: %(default)s")
    parser.add_argument("--path", default=tempfile.gettempdir(), help="folder on the disk")
    parser.add_argument("--without-rocksdb", action="store_true")
    parser.add_argument("--cuts", action="store_true", help="measure cuts, and restoring them")
    parser.add_argument("--memory", type=int, metavar="BYTES",
                        help="of a table with all of its rows, which is made by applies, pulled,"
                        " cut and restored")  # fmt: skip
    parser.add_argument("--repeats", type=int, default=3, help="of each cut (%(default)s)")
    parser.add_argument("--seconds", type=float, default=20.0,
                        help="of training with a cut, and without (%(default)s)")  # fmt: skip
    parser.add_argument("--quick", action="store_true", help="small sizes: see that it runs")
    arguments = parser.parse_args(argv)
    if arguments.quick:
        parser.set_defaults(rows=20_000, batch=2_000, warm=3, batches=3, repeats=1, seconds=0.3)
        arguments = parser.parse_args(argv)
    for name in ("rows", "dim", "batch", "batches", "repeats"):
        if getattr(arguments, name) < 1:
            parser.error(f"--{name} must be >= 1, got {getattr(arguments, name)}")
    if not arguments.seconds > 0:
        parser.error(f"--seconds must be > 0, got {arguments.seconds}")
    if arguments.times <= 1:
        parser.error(f"--times must be > 1, got {arguments.times}")
    if arguments.memory is not None and arguments.cuts:
        parser.error("--memory and --cuts are two measurements: give one of them")
    if not Path(arguments.path).is_dir():
        parser.error(f"--path must be a folder, got {arguments.path!r}")
    return arguments


class Timed:
    """A store of rows, and how long each batch took it."""

    def __init__(self, name: str, pull: Callable[..., Any], apply: Callable[..., Any]) -> None:
        self.name, self._pull, self._apply = name, pull, apply
        self.pulls, self.applies = Times(), Times()

    def run(self, keys: np.ndarray, step: int, *, counts: bool) -> None:
        """Pull keys, then apply gradients to them."""
        pulls, applies = (self.pulls, self.applies) if counts else (Times(), Times())
        pulls.add(lambda: self._pull(keys))
        applies.add(lambda: self._apply(keys, step))

    @property
    def seconds(self) -> tuple[float, float]:
        """Of a pull and of an apply, the median."""
        return median(self.pulls.wall), median(self.applies.wall)


def table_of(spec: TableSpec, batch: int, tiers: Tiers | None) -> tuple[EmbeddingVariable, Timed]:
    """Return a table, with or without tiers, and what works on it."""
    table = EmbeddingVariable(spec, tiers=tiers)
    values, admitted = np.empty((batch, spec.dim), np.float32), np.empty(batch, np.uint8)
    gradients, counts = np.full((batch, spec.dim), 0.01, np.float32), np.ones(batch, np.int64)
    once = np.ones(batch, np.uint32)

    def pull(keys: np.ndarray) -> None:
        table.pull(keys, once[: keys.size], values[: keys.size], admitted[: keys.size])

    def apply(keys: np.ndarray, step: int) -> None:
        n = keys.size
        scalars = step_scalars(spec.optimizer, learning_rate=0.01, step=step)
        table.apply(keys, counts[:n], gradients[:n], None, step=step, scale=0.5, scalars=scalars)

    return table, Timed("memory" if tiers is None else "tiers", pull, apply)


def fill(arguments: argparse.Namespace, spec: TableSpec, stores: Sequence[Any]) -> None:
    """Put all rows into every store."""
    slots = TableEntries.empty(spec).slots.shape[1]
    rng = np.random.default_rng(arguments.seed)
    for start in range(0, arguments.rows, _FILL):
        numbers = np.arange(start, min(start + _FILL, arguments.rows))
        entries = TableEntries(
            keys=keys_of(numbers),
            frequency=np.zeros(numbers.size, np.int64),
            version=np.zeros(numbers.size, np.int64),
            vectors=rng.random((numbers.size, spec.dim), np.float32),
            slots=rng.random((numbers.size, slots), np.float32),
        )
        for store in stores:
            store.import_rows(entries)


def disk_reads(path: str, width: int, rows: int, seed: int) -> float:
    """Return random reads a second of blocks of 4 KiB, as many under way as tiers have."""
    layout = layout_of(width)
    file = TierFile(path, width, segment_bytes=1 << 20, name="the disk")
    file.make_room(rows)
    files, blocks = file.files, file.nbytes // (4 * layout.block_words)
    buffer = memoryview(file.arrays.buffers[0]).cast("B")
    buffer[:] = np.random.default_rng(seed).bytes(len(buffer))
    for segment in range(file.num_segments):
        os.pwrite(int(files.files[segment]), buffer, int(files.offsets[segment]))
    rng, rates = np.random.default_rng(seed), []
    records = np.empty((min(_READ, blocks), width), np.float32)
    for _ in range(3):
        numbers = rng.choice(blocks, len(records), replace=False) * layout.per_block
        times = Times()
        times.add(lambda n=numbers: read_records(files, layout, n, records))  # type: ignore[misc]
        rates.append(len(records) / times.wall[0])
    return max(rates)


def main(argv: list[str] | None = None) -> int:
    arguments = parse(argv)
    if arguments.memory is not None:
        with tempfile.TemporaryDirectory(prefix="tiers-", dir=arguments.path) as folder:
            try:
                measure_many_rows(arguments.rows, arguments.dim, arguments.memory, arguments.path,
                                  Path(folder) / "full", batch=arguments.batch,
                                  batches=arguments.batches)  # fmt: skip
            except ValueError as error:
                print(error, file=sys.stderr)
                return 2
        return 0
    # Adam, whose rows have the vector and two slots.
    spec = TableSpec(name="bench", dim=arguments.dim, optimizer=Adam(), track_usage=False)
    row_bytes = 4 * 3 * arguments.dim
    budget = max(int(arguments.rows * row_bytes / arguments.times), 1 << 17)
    tiers = Tiers(memory_bytes=budget, path=arguments.path)
    if arguments.cuts:
        with tempfile.TemporaryDirectory(prefix="tiers-", dir=arguments.path) as cuts:
            measure_cuts(arguments.rows, arguments.dim, tiers, Path(cuts),
                         repeats=arguments.repeats, seconds=arguments.seconds)  # fmt: skip
        return 0
    limit = disk_reads(arguments.path, 3 * arguments.dim, arguments.rows, arguments.seed)
    emit("disk random reads of 4 KiB", limit, "reads/s", under_way=256)
    in_memory, memory = table_of(spec, arguments.batch, None)
    tiered, tier = table_of(spec, arguments.batch, tiers)
    stores: list[Any] = [in_memory, tiered]
    timed = [memory, tier]
    folder = tempfile.mkdtemp(prefix="tiers-", dir=arguments.path)
    try:
        if not arguments.without_rocksdb and find_spec("rocksdict") is not None:
            rocks = RocksTable(folder, spec, budget)
            stores.append(rocks)
            timed.append(Timed("RocksDB", rocks.pull, rocks.apply))
        fill(arguments, spec, stores)
        measure(arguments, tiered, timed, limit, row_bytes)
        _emit_memory(in_memory, tiered, budget)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return 0


def measure(
    arguments: argparse.Namespace,
    tiered: EmbeddingVariable,
    timed: list[Timed],
    limit: float,
    row_bytes: int,
) -> None:
    """Work on all stores in turns, and print what it took them."""
    size = Size(arguments.rows, arguments.dim, arguments.batch, 1, arguments.seed)
    batches = [keys_of(np.unique(b)) for b in zipf(size, arguments.warm + arguments.batches)]
    reads, keys, misses = [], [], []
    for step, batch in enumerate(batches):
        counts = step >= arguments.warm
        for each in timed:
            before = tiered.tiers()
            each.run(batch, step, counts=counts)
            after = tiered.tiers()
            assert before is not None
            assert after is not None
            if counts and each.name == "tiers":
                reads.append(after.reads - before.reads)
                misses.append((after.reads + after.cached) - (before.reads + before.cached))
                keys.append(batch.size)
    (pull, apply), of_keys = timed[0].seconds, median(keys)
    for each in timed:
        seconds = each.seconds
        for name, times, own, base in (
            ("pull", each.pulls, seconds[0], pull),
            ("apply", each.applies, seconds[1], apply),
        ):
            emit(
                f"{each.name} {name}",
                of_keys / own / MEGA,
                "M keys/s",
                of_memory=base / own,
                milliseconds=1e3 * own,
                cpu_milliseconds=1e3 * median(times.cpu),
            )
        emit(
            f"{each.name} pull and apply",
            of_keys / sum(seconds) / MEGA,
            "M keys/s",
            of_memory=(pull + apply) / sum(seconds),
            keys=of_keys,
        )
    bound = median(reads) / limit
    emit(
        "tiers pull of what the disk allows",
        bound / timed[1].seconds[0],
        "",
        target=0.8,
        reads=median(reads),
        reads_of_keys=median(reads) / of_keys,
        row_bytes=row_bytes,
    )
    if len(timed) > 2:
        rocks = sum(timed[2].seconds) / sum(timed[1].seconds)
        emit("tiers over RocksDB, pull and apply", rocks, "", target=2)


def _emit_memory(in_memory: EmbeddingVariable, tiered: EmbeddingVariable, budget: int) -> None:
    figures = tiered.tiers()
    assert figures is not None
    for name, table in (("memory", in_memory), ("tiers", tiered)):
        memory = table.memory()
        emit(
            f"{name} memory",
            memory["total"] / len(table),
            "bytes/row",
            values=memory["rows"] / len(table),
            index=memory["index"] / len(table),
        )
    emit(
        "tiers disk",
        figures.disk_bytes / max(figures.disk_rows, 1),
        "bytes/row on disk",
        memory_rows=figures.memory_rows,
        disk_rows=figures.disk_rows,
        budget=budget,
        memory_bytes=figures.memory_bytes,
    )


if __name__ == "__main__":
    raise SystemExit(main())
