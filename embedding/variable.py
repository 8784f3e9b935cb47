"""The embedding variable: a table of rows that grows as keys appear."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from embedding.admission import ALWAYS, Admission, admission_of, with_frequency
from embedding.arguments import input_array, output_array, read_only
from embedding.bloom import BloomBlocks, BloomFilter
from embedding.counters import CounterEntries
from embedding.eviction import EvictFirst, expired, overfull
from embedding.initial_values import initial_values_of
from embedding.kernels import pull_rows, settle_keys
from embedding.key_maps import static_keys
from embedding.optimizers import rule_for
from embedding.rows import FREQUENCY, VERSION, Rows
from embedding.spec import BloomAdmission, CounterAdmission, FrequencyAdmission, TableSpec

Int64Array = npt.NDArray[np.int64]
Float32Array = npt.NDArray[np.float32]
UInt8Array = npt.NDArray[np.uint8]

ALL_BUCKETS = (0, 4096)


@dataclass(frozen=True, slots=True)
class TableEntries:
    """Rows as columns.

    Args:
        keys: int64[n].
        frequency: int64[n].
        version: int64[n].
        vectors: float32[n, dim].
        slots: float32[n, sum of the slots' widths], see `OptimizerRule`.
    """

    keys: Int64Array
    frequency: Int64Array
    version: Int64Array
    vectors: Float32Array
    slots: Float32Array


_INT64, _UINT32, _UINT8, _FLOAT32 = map(np.dtype, ("int64", "uint32", "uint8", "float32"))
_NO_COUNTS = read_only(np.empty(0, _UINT32))
_NO_FLAGS = read_only(np.empty(0, _UINT8))
_NO_KEYS = read_only(np.empty(0, _INT64))


class EmbeddingVariable:
    """A table of rows by key: pulled by reading, changed by `apply`, `evict` and imports only.

    Pulls may run beside one another, not beside a change: the owner sees to that. Inputs are
    never kept or written, and whatever is refused is refused before anything changes.

    Args:
        spec: what the table is.
        base: the table that `spec.base` names, which pulls of this one read.

    Raises:
        ValueError: the base is missing or another one.
    """

    def __init__(self, spec: TableSpec, *, base: "EmbeddingVariable | None" = None) -> None:
        got = None if base is None else base.spec.name
        if got != spec.base:
            raise ValueError(f"table {spec.name} needs base {spec.base}, got {got}")
        self.spec: TableSpec = spec
        self._base = base
        self.num_evicted = 0
        self._rule = rule_for(spec.optimizer, sparse=True)
        self._initial = initial_values_of(
            spec.initializer, dim=spec.dim, name=spec.name, seed=spec.seed
        )
        self._initial_slots = self._rule.initial_slots(spec.dim)
        self._default_value = np.float32(spec.default_value)
        self._rows = Rows(self._rule.row_width(spec.dim))
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
        if self._base is not None and self.spec.warm_start is None:
            counts = with_frequency(counts, self._base.frequency(keys))
        output_array("values", values, _FLOAT32, (n, self.spec.dim))
        output_array("admitted", admitted, _UINT8, (n,))
        pull_rows(
            self._rows.arrays,
            self._admission,
            self._initial,
            self._default_value,
            keys,
            counts,
            step,
            values,
            admitted,
        )
        if self.spec.warm_start is not None:
            new = np.flatnonzero((self._rows.find(keys) < 0) & (admitted != 0))
            values[new] = self._start_vectors(keys[new])

    def _start_vectors(self, keys: Int64Array) -> Float32Array:
        """Return what rows of these keys start with in a table with a warm start."""
        base, warm_start = self._base, self.spec.warm_start
        assert base is not None, "named by warm_start"
        assert warm_start is not None, "asked by the caller"
        vectors = np.empty((keys.size, self.spec.dim), np.float32)
        static = static_keys(keys, warm_start.rows_per_bucket)
        base.pull(static, None, vectors, np.empty(keys.size, np.uint8))
        return vectors

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
            ValueError: an array has another type or shape, or the number of scalars is wrong.
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
        self._make_room(keys, flags)
        new = None if self._bloom is None else np.flatnonzero(self._rows.find(keys) < 0)
        made, starts = self._warm_starts(keys, flags)
        admission = self._admission
        if isinstance(self.spec.admission, FrequencyAdmission):
            admission = admission._replace(kind=ALWAYS)  # nothing is counted here
        positions = np.empty(n, np.int64)
        settle_keys(
            self._rows.arrays,
            admission,
            self._initial,
            self._initial_slots,
            keys,
            counts,
            flags,
            step,
            positions,
        )
        if self._bloom is not None:
            # After all rows were made, so that none starts with what this step brings for others.
            self._bloom.add(keys[new], counts[new])
        values = self._rows.arrays.values
        values[positions[made], : self.spec.dim] = starts
        self._rule.run(values, positions, gradients, np.float32(scale), numbers)

    def _warm_starts(self, keys: Int64Array, flags: UInt8Array) -> tuple[Int64Array, Float32Array]:
        """Return which keys will get a row that starts from another table's, and its vector.

        It is the vector from before this step, as a pull has shown it: a step is applied to the
        table of static rows after this one.
        """
        if self.spec.warm_start is None:
            return _NO_KEYS, np.empty((0, self.spec.dim), np.float32)
        missing = self._rows.find(keys) < 0
        made = np.flatnonzero(missing & (flags != 0) if flags.size else missing)
        return made, self._start_vectors(keys[made])

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
            min_version=min_version,
            l2_weight_threshold=l2_weight_threshold,
        )
        self._rows.remove(gone)
        gone_counters = expired(
            self._counters, dim=0, min_version=min_version, l2_weight_threshold=0.0
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
        values = self._rows.arrays.values[rows]
        metadata = self._rows.arrays.metadata[rows]
        return TableEntries(
            keys=keys,
            frequency=np.ascontiguousarray(metadata[:, FREQUENCY]),
            version=np.ascontiguousarray(metadata[:, VERSION]),
            vectors=np.ascontiguousarray(values[:, : self.spec.dim]),
            slots=np.ascontiguousarray(values[:, self.spec.dim :]),
        )

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
        self._counters.remove(keys)
        self._rows.arrays.metadata[rows, FREQUENCY] = frequency
        self._rows.arrays.metadata[rows, VERSION] = version
        self._rows.arrays.values[rows, :dim] = vectors
        self._rows.arrays.values[rows, dim:] = slots

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

    def memory(self) -> dict[str, int]:
        """Return the bytes taken by index, rows, metadata, counters and filter, and their total."""
        memory = self._rows.memory()
        memory["counters"] = sum(self._counters.memory().values())
        memory["bloom"] = 0 if self._bloom is None else self._bloom.nbytes
        memory["total"] = sum(memory.values())
        return memory
