"""What a table holds: rows, counters and filter; how it is moved in and out, and looked at."""

from collections.abc import Iterator
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from embedding.entries import CounterEntries, TableEntries
from embedding.kernels.arguments import input_array, read_only
from embedding.kernels.mixing import NUM_BUCKETS, buckets_of
from embedding.optimizers.rule import OptimizerRule, rule_for
from embedding.spec.admission import BloomAdmission, CounterAdmission
from embedding.spec.table import TableSpec
from embedding.spec.tiers import Tiers
from embedding.table.adopting import Adoption
from embedding.table.bloom import BloomBlocks, BloomFilter
from embedding.table.buckets import ALL_BUCKETS, bucket_parts, check_buckets
from embedding.table.frozen import FrozenTable
from embedding.table.inspection import RankBy, TopRows, frequency_histogram
from embedding.table.others import count_own, keys_of_others, of_own, owned
from embedding.table.placed_rows import PlacedRows
from embedding.table.precision import kind_of, stored_width
from embedding.table.reservation import NO_BUDGET, Budget
from embedding.table.row_arrays import RowArrays
from embedding.table.rows import Rows
from embedding.table.sharing import budget_alone
from embedding.table.tier_extents import Digest, HeldExtents
from embedding.table.tiered_values import TieredValues, TierFigures
from embedding.table.transfer import read_rows, write_rows
from embedding.table.usage import FREQUENCY, VERSION, usage_of, write_usage

Float32Array = npt.NDArray[np.float32]
Int64Array = npt.NDArray[np.int64]

_LISTED_BYTES = 1 << 28  # keys and row numbers that are sorted at once
_REMOVED_AT_LEAST = 1 << 20  # keys that are remembered before they are merged
_PART_BYTES = 64 << 20  # of a table that is looked at, at once

_INT64, _FLOAT32 = np.dtype("int64"), np.dtype("float32")


class TableState:
    """The rows of one table, and what is counted of keys without a row.

    Args:
        spec: what the table is.
        budget: what it may reserve; None: as a table that is made alone.
        tiers: where values are that memory is not to hold; None: all are in memory.

    Attributes:
        has_counters: whether keys without a row may be counted.
    """

    def __init__(
        self, spec: TableSpec, budget: Budget | None = None, tiers: Tiers | None = None
    ) -> None:
        self.spec: TableSpec = spec
        self._rule = rule_for(spec.optimizer, sparse=True)
        self._initial_slots = self._rule.initial_slots(spec.dim)
        self._precision = kind_of(spec.value_dtype)
        self._budget = budget or budget_alone(spec)
        self._rows = Rows(
            stored_width(spec),
            self._budget,
            track_usage=spec.track_usage,
            name=f"table {spec.name}",
            tiers=tiers,
        )
        rule = spec.admission
        self._counts_keys = isinstance(rule, CounterAdmission)
        self.has_counters = self._counts_keys  # or was given some, of another rule
        self._counters = self._reserved_counters() if self._counts_keys else Rows(0, NO_BUDGET)
        self._bloom = BloomFilter(rule) if isinstance(rule, BloomAdmission) else None
        self._removed: list[Int64Array] | None = None  # keys, since the freeze before, if any
        self._num_removed = 0  # keys in it, some of them perhaps more than once
        self._own: npt.NDArray[np.uint8] | None = None  # buckets; None: all that it has rows of

    def _reserved_counters(self) -> Rows:
        return Rows(0, self._budget, name=f"what is counted for table {self.spec.name}")

    def __len__(self) -> int:
        return len(self._rows)

    @property
    def rows(self) -> Rows:
        """For who goes over several tables at once."""
        return self._rows

    @property
    def rule(self) -> OptimizerRule:
        return self._rule

    @property
    def num_unadmitted(self) -> int:
        """Keys with a counter and no row; 0 where a Bloom filter counts them."""
        return len(self._counters)

    # In and out -------------------------------------------------------------------------------

    def export(self, buckets: tuple[int, int] = ALL_BUCKETS) -> TableEntries:
        """Copy the rows of the keys in buckets [first, end), sorted by (bucket, key).

        Frequencies and versions are 0 where the table does not track usage.

        Each call looks through all keys, so ask for many buckets at once.
        """
        keys, rows = self._in_buckets(self._rows, buckets)
        return self._read(self._rows.arrays, rows, keys)

    def export_parts(
        self, buckets: tuple[int, int], part_bytes: int
    ) -> Iterator[tuple[tuple[int, int], TableEntries]]:
        """Yield ranges of buckets with what `export` returns for each: about so many bytes.

        All keys are looked through, and sorted, once for many of them. The table must not
        change meanwhile.
        """
        row_bytes = 24 + 4 * (self.spec.dim + self._initial_slots.size)
        for part in bucket_parts(16 * len(self), _LISTED_BYTES, buckets):
            keys, rows = self._in_buckets(self._rows, part)
            cuts = bucket_parts(row_bytes * keys.size, part_bytes, part, most_parts=NUM_BUCKETS)
            ends = np.searchsorted(buckets_of(keys), [end for _, end in cuts]).tolist()
            for cut, start, end in zip(cuts, [0, *ends], ends, strict=False):
                yield cut, self._read(self._rows.arrays, rows[start:end], keys[start:end])

    def _read(
        self, arrays: RowArrays, rows: Int64Array, keys: Int64Array | None = None
    ) -> TableEntries:
        """Copy rows of some arrays to columns; keys, if they are known, are theirs."""
        n = rows.size
        tiered = self._rows.tiered
        if tiered is not None and arrays.values is tiered.memory:
            arrays = self._rows.copy(rows, arrays.keys[rows] if keys is None else keys)
            rows = np.arange(n)
        entries = TableEntries(
            keys=arrays.keys[rows] if keys is None else keys,
            frequency=np.zeros(n, np.int64),
            version=np.zeros(n, np.int64),
            vectors=np.empty((n, self.spec.dim), np.float32),
            slots=np.empty((n, self._initial_slots.size), np.float32),
        )
        read_rows(
            arrays,
            rows,
            self._precision,
            self.spec.track_usage,
            entries.frequency,
            entries.version,
            entries.vectors,
            entries.slots,
        )
        return entries

    def export_arrow(self, buckets: tuple[int, int] = ALL_BUCKETS) -> Any:
        """Return `export` as a pyarrow.Table, see `embedding.arrow`, which needs pyarrow."""
        from embedding.arrow import to_arrow

        return to_arrow(self.export(buckets), self.spec)

    def import_arrow(self, table: Any, *, allow_nonfinite: bool = False) -> None:
        """Insert or overwrite the rows of a pyarrow.Table, as `import_rows` does.

        Args:
            allow_nonfinite: take NaN and infinity too, as a diverged model has them.

        Raises:
            ValueError: a column is wrong, see `embedding.arrow.from_arrow`.
            MemoryError: there is no room for the new keys.
        """
        from embedding.arrow import from_arrow

        self.import_rows(from_arrow(table, self.spec, allow_nonfinite=allow_nonfinite))

    def export_counters(self, buckets: tuple[int, int] = ALL_BUCKETS) -> CounterEntries:
        """Copy the counters of the keys in buckets [first, end), sorted by (bucket, key)."""
        keys, rows = self._in_buckets(self._counters, buckets)
        arrays = self._counters.arrays
        return CounterEntries(
            keys=keys,
            frequency=usage_of(arrays.metadata, arrays.state, rows, FREQUENCY),
            version=usage_of(arrays.metadata, arrays.state, rows, VERSION),
        )

    def export_bloom(self, buckets: tuple[int, int] = ALL_BUCKETS) -> BloomBlocks:
        """Copy the blocks of the Bloom filter of buckets [first, end) that hold anything."""
        check_buckets(buckets)
        if self._bloom is None:
            return BloomBlocks(np.empty(0, np.int64), np.empty((0, 0), np.uint8))
        blocks = self._bloom.export(buckets)
        if self._own is None:
            return blocks
        mine = self._own[blocks.buckets] != 0
        return BloomBlocks(blocks.buckets[mine], blocks.counters[mine])

    def bloom_block(self, bucket: int) -> npt.NDArray[Any]:
        """Return the Bloom counters of a bucket, a view that can't be written; empty without."""
        if self._bloom is None:
            return np.empty(0, np.uint8)
        check_buckets((bucket, bucket + 1))
        return read_only(self._bloom.arrays.counters[bucket])

    def import_bloom(self, blocks: BloomBlocks) -> None:
        """Overwrite blocks of the Bloom filter.

        Raises:
            ValueError: the table has no filter, or one of another size.
        """
        if self._bloom is None:
            raise ValueError(f"table {self.spec.name} has no Bloom filter")
        self._bloom.import_(blocks)

    def expect_rows(self, num_rows: int) -> None:
        """Let an empty table take about so many rows without its index having to grow for them."""
        self._rows.expect(num_rows)

    def adoption(self) -> Adoption | None:
        """Return what takes rows in extents into this table, if it has tiers and no rows."""
        return None if self._rows.tiered is None or len(self._rows) else Adoption(self._rows)

    def import_rows(self, entries: TableEntries) -> None:
        """Insert or overwrite rows; a counter of the same key is removed.

        Frequencies and versions are left out where the table does not track usage.

        Raises:
            ValueError: a column has another type or shape.
            MemoryError: there is no room for the new keys.
        """
        n, dim = len(entries.keys), self.spec.dim
        keys = input_array("keys", entries.keys, _INT64, (n,))
        frequency = input_array("frequency", entries.frequency, _INT64, (n,))
        version = input_array("version", entries.version, _INT64, (n,))
        vectors = input_array("vectors", entries.vectors, _FLOAT32, (n, dim))
        slots = input_array("slots", entries.slots, _FLOAT32, (n, self._initial_slots.size))
        rows = self._rows.add(keys)
        if len(self._counters):
            self._remove(self._counters, keys)
        if self._rows.tiered is not None:
            self._write_tiered(self._rows.tiered, rows, frequency, version, vectors, slots)
            return
        write_rows(
            self._rows.arrays,
            rows,
            self._precision,
            self.spec.track_usage,
            frequency,
            version,
            vectors,
            slots,
        )

    def _write_tiered(
        self,
        tiered: TieredValues,
        rows: Int64Array,
        frequency: Int64Array,
        version: Int64Array,
        vectors: Float32Array,
        slots: Float32Array,
    ) -> None:
        """`write_rows`, as many at once as memory has room for."""
        arrays = self._rows.arrays
        if self.spec.track_usage:
            write_usage(arrays.metadata, arrays.state, rows, frequency, version)
        for start in range(0, rows.size, tiered.at_once):
            part = slice(start, start + tiered.at_once)
            positions = tiered.overwrite(rows[part])
            write_rows(
                arrays,
                positions,
                self._precision,
                False,
                frequency[part],
                version[part],
                vectors[part],
                slots[part],
            )

    def import_counters(self, entries: CounterEntries) -> None:
        """Insert or overwrite counters; a row of the same key is removed.

        A Bloom filter counts each key at least so often from then on.

        Raises:
            ValueError: a column has another type or shape.
            MemoryError: there is no room for the new keys.
        """
        n = len(entries.keys)
        keys = input_array("keys", entries.keys, _INT64, (n,))
        frequency = input_array("frequency", entries.frequency, _INT64, (n,))
        version = input_array("version", entries.version, _INT64, (n,))
        if self._bloom is not None:
            self._remove(self._rows, keys)
            self._bloom.raise_to(keys, frequency)
            return
        if not self.has_counters:
            self._counters, self.has_counters = self._reserved_counters(), True
        counters = self._counters.add(keys)
        self._remove(self._rows, keys)
        arrays = self._counters.arrays
        write_usage(arrays.metadata, arrays.state, counters, frequency, version)

    def remove(self, keys: Int64Array) -> None:
        """Remove the rows and counters of keys; absent keys are left out, filters stay as they are.

        Args:
            keys: int64[n], any values, repeated ones too.

        Raises:
            ValueError: keys have another type or shape.
        """
        keys = input_array("keys", keys, _INT64, (len(keys),))
        for rows in (self._rows, self._counters):
            self._remove(rows, keys)

    def _remove(self, rows: Rows, keys: Int64Array) -> None:
        """Remove keys from rows or counters, and remember them for the next freeze."""
        removed = rows.remove(keys)
        if self._removed is not None and removed.size:
            self._removed.append(removed)
            # Keys that come and go between two cuts are remembered once.
            self._num_removed += removed.size
            if self._num_removed > 2 * max(self._removed[0].size, _REMOVED_AT_LEAST):
                self._removed = [np.unique(np.concatenate(self._removed))]
                self._num_removed = self._removed[0].size

    # Buckets that come and go -------------------------------------------------------------------

    def own(self, buckets: npt.ArrayLike) -> None:
        """Be the table of some buckets; see `others`: rows of others stay, and count for nothing.

        They are not evicted, frozen or exported; `len` and `memory` count them. May be said again,
        of other buckets: what was another table's is this one's then, as it is.

        Args:
            buckets: 4096 numbers, not 0 for those that it owns.
        """
        self._own = owned(buckets)

    @property
    def num_own(self) -> int:
        """Rows without those of other tables; looks at all of them where there may be any."""
        if self._own is None:
            return len(self._rows)
        return count_own(self._rows.arrays, self._own)

    def drop_others(self, most: int = 1 << 16) -> Iterator[None]:
        """Remove what belongs to other tables, looking at so many rows with each `next`.

        Between two of them the table may change, but take nothing in that another one owns. What is
        removed is in no later freeze: for whoever restores the table it was never there.
        """
        own = self._own
        if own is None:
            return
        for rows in (self._rows, self._counters):
            for keys in keys_of_others(rows.arrays, own, most):
                rows.remove(keys)
                yield
        if self._bloom is not None:
            self._bloom.clear(np.flatnonzero(own == 0))
        self._own = None

    def _mine(self, keys: Int64Array) -> Int64Array:
        """Return those of some keys that this table owns."""
        return keys if self._own is None else keys[of_own(keys, self._own)]

    def _in_buckets(self, rows: Rows, buckets: tuple[int, int]) -> tuple[Int64Array, Int64Array]:
        """Return `Rows.in_buckets` of those that this table owns."""
        keys, places = rows.in_buckets(buckets)
        if self._own is None:
            return keys, places
        mine = of_own(keys, self._own)
        return keys[mine], places[mine]

    # Frozen -----------------------------------------------------------------------------------

    def freeze(self, *, changed_only: bool) -> FrozenTable:
        """Freeze what the table holds now, to be read while it goes on; nothing is copied yet.

        It takes a look at one byte of each row. What is frozen and not yet read is copied when it
        is changed or removed, which takes memory until it is read. From the first freeze on the
        keys that are removed are remembered until the next, 8 bytes each. One that is frozen
        already is closed. Nothing else may run beside this.

        Args:
            changed_only: freeze only what has changed or was removed since the freeze before, or
                since the table was made.

        Restored are both by `remove`, `import_rows`, `import_counters` and `import_bloom`, in this
        order: all that was frozen, then for each later one the keys removed and what changed.
        """
        removed = np.empty(0, np.int64)
        if changed_only and self._removed:
            removed = self._mine(np.unique(np.concatenate(self._removed)))
        self._removed, self._num_removed = [], 0
        own, tiered = self._own, self._rows.tiered
        return FrozenTable(
            self._rows.freeze(changed_only=changed_only, own=own),
            self._counters.freeze(changed_only=changed_only, own=own),
            None if self._bloom is None else self._bloom.freeze(changed_only=changed_only, own=own),
            removed,
            self._read,
            changed_only=changed_only,
            held=None if tiered is None or changed_only else tiered.hold(),
            num_placed=0 if tiered is None else tiered.figures().disk_rows,
            place=self._place,
        )

    def _place(
        self, arrays: RowArrays, rows: Int64Array, held: HeldExtents
    ) -> tuple[Int64Array, PlacedRows]:
        """Return the rows that are not in some extents, and those that are."""
        tiered = self._rows.tiered
        if tiered is None or arrays.values is not tiered.memory:
            return rows, PlacedRows.none()
        records = tiered.records_in(held, rows)
        there = records >= 0
        placed, n = rows[there], int(there.sum())
        frequency, version = np.zeros((2, n), np.int64)
        if self.spec.track_usage:
            frequency = usage_of(arrays.metadata, arrays.state, placed, FREQUENCY)
            version = usage_of(arrays.metadata, arrays.state, placed, VERSION)
        return rows[~there], PlacedRows(records[there], arrays.keys[placed], frequency, version)

    def digest_segments(self, digest: Digest) -> None:
        """Have a digest computed of what is written to a disk, so that a cut can refer to it."""
        if self._rows.tiered is not None:
            self._rows.tiered.digest_segments(digest)

    # Questions --------------------------------------------------------------------------------

    def frequency(self, keys: Int64Array) -> Int64Array:
        """Return how often each key was seen, in its row or counter: int64[n], 0 if absent.

        Of a key without a row a Bloom filter may say too much.

        Raises:
            ValueError: the table does not track usage.
        """
        self.spec.require_usage("for frequencies")
        keys = input_array("keys", keys, _INT64, (len(keys),))
        if self._bloom is None:
            counted = self._counters.metadata_of(keys, FREQUENCY, 0)
        else:
            counted = self._bloom.count(keys)
        return self._rows.metadata_of(keys, FREQUENCY, counted)

    def version(self, keys: Int64Array) -> Int64Array:
        """Return the step that last changed each row or counter: int64[n], -1 if absent.

        Raises:
            ValueError: the table does not track usage.
        """
        self.spec.require_usage("for versions")
        keys = input_array("keys", keys, _INT64, (len(keys),))
        counted = self._counters.metadata_of(keys, VERSION, -1)
        return self._rows.metadata_of(keys, VERSION, counted)

    def top(self, n: int, by: RankBy = "frequency") -> TableEntries:
        """Copy the n rows that are highest, sorted by (value descending, key ascending).

        Args:
            n: how many, >= 0; a smaller table gives all of its rows.
            by: which value; the norm is the Euclidean one of the vector.

        Raises:
            ValueError: n or by is not one of these, or the table does not track what it asks for.
        """
        highest = TopRows(self.spec, n, by)
        num_bytes = 4 * self._rule.row_width(self.spec.dim) * len(self)
        for part in bucket_parts(num_bytes, _PART_BYTES):
            highest.add(self.export(part))
        return highest.entries

    def frequency_histogram(self, of: Literal["rows", "unadmitted"] = "rows") -> Int64Array:
        """Count the frequencies of rows, or of counters of unadmitted keys, by powers of two.

        Returns:
            int64[64]: how many are 0, 1, 2 to 3, 4 to 7, ...; see `inspection.BIN_STARTS`. Of
            unadmitted keys all 0 where a Bloom filter counts them: it does not know its keys.

        Raises:
            ValueError: `of` is not one of these, or rows of a table that does not track usage.
        """
        if of not in ("rows", "unadmitted"):
            raise ValueError(f"of must be rows or unadmitted, got {of!r}")
        if of == "rows":
            self.spec.require_usage("for frequencies of rows")
        rows = self._rows if of == "rows" else self._counters
        counts = frequency_histogram(np.empty(0, np.int64))
        for part in bucket_parts(16 * len(rows), _PART_BYTES):
            _, positions = rows.in_buckets(part)
            arrays = rows.arrays
            counts += frequency_histogram(
                usage_of(arrays.metadata, arrays.state, positions, FREQUENCY)
            )
        return counts

    def tiers(self) -> TierFigures | None:
        """Return where the values of rows are; None: the table has no tiers."""
        return None if self._rows.tiered is None else self._rows.tiered.figures()

    def memory(self) -> dict[str, int]:
        """Return the bytes taken by each part, and their total.

        `keys` is of the rows' keys and flags; `frozen` and `removed` is what a `freeze` keeps.
        """
        memory = self._rows.memory()
        memory["counters"] = sum(self._counters.memory().values())
        memory["bloom"] = 0 if self._bloom is None else self._bloom.nbytes
        memory["removed"] = sum(keys.nbytes for keys in self._removed or ())
        memory["total"] = sum(memory.values())
        return memory
