"""What a checkpoint says of its tables, read part by part: no table is built.

An overview comes from the manifest alone; a summary reads all files of one table once, and needs
memory for one part of a file (about 8 MiB) and for the samples of its quantiles.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from embedding import BloomBlocks, CounterEntries, TableEntries, TableSpec, buckets_of
from embedding.spec.admission import BloomAdmission
from embedding.table.bloom import BloomFilter, BloomSize
from embedding.table.inspection import RankBy, TopRows, frequency_histogram, norms
from embedding.table.precision import stored_width
from embedding.table.rows import memory_of
from ps.checkpoint.read import CheckpointReader

Int64Array = npt.NDArray[np.int64]

QUANTILES = {"p10": 0.1, "p50": 0.5, "p90": 0.9, "p99": 0.99}
_SAMPLE_ROWS = 1 << 20


@dataclass(frozen=True, slots=True)
class TableOverview:
    """What the manifest says of a table.

    Args:
        spec: what the table is.
        rows: keys with a row.
        unadmitted: keys with a counter and no row; None where a Bloom filter counts them.
        file_bytes: of all its files.
        memory_bytes: that the table takes once it is loaded into one process.
    """

    spec: TableSpec
    rows: int
    unadmitted: int | None
    file_bytes: int
    memory_bytes: int


@dataclass(frozen=True, slots=True)
class KeyState:
    """What a table knows of a key.

    Args:
        state: `row`, `counter` (not admitted: it has a frequency only) or `absent`.
        frequency: how often the key was seen. Without a row, and where a Bloom filter counts: at
            most so often. None of a row in a table that does not track usage.
        version: the step that last changed row or counter; None where there is none.
        row: the one row.
    """

    key: int
    state: str
    frequency: int | None = 0
    version: int | None = None
    row: TableEntries | None = None


@dataclass(frozen=True, slots=True)
class TableSummary:
    """What the files of a table hold.

    Args:
        overview: what the manifest says.
        ranges: of `frequency` and `version`, where the table tracks usage, and `norm` of the
            vectors each: `min`, the `QUANTILES` and `max`; empty where there is no row. Norms are
            of the vectors that are finite.
        sampled_rows: rows that the quantiles are of; all others are exact.
        nonfinite_rows: rows whose vector holds NaN or infinity.
        row_histogram: int64[64] of the rows' frequencies, see `embedding.table.inspection`; all
            0 where the table does not track usage.
        unadmitted_histogram: int64[64] of the counters' frequencies.
        top: the highest rows.
        keys: the keys that were asked for, in that order.
    """

    overview: TableOverview
    ranges: dict[str, dict[str, float]]
    sampled_rows: int
    nonfinite_rows: int
    row_histogram: Int64Array
    unadmitted_histogram: Int64Array
    top: TableEntries
    keys: list[KeyState]


def overview_of(reader: CheckpointReader, spec: TableSpec) -> TableOverview:
    """Look a table up in the manifest; files are read only of a delta, whose keys are counted."""
    rows: Counter[str] = Counter()
    file_bytes = 0
    for files in reader.chain:
        for entry in files.manifest.files:
            folder, _, name = entry.path.rpartition("/")
            if folder == f"tables/{spec.name}":
                kind = name.split("-")[0]
                rows["rows" if kind == "placed" else kind] += entry.rows
                file_bytes += entry.bytes
    if len(reader.chain) > 1:
        rows = _counted(reader, spec)
    memory = memory_of(rows["rows"], stored_width(spec), track_usage=spec.track_usage)
    memory += memory_of(rows["counters"], 0)
    has_bloom = isinstance(spec.admission, BloomAdmission)
    if isinstance(spec.admission, BloomAdmission):
        counter_bytes = spec.admission.counter_bits // 8
        memory += rows["bloom"] * BloomSize.of(spec.admission).counters * counter_bytes
    unadmitted = None if has_bloom else rows["counters"]
    return TableOverview(spec, rows["rows"], unadmitted, file_bytes, memory)


def _counted(reader: CheckpointReader, spec: TableSpec) -> Counter[str]:
    """Count what a chain holds of a table: what is in a file may be hidden by a newer one."""
    found: Counter[str] = Counter()
    for entries in reader.entries(spec):
        found["rows" if isinstance(entries, TableEntries) else "counters"] += len(entries.keys)
    found["bloom"] = sum(blocks.buckets.size for blocks in reader.bloom_blocks(spec))
    return found


def summarize(
    reader: CheckpointReader,
    spec: TableSpec,
    *,
    top: int,
    by: RankBy,
    keys: Sequence[int] = (),
) -> TableSummary:
    """Read a table's files once.

    Args:
        top: how many of the highest rows to keep, >= 0.
        by: what they are highest in.
        keys: int64 values to look up.

    Raises:
        CheckpointError: a file is missing or damaged.
        ValueError: `top` or `by` is not one of these, or the table does not track what `by` asks.
    """
    overview = overview_of(reader, spec)
    highest = TopRows(spec, top, by)
    stride = max(1, -(-overview.rows // _SAMPLE_ROWS))
    usage = ("frequency", "version") if spec.track_usage else ()
    values = {name: _Range(stride) for name in (*usage, "norm")}
    lookup = _Lookup(keys, spec)
    histogram = frequency_histogram(np.empty(0, np.int64))
    unadmitted = histogram.copy()
    nonfinite = 0
    for rows in reader.rows(spec):
        norm = norms(rows.vectors)
        finite = np.isfinite(norm)
        nonfinite += int(np.count_nonzero(~finite))
        values["norm"].add(norm[finite])
        if usage:
            values["frequency"].add(rows.frequency)
            values["version"].add(rows.version)
            histogram += frequency_histogram(rows.frequency)
        highest.add(rows)
        lookup.add_rows(rows)
    for counters in reader.counters(spec):
        unadmitted += frequency_histogram(counters.frequency)
        lookup.add_counters(counters)
    if isinstance(spec.admission, BloomAdmission):
        lookup.add_bloom(reader, spec, spec.admission)
    return TableSummary(
        overview=overview,
        ranges={name: found.result() for name, found in values.items()},
        sampled_rows=-(-overview.rows // stride),
        nonfinite_rows=nonfinite,
        row_histogram=histogram,
        unadmitted_histogram=unadmitted,
        top=highest.entries,
        keys=lookup.states(),
    )


class _Range:
    """Smallest and largest of values that come in parts, and quantiles of every stride-th one.

    Rows lie in files by the mix of their keys, so that every stride-th one is as good as a draw.
    """

    def __init__(self, stride: int) -> None:
        self._stride = stride
        self._next = 0  # place of the next value that is sampled, in the part to come
        self._ends: list[Any] = []
        self._sample: list[np.ndarray] = []

    def add(self, values: np.ndarray) -> None:
        if values.size:
            self._ends += [values.min(), values.max()]
        taken = values[self._next :: self._stride].copy()
        self._next += taken.size * self._stride - values.size
        self._sample.append(taken)

    def result(self) -> dict[str, float]:
        if not self._ends:
            return {}
        sample = np.concatenate(self._sample)
        # Values that occur, so that those of integers are integers.
        inner = np.quantile(sample, list(QUANTILES.values()), method="inverted_cdf").tolist()
        low, high = min(self._ends).item(), max(self._ends).item()
        return {"min": low, **dict(zip(QUANTILES, inner, strict=True)), "max": high}


class _Lookup:
    """Finds keys in parts of a table."""

    def __init__(self, keys: Sequence[int], spec: TableSpec) -> None:
        self._keys = list(keys)
        self._track_usage = spec.track_usage
        self._wanted = np.unique(np.array(self._keys, np.int64))
        self._found: dict[int, KeyState] = {}

    def add_rows(self, rows: TableEntries) -> None:
        for row in self._places(rows.keys):
            one = rows.take(np.array([row]))
            key, frequency, version = (int(c[0]) for c in (one.keys, one.frequency, one.version))
            state = KeyState(key, "row", frequency, version, one)
            if not self._track_usage:
                state = replace(state, frequency=None, version=None)
            self._found[key] = state

    def add_counters(self, counters: CounterEntries) -> None:
        for place in self._places(counters.keys):
            key = int(counters.keys[place])
            frequency, version = int(counters.frequency[place]), int(counters.version[place])
            self._found[key] = KeyState(key, "counter", frequency, version)

    def add_bloom(self, reader: CheckpointReader, spec: TableSpec, rule: BloomAdmission) -> None:
        """Ask the filter for what has no row; only the blocks of these keys are kept."""
        missing = np.array([k for k in self._wanted.tolist() if k not in self._found], np.int64)
        if not missing.size:
            return
        bloom = BloomFilter(rule)
        of_keys = buckets_of(missing)
        for blocks in reader.bloom_blocks(spec, (int(of_keys.min()), int(of_keys.max()) + 1)):
            wanted = np.isin(blocks.buckets, of_keys)
            bloom.import_(BloomBlocks(blocks.buckets[wanted], blocks.counters[wanted]))
        for key, count in zip(missing.tolist(), bloom.count(missing).tolist(), strict=True):
            if count:
                self._found[key] = KeyState(key, "counter", count)

    def states(self) -> list[KeyState]:
        return [self._found.get(key, KeyState(key, "absent")) for key in self._keys]

    def _places(self, keys: Int64Array) -> Iterable[int]:
        if not self._wanted.size:
            return []
        return np.flatnonzero(np.isin(keys, self._wanted)).tolist()
