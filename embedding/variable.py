"""The embedding variable: a table of rows that grows as keys appear."""

from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from embedding.admission import ALWAYS, Admission, admission_of, with_frequency
from embedding.arguments import input_array, output_array, read_only
from embedding.bloom import BloomBlocks, BloomFilter
from embedding.counters import CounterEntries
from embedding.entries import TableEntries
from embedding.eviction import EvictFirst, expired, overfull
from embedding.finite import all_finite, finite_rows
from embedding.initial_values import initial_values_of
from embedding.inspection import RankBy, TopRows, bucket_parts, frequency_histogram
from embedding.kernels import pull_rows, settle_keys
from embedding.mixing import mix_text
from embedding.optimizers import rule_for
from embedding.precision import (
    FLOAT32,
    kind_of,
    narrow_rows,
    stored_width,
    widen_rows,
)
from embedding.rows import FREQUENCY, METADATA_BYTES, VERSION, Rows
from embedding.spec import BloomAdmission, CounterAdmission, TableSpec
from embedding.static_rows import StaticRows
from embedding.transfer import read_rows, write_rows, write_vectors

Int64Array = npt.NDArray[np.int64]
Float32Array = npt.NDArray[np.float32]
UInt8Array = npt.NDArray[np.uint8]

ALL_BUCKETS = (0, 4096)
_KEYS_AT_ONCE = 4096  # their rows, new ones above all, are still in the cache when they are updated

_INT64, _UINT32, _UINT8, _FLOAT32 = map(np.dtype, ("int64", "uint32", "uint8", "float32"))
_NO_COUNTS = read_only(np.empty(0, _UINT32))
_NO_FLAGS = read_only(np.empty(0, _UINT8))


class EmbeddingVariable:
    """A table of rows by key: pulled by reading, changed by `apply`, `evict` and imports only.

    Pulls may run beside one another, not beside a change: the owner sees to that. Inputs are
    never kept or written, and whatever is refused is refused before anything changes.

    Args:
        spec: what the table is.
        base: the table that `spec.base` names, which pulls of this one read.
        on_non_finite: what `apply` does about a gradient with NaN or infinity: it refuses all of
            them, or leaves that key's out and counts it.

    Attributes:
        num_evicted: rows and counters evicted so far.
        num_non_finite: gradients left out so far.

    Raises:
        ValueError: the base is missing or another one.
    """

    def __init__(
        self,
        spec: TableSpec,
        *,
        base: "EmbeddingVariable | None" = None,
        on_non_finite: Literal["fail", "skip"] = "fail",
    ) -> None:
        got = None if base is None else base.spec.name
        if got != spec.base:
            raise ValueError(f"table {spec.name} needs base {spec.base}, got {got}")
        self.spec: TableSpec = spec
        self._static = self._counting = None
        if base is not None and spec.warm_start is not None:
            self._static = StaticRows(base, spec.warm_start, spec.dim)
        else:
            self._counting = base  # whose frequencies admit keys; nothing is counted here
        self.num_evicted = 0
        self.num_non_finite = 0
        self._on_non_finite = on_non_finite
        self._rule = rule_for(spec.optimizer, sparse=True)
        self._initial = initial_values_of(
            spec.initializer, dim=spec.dim, name=spec.name, seed=spec.seed
        )
        self._initial_slots = self._rule.initial_slots(spec.dim)
        self._default_value = np.float32(spec.default_value)
        self._precision = kind_of(spec.value_dtype)
        # No table's name has a slash, so these draws are not the initial values of any.
        self._rounding_seed = np.uint64(mix_text(f"{spec.name}/rounding", spec.seed))
        self._rows = Rows(stored_width(spec))
        self._counters = Rows(0)
        rule = spec.admission
        self._bloom = BloomFilter(rule) if isinstance(rule, BloomAdmission) else None
        self._first_admission = admission_of(spec, self._counters.arrays, self._bloom)

    @property
    def _admission(self) -> Admission:
        """The rule of admission, with the counters where they are now: growth replaces them."""
        return self._first_admission._replace(counters=self._counters.arrays)

    def __len__(self) -> int:
        return len(self._rows)

    @property
    def num_unadmitted(self) -> int:
        """Keys with a counter and no row; 0 where a Bloom filter counts them."""
        return len(self._counters)

    def pull(
        self,
        keys: Int64Array,
        counts: npt.NDArray[np.uint32] | None,
        values: Float32Array,
        admitted: UInt8Array,
        *,
        step: int = 0,
    ) -> None:
        """Read the vector of each key; a pure read.

        A key without a row gets its initial vector where it would be admitted (always, in a table
        without an admission rule), else the table's default value.

        Args:
            keys: int64[n], any values, repeated ones too.
            counts: uint32[n], occurrences in the batch; None: 0 each, for evaluation.
            values: float32[n, dim], written.
            admitted: uint8[n], written: 1 where the key has a row or would be admitted, else 0.
            step: the step that is read, by which probabilistic admission draws.

        Raises:
            ValueError: an array has another type or shape.
        """
        n = len(keys)
        keys = input_array("keys", keys, _INT64, (n,))
        counts = _NO_COUNTS if counts is None else input_array("counts", counts, _UINT32, (n,))
        if self._counting is not None:
            counts = with_frequency(counts, self._counting.frequency(keys))
        pull_rows(
            self._rows.arrays,
            self._precision,
            self._admission,
            self._initial,
            self._default_value,
            keys,
            counts,
            step,
            output_array("values", values, _FLOAT32, (n, self.spec.dim)),
            output_array("admitted", admitted, _UINT8, (n,)),
        )
        if self._static is not None:
            self._static.fill(self._rows, keys, values, admitted)

    def apply(
        self,
        keys: Int64Array,
        counts: Int64Array,
        gradients: Float32Array,
        has_gradient: UInt8Array | None,
        *,
        step: int,
        scale: float,
        scalars: npt.ArrayLike,
    ) -> None:
        """Apply what one step brings for this table.

        A key with a row is counted and, where it has a gradient, updated. One without a row gets
        one where it has a gradient (what was counted goes with it), else it is counted if the
        table's admission rule counts.

        Args:
            keys: int64[n], each once.
            counts: int64[n], occurrences of each key in this step.
            gradients: float32[n, dim], sums over the step's samples.
            has_gradient: uint8[n], 0 where gradients[i] means nothing; None: 1 each.
            step: becomes the version of every row and counter that changes.
            scale: what sums are multiplied by, in float32: 1 / N.
            scalars: float64[k], see `optimizers.step_scalars`.

        Raises:
            ValueError: an array has another type or shape, the number of scalars is wrong, or a
                gradient is not finite and `on_non_finite` is `fail`.
            MemoryError: there is no room for the new keys.
        """
        n = len(keys)
        keys = input_array("keys", keys, _INT64, (n,))
        counts = input_array("counts", counts, _INT64, (n,))
        gradients = input_array("gradients", gradients, _FLOAT32, (n, self.spec.dim))
        flags = _NO_FLAGS
        if has_gradient is not None:
            flags = input_array("has_gradient", has_gradient, _UINT8, (n,))
        numbers = self._rule.check_scalars(scalars)
        if not all_finite(gradients):
            flags = self._without_non_finite(keys, gradients, flags)
        self._make_room(keys, flags)
        new = None if self._bloom is None else np.flatnonzero(self._rows.find(keys) < 0)
        for start in range(0, n, _KEYS_AT_ONCE):
            part = slice(start, start + _KEYS_AT_ONCE)
            positions = self._settle(keys[part], counts[part], flags[part], step)
            self._update(keys[part], positions, gradients[part], step, np.float32(scale), numbers)
        if self._bloom is not None:
            # After all rows were made, so that none starts with what this step brings for others.
            self._bloom.add(keys[new], counts[new])

    def _settle(
        self, keys: Int64Array, counts: Int64Array, flags: UInt8Array, step: int
    ) -> Int64Array:
        """Count keys and make rows; return the row of each that is updated, else -1."""
        admission = self._admission
        if self._counting is not None:
            admission = admission._replace(kind=ALWAYS)
        static = self._static
        starts = None if static is None else static.starts(self._rows, keys, flags)
        positions = np.empty(keys.size, np.int64)
        settle_keys(
            self._rows.arrays,
            self._precision,
            self.spec.dim,
            admission,
            self._initial,
            self._initial_slots,
            keys,
            counts,
            flags,
            step,
            positions,
        )
        if starts is not None:
            made = positions[starts.made]
            write_vectors(self._rows.arrays, made, self._precision, starts.vectors)
        return positions

    def _update(
        self,
        keys: Int64Array,
        positions: Int64Array,
        gradients: Float32Array,
        step: int,
        scale: np.float32,
        scalars: npt.NDArray[np.float64],
    ) -> None:
        """Update rows; vectors of 16 bits are widened, updated in float32 and rounded."""
        values, dim = self._rows.arrays.values, self.spec.dim
        if self._precision == FLOAT32:
            self._rule.run(values, positions, gradients, scale, scalars)
            return
        wide = np.empty((keys.size, self._rule.row_width(dim)), np.float32)
        widen_rows(values, positions, self._precision, dim, wide)
        own = np.where(positions >= 0, np.arange(keys.size), -1)
        self._rule.run(wide, own, gradients, scale, scalars)
        narrow_rows(values, positions, self._precision, dim, wide, keys, self._rounding_seed, step)

    def _without_non_finite(
        self, keys: Int64Array, gradients: Float32Array, flags: UInt8Array
    ) -> UInt8Array:
        """Return has_gradient without the keys whose gradient is not finite."""
        present = flags != 0 if flags.size else np.ones(keys.size, bool)
        bad = present & ~finite_rows(gradients)
        if self._on_non_finite == "fail" and bad.any():
            raise ValueError(
                f"table {self.spec.name}: the gradients of {np.count_nonzero(bad)} of {keys.size}"
                f" keys are not finite, the first is that of key {keys[bad][0]}; nothing was"
                " applied. on_non_finite='skip' leaves such gradients out"
            )
        self.num_non_finite += int(np.count_nonzero(bad))
        return read_only((present & ~bad).astype(np.uint8))

    def _make_room(self, keys: Int64Array, flags: UInt8Array) -> None:
        """Make room for what an apply may add."""
        new_rows = new_counters = keys.size
        if not (self._rows.can_take(keys.size) and self._counters.can_take(keys.size)):
            # Near the end of the reserved memory: what is really missing may still fit.
            missing = self._rows.find(keys) < 0
            with_gradient = missing & (flags != 0) if flags.size else missing
            new_rows = int(np.count_nonzero(with_gradient))
            new_counters = int(np.count_nonzero(missing)) - new_rows
        self._rows.make_room(new_rows)
        if isinstance(self.spec.admission, CounterAdmission):
            self._counters.make_room(new_counters)

    def evict(
        self,
        min_version: int = 0,
        *,
        l2_weight_threshold: float = 0.0,
        rows_per_bucket: int = 0,
        evict_first: EvictFirst = "least_frequent",
    ) -> Int64Array:
        """Remove rows that are old, light or too many, and counters that are old.

        Args:
            min_version: rows and counters whose version is below it go.
            l2_weight_threshold: rows go of which half the squared sum of the vector is below it.
            rows_per_bucket: if not 0, the rows that each bucket may keep of those that are left.
            evict_first: which go first where a bucket has more; among equals the smaller keys.

        Returns:
            int64[n], the keys of all of them, ascending. Their rows are used again for new keys.
        """
        gone = expired(
            self._rows,
            dim=self.spec.dim,
            precision=self._precision,
            min_version=min_version,
            l2_weight_threshold=l2_weight_threshold,
        )
        self._rows.remove(gone)
        gone_counters = expired(
            self._counters,
            dim=0,
            precision=FLOAT32,
            min_version=min_version,
            l2_weight_threshold=0.0,
        )
        self._counters.remove(gone_counters)
        parts = [gone, gone_counters]
        if rows_per_bucket > 0:
            parts.append(
                overfull(self._rows, rows_per_bucket=rows_per_bucket, evict_first=evict_first)
            )
            self._rows.remove(parts[-1])
        keys = np.sort(np.concatenate(parts))
        self.num_evicted += keys.size
        return keys

    def export(self, buckets: tuple[int, int] = ALL_BUCKETS) -> TableEntries:
        """Copy the rows of the keys in buckets [first, end), sorted by (bucket, key).

        Each call looks through the whole index, so ask for many buckets at once.
        """
        keys, rows = self._rows.in_buckets(buckets)
        n = keys.size
        entries = TableEntries(
            keys=keys,
            frequency=np.empty(n, np.int64),
            version=np.empty(n, np.int64),
            vectors=np.empty((n, self.spec.dim), np.float32),
            slots=np.empty((n, self._initial_slots.size), np.float32),
        )
        read_rows(
            self._rows.arrays,
            rows,
            self._precision,
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

    def import_arrow(self, table: Any) -> None:
        """Insert or overwrite the rows of a pyarrow.Table, as `import_rows` does.

        Raises:
            ValueError: a column is wrong, see `embedding.arrow.from_arrow`.
            MemoryError: there is no room for the new keys.
        """
        from embedding.arrow import from_arrow

        self.import_rows(from_arrow(table, self.spec))

    def export_counters(self, buckets: tuple[int, int] = ALL_BUCKETS) -> CounterEntries:
        """Copy the counters of the keys in buckets [first, end), sorted by (bucket, key)."""
        keys, rows = self._counters.in_buckets(buckets)
        metadata = self._counters.arrays.metadata[rows]
        return CounterEntries(
            keys=keys,
            frequency=np.ascontiguousarray(metadata[:, FREQUENCY]),
            version=np.ascontiguousarray(metadata[:, VERSION]),
        )

    def export_bloom(self, buckets: tuple[int, int] = ALL_BUCKETS) -> BloomBlocks:
        """Copy the blocks of the Bloom filter of buckets [first, end) that hold anything."""
        if self._bloom is None:
            return BloomBlocks(np.empty(0, np.int64), np.empty((0, 0), np.uint8))
        return self._bloom.export(buckets)

    def bloom_block(self, bucket: int) -> npt.NDArray[Any]:
        """Return the Bloom counters of a bucket, a view; empty where the table has no filter."""
        return np.empty(0, np.uint8) if self._bloom is None else self._bloom.arrays.counters[bucket]

    def import_bloom(self, blocks: BloomBlocks) -> None:
        """Overwrite blocks of the Bloom filter.

        Raises:
            ValueError: the table has no filter, or one of another size.
        """
        if self._bloom is None:
            raise ValueError(f"table {self.spec.name} has no Bloom filter")
        self._bloom.import_(blocks)

    def import_rows(self, entries: TableEntries) -> None:
        """Insert or overwrite rows; a counter of the same key is removed.

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
            self._counters.remove(keys)
        write_rows(self._rows.arrays, rows, self._precision, frequency, version, vectors, slots)

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
            self._rows.remove(keys)
            self._bloom.raise_to(keys, frequency)
            return
        counters = self._counters.add(keys)
        self._rows.remove(keys)
        self._counters.arrays.metadata[counters, FREQUENCY] = frequency
        self._counters.arrays.metadata[counters, VERSION] = version

    def frequency(self, keys: Int64Array) -> Int64Array:
        """Return how often each key was seen, in its row or counter: int64[n], 0 if absent.

        Of a key without a row a Bloom filter may say too much.
        """
        found = self._metadata_of(keys, FREQUENCY, absent=0)
        if self._bloom is not None:
            found = np.where(self._rows.find(keys) >= 0, found, self._bloom.count(keys))
        return found

    def version(self, keys: Int64Array) -> Int64Array:
        """Return the step that last changed each row or counter: int64[n], -1 if absent."""
        return self._metadata_of(keys, VERSION, absent=-1)

    def _metadata_of(self, keys: Int64Array, column: int, *, absent: int) -> Int64Array:
        keys = input_array("keys", keys, _INT64, (len(keys),))
        counted = self._counters.metadata_of(keys, column, absent)
        rows = self._rows.find(keys)
        return np.where(rows >= 0, self._rows.metadata_of(keys, column, absent), counted)

    def top(self, n: int, by: RankBy = "frequency") -> TableEntries:
        """Copy the n rows that are highest, sorted by (value descending, key ascending).

        Args:
            n: how many, >= 0; a smaller table gives all of its rows.
            by: which value; the norm is the Euclidean one of the vector.

        Raises:
            ValueError: n or by is not one of these.
        """
        highest = TopRows(self.spec, n, by)
        for part in bucket_parts(len(self), 4 * self._rule.row_width(self.spec.dim)):
            highest.add(self.export(part))
        return highest.entries

    def frequency_histogram(self, of: Literal["rows", "unadmitted"] = "rows") -> Int64Array:
        """Count the frequencies of rows, or of counters of unadmitted keys, by powers of two.

        Returns:
            int64[64]: how many are 0, 1, 2 to 3, 4 to 7, ...; see `inspection.BIN_STARTS`. Of
            unadmitted keys all 0 where a Bloom filter counts them: it does not know its keys.

        Raises:
            ValueError: `of` is not one of these.
        """
        if of not in ("rows", "unadmitted"):
            raise ValueError(f"of must be rows or unadmitted, got {of!r}")
        rows = self._rows if of == "rows" else self._counters
        counts = frequency_histogram(np.empty(0, np.int64))
        for part in bucket_parts(len(rows), METADATA_BYTES):
            _, positions = rows.in_buckets(part)
            counts += frequency_histogram(rows.arrays.metadata[positions, FREQUENCY])
        return counts

    def memory(self) -> dict[str, int]:
        """Return the bytes taken by index, rows, metadata, counters and filter, and their total."""
        memory = self._rows.memory()
        memory["counters"] = sum(self._counters.memory().values())
        memory["bloom"] = 0 if self._bloom is None else self._bloom.nbytes
        memory["total"] = sum(memory.values())
        return memory
