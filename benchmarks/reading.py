"""Measure what a worker's reader costs by the size of row groups: one JSON line for each case.

    python benchmarks/reading.py                                # 39 columns, and strings with lists
    python benchmarks/reading.py --only criteo --row-groups 100,65536 --cache-bytes 1
    python benchmarks/reading.py --quick                        # small: see that it runs

From files to the arrays of batches, on one thread, each case in a process of its own, beside what
pyarrow takes to decode the same row groups as many at a time. What each line means:
docs/performance.md.
"""

import argparse
import multiprocessing
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from bench.command_line import finish, some_of
from bench.lines import MEGA, emit
from worker.data import open_file
from worker.data.planning import make_plan
from worker.data.reading import Reader, runs
from worker.datasets.planted import DENSE_COLUMNS, SPARSE_COLUMNS
from worker.datasets.synthetic import CriteoLike, write_criteo_like
from worker.spec import DataSpec, FeatureSpec, SparseFeature

_DATA = ("criteo", "lists")
_GROUPS = (65_536, 100, 1_000, 1_000_000)
_REFERENCE = 65_536
_BATCH = 2048
# Row groups of one case at most: files of tiny ones have footers larger than their data.
_MOST_ROW_GROUPS = 2_000
_STRINGS, _LISTS = 8, 4


@dataclass(frozen=True, slots=True)
class Figures:
    """Seconds of CPU, bytes and requests of one case."""

    rows: int
    reader: list[float]
    pyarrow: list[float]
    before_bytes: int
    peak_bytes: int
    requests: int


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", type=some_of(_DATA), default=_DATA, help="criteo,lists")
    parser.add_argument("--row-groups", type=_sizes, default=_GROUPS,
                        help="rows of a row group; default: 65536,100,1000,1000000")  # fmt: skip
    parser.add_argument("--rows", type=int, default=2_000_000, help="at most (%(default)s)")
    parser.add_argument("--repeats", type=int, default=5, help="default: %(default)s")
    parser.add_argument("--cache-bytes", type=int, default=1 << 30, help="default: %(default)s")
    parser.add_argument("--keep", action="store_true", help="rows that were read, as evaluation")
    parser.add_argument("--path", default=tempfile.gettempdir(), help="folder for the files")
    parser.add_argument("--quick", action="store_true", help="small sizes: see that it runs")
    arguments = parser.parse_args(argv)
    if arguments.quick:
        arguments.rows, arguments.repeats = 20_000, 1
    for name in ("rows", "repeats", "cache_bytes"):
        if getattr(arguments, name) < 1:
            parser.error(f"--{name.replace('_', '-')} must be >= 1, got {getattr(arguments, name)}")
    return arguments


def _sizes(text: str) -> tuple[int, ...]:
    try:
        sizes = tuple(int(part) for part in text.split(","))
    except ValueError:
        sizes = (0,)
    if min(sizes) < 1:
        raise argparse.ArgumentTypeError(f"takes whole numbers >= 1, got {text!r}")
    return sizes


# Data ---------------------------------------------------------------------------------------------


def features_of(data: str) -> FeatureSpec:
    """Return all columns of a kind of data as a job would name them."""
    dense, sparse = DENSE_COLUMNS, SPARSE_COLUMNS
    if data == "lists":
        dense = ("d",)
        sparse = (*(f"s{i}" for i in range(_STRINGS)), *(f"l{i}" for i in range(_LISTS)))
    return FeatureSpec(
        label="label",
        dense=tuple(dense),
        dense_transform="log1p",
        sparse=tuple(SparseFeature(name=name, column=name, table="t") for name in sparse),
    )


def make(data: str, rows: int, folder: Path) -> pa.Table:
    """Return rows of a kind of data."""
    if data == "criteo":
        write_criteo_like(folder / data, CriteoLike(rows=rows, test_rows=1, files=1))
        return pq.read_table(folder / data / "train")
    rng = np.random.default_rng(0)
    columns: dict[str, pa.Array] = {
        "label": pa.array(rng.integers(0, 2, rows).astype(np.float32)),
        "d": pa.array(rng.exponential(50, rows).astype(np.float32), mask=rng.random(rows) < 0.2),
    }
    for i in range(_STRINGS):
        ids = rng.zipf(1.2, rows) % 10 ** (i % 5 + 1)
        columns[f"s{i}"] = pa.array([f"{number:08x}" for number in ids])
    for i in range(_LISTS):
        ends = np.concatenate([[0], np.cumsum(rng.integers(0, 8, rows))]).astype(np.int32)
        keys = pa.array(rng.zipf(1.3, ends[-1]) % 100_000)
        columns[f"l{i}"] = pa.ListArray.from_arrays(pa.array(ends), keys)
    return pa.table(columns)


# One case, in a process of its own ----------------------------------------------------------------


def measure(path: str, data: str, repeats: int, cache_bytes: int, *, once: bool) -> Figures:
    """Read a file again and again, in turns with pyarrow alone; the first time is not counted."""
    features = features_of(data)
    plan = make_plan([path], DataSpec(features=features, batch_size=_BATCH))
    rows = plan.rows_per_epoch

    def read() -> None:
        reader = Reader(plan, features, cache_bytes=cache_bytes, once=once)
        read_rows = sum(reader.read(i)[0].num_samples for i in range(plan.total_batches))
        reader.close()
        assert read_rows == rows, f"read {read_rows} of {rows} rows"

    def decode() -> None:
        file = open_file.open_file(plan.files[0], features, dictionaries=True)
        names = features.columns()
        for run in runs(plan.files[0]):
            if len(run) > 1:
                file.read(run, names)
            else:
                for _ in file.tables(run[0], names):
                    pass
        file.close()

    before = _peak_bytes()
    read()  # nothing else yet: this is what the peak is of
    peak = _peak_bytes()
    decode()
    figures = Figures(rows, [], [], before, peak, _requests(read))
    for _ in range(repeats):
        figures.reader.append(_cpu(read))
        figures.pyarrow.append(_cpu(decode))
    return figures


def _cpu(run: Callable[[], None]) -> float:
    start = time.process_time()
    run()
    return time.process_time() - start


def _peak_bytes() -> int:
    # Not what getrusage says: that begins with the peak of the process that started this one.
    status = Path("/proc/self/status").read_text()
    return 1024 * int(status.partition("VmHWM:")[2].split()[0])


def _requests(run: Callable[[], None]) -> int:
    """Return how many ranges of files a run asks for, as it would ask an object store."""
    count = 0

    class Counted:
        """A local file that counts what is read of it."""

        def __init__(self, path: str) -> None:
            self._file = Path(path).open("rb")  # noqa: SIM115  # closed by pyarrow

        def read(self, size: int = -1) -> bytes:
            nonlocal count
            count += 1
            return self._file.read(size)

        def __getattr__(self, name: str) -> Any:
            return getattr(self._file, name)

    original = open_file.open_source
    open_file.open_source = lambda path: pa.PythonFile(Counted(path), mode="r")
    try:
        run()
    finally:
        open_file.open_source = original
    return count


# All of them --------------------------------------------------------------------------------------


def compare(arguments: argparse.Namespace, data: str, folder: Path) -> None:
    """Print a line for each size of row groups."""
    table = make(data, arguments.rows, folder)
    reference = None
    for group in arguments.row_groups:
        part = table.slice(0, min(table.num_rows, max(_BATCH, group * _MOST_ROW_GROUPS)))
        path = folder / f"{data}-{group}.parquet"
        pq.write_table(part, path, row_group_size=group, compression="zstd")
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            figures = pool.apply(
                measure,
                (str(path), data, arguments.repeats, arguments.cache_bytes),
                {"once": not arguments.keep},
            )
        path.unlink()
        micro = [1e6 * seconds / figures.rows for seconds in figures.reader]
        if group == _REFERENCE:
            reference = median(micro)
        emit(
            "reading",
            median(micro),
            "us/sample",
            data=data,
            row_group_rows=group,
            rows=figures.rows,
            times_reference=None if reference is None else median(micro) / reference,
            pyarrow=1e6 * median(figures.pyarrow) / figures.rows,
            min=min(micro),
            max=max(micro),
            before_mb=figures.before_bytes / MEGA,
            peak_mb=figures.peak_bytes / MEGA,
            requests=figures.requests,
        )


def main(argv: list[str] | None = None) -> int:
    arguments = parse(argv)

    def work() -> None:
        with tempfile.TemporaryDirectory(dir=arguments.path) as folder:
            for data in arguments.only:
                compare(arguments, data, Path(folder))

    return finish(work)


if __name__ == "__main__":
    sys.exit(main())
