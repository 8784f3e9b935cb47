"""The embedding variable: a table of rows that grows as keys appear."""

from typing import Literal, get_args

import numpy as np
import numpy.typing as npt

from embedding.kernels.arguments import input_array, output_array, read_only
from embedding.kernels.finite import all_finite, without_non_finite
from embedding.spec.ranges import require, require_finite, require_not_negative, require_one_of
from embedding.spec.table import TableSpec
from embedding.spec.tiers import Tiers
from embedding.table.admission import ALWAYS, Admission, admission_of, with_frequency
from embedding.table.eviction import EvictFirst, expired, overfull
from embedding.table.initial_values import InitialValues, fill_all_initial, initial_values_of
from embedding.table.passes import pull_rows, pull_without_rows, settle_keys
from embedding.table.precision import FLOAT32
from embedding.table.reservation import Budget
from embedding.table.row_update import RowUpdate
from embedding.table.state import TableState
from embedding.table.static_rows import StaticRows
from embedding.table.tier_slots import Slots
from embedding.table.transfer import write_vectors

Int64Array = npt.NDArray[np.int64]
Float32Array = npt.NDArray[np.float32]
UInt8Array = npt.NDArray[np.uint8]

KEYS_AT_ONCE = 16384  # their rows, 2 MB of 32 values, are still in the cache when they are updated

_INT64, _UINT32, _UINT8, _FLOAT32 = map(np.dtype, ("int64", "uint32", "uint8", "float32"))
_NO_COUNTS = read_only(np.empty(0, _UINT32))
_NO_FLAGS = read_only(np.empty(0, _UINT8))


class EmbeddingVariable(TableState):
    """A table of rows by key: pulled by reading, changed by `apply`, `evict` and imports only.

    Pulls may run beside one another, not beside a change: the owner sees to that. Inputs are
    never kept or written, and whatever is refused is refused before anything changes.

    Args:
        spec: what the table is.
        base: the table that `spec.base` names, which pulls of this one read.
        on_non_finite: what `apply` does about a gradient with NaN or infinity: it refuses all of
            them, or leaves that key's out and counts it.
        budget: what it may reserve, see `make_variables`; None: as a table that is made alone.
        tiers: where values are that memory is not to hold; None: all are in memory. It changes no
            value that is read.

    Attributes:
        num_evicted: rows and counters evicted so far.
        num_non_finite: gradients left out so far.

    Raises:
        ValueError: the base is missing or another one, or does not track the usage that is asked.
            Or tiers leave no room for a few rows in memory.
        MemoryError: address space for it can't be had.
        TierError: tiers.path can't have a file.
    """

    def __init__(
        self,
        spec: TableSpec,
        *,
        base: "EmbeddingVariable | None" = None,
        on_non_finite: Literal["fail", "skip"] = "fail",
        budget: Budget | None = None,
        tiers: Tiers | None = None,
    ) -> None:
        got = None if base is None else base.spec.name
        if got != spec.base:
            needed = "no base" if spec.base is None else f"table {spec.base} as its base"
            given = "none" if got is None else f"table {got}"
            raise ValueError(f"table {spec.name} needs {needed}, got {given}")
        require_one_of("on_non_finite", on_non_finite, ("fail", "skip"))
        super().__init__(spec, budget, tiers)
        self._static = self._counting = None
        if base is not None and spec.warm_start is not None:
            self._static = StaticRows(base, spec.warm_start, spec.dim)
        else:
            self._counting = base  # whose frequencies admit keys; nothing is counted here
            if base is not None:
                base.spec.require_usage(f"by the admission of table {spec.name}")
        self.num_evicted = 0
        self.num_non_finite = 0
        self._on_non_finite = on_non_finite
        self._initial = initial_values_of(
            spec.initializer, dim=spec.dim, name=spec.name, seed=spec.seed
        )
        self._default_value = np.float32(spec.default_value)
        self._update = RowUpdate(spec, self._rule)
        self._first_admission = admission_of(spec, self._counters.arrays, self._bloom)

    @property
    def _admission(self) -> Admission:
        """The rule of admission, with the counters where they are now: growth replaces them."""
        if not self._counts_keys and not len(self._counters):
            return self._first_admission
        return self._first_admission._replace(counters=self._counters.arrays)

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
        evaluates = counts is None
        counts = _NO_COUNTS if counts is None else input_array("counts", counts, _UINT32, (n,))
        if self._counting is not None:
            counts = with_frequency(counts, self._counting.frequency(keys))
        values = output_array("values", values, _FLOAT32, (n, self.spec.dim))
        admitted = output_array("admitted", admitted, _UINT8, (n,))
        admission = None if self.spec.admission is None else self._admission
        default, tiered = self._default_value, self._rows.tiered
        if tiered is None:
            pull_rows(
                self._rows.arrays, self._precision, admission, self._initial, default,
                keys, counts, step, values, admitted,
            )  # fmt: skip
        else:
            found = self._rows.find(keys)
            tiered.read_vectors(found, self._precision, values, evaluates=evaluates)
            pull_without_rows(
                self._precision, admission, self._initial, default,
                keys, counts, step, values, admitted, found,
            )  # fmt: skip
        if self._static is not None:
            self._static.fill(self._rows, keys, values, admitted)

    def prefetch(self, keys: Int64Array) -> None:
        """Read the rows of keys, int64[n], that are on the disk, as a pull will soon ask for them.

        It changes nothing that is read, and may run beside pulls. A table without tiers does
        nothing.

        Raises:
            ValueError: keys have another type or shape.
            TierError: the disk can't be read.
        """
        keys = input_array("keys", keys, _INT64, (len(keys),))
        if self._rows.tiered is not None:
            self._rows.tiered.prefetch(self._rows.find(keys))

    @property
    def is_plain(self) -> bool:
        """Whether a key's row is all that there is: in memory, float32, no rule, no other table.

        What was counted by a rule of before may be there all the same, see `num_unadmitted`.
        """
        alone = self._static is None and self._counting is None and self._rows.tiered is None
        return alone and self.spec.admission is None and self._precision == FLOAT32

    @property
    def initial_values(self) -> InitialValues:
        return self._initial

    def initial(self, keys: Int64Array) -> Float32Array:
        """Return the vector that each key, int64[n], would start with: float32[n, dim]."""
        keys = input_array("keys", keys, _INT64, (len(keys),))
        values = np.empty((len(keys), self.spec.dim), np.float32)
        fill_all_initial(values, self._initial, keys)
        return values

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

        A key with a row is counted, in a table that tracks usage, and updated where it has a
        gradient. One without a row gets one where it has a gradient (what was counted goes with
        it), else it is counted if the table's admission rule counts.

        Args:
            keys: int64[n], each once, which is not checked.
            counts: int64[n], occurrences of each key in this step, >= 0.
            gradients: float32[n, dim], sums over the step's samples.
            has_gradient: uint8[n], 0 where gradients[i] means nothing; None: 1 each.
            step: becomes the version of every row and counter that changes.
            scale: what sums are multiplied by, in float32: 1 / N.
            scalars: float64[k], see `optimizers.step_scalars`.

        Raises:
            ValueError: an array has another type or shape, a count is negative, scale or scalars
                are not finite or too many, or a gradient is not finite and `on_non_finite` is
                `fail`.
            MemoryError: there is no room for the new keys.
            TierError: rows on the disk can't be read or written; a part of the step was made.
        """
        n = len(keys)
        require_finite("scale", scale)
        keys = input_array("keys", keys, _INT64, (n,))
        counts = input_array("counts", counts, _INT64, (n,))
        gradients = input_array("gradients", gradients, _FLOAT32, (n, self.spec.dim))
        flags = _NO_FLAGS
        if has_gradient is not None:
            flags = input_array("has_gradient", has_gradient, _UINT8, (n,))
        if counts.size and counts.min() < 0:
            raise ValueError(f"counts must be >= 0, got {counts.min()}")
        numbers = self._rule.check_scalars(scalars)
        if not all_finite(gradients):
            flags, num_bad = without_non_finite(
                keys, gradients, flags, refuse=self._on_non_finite == "fail", table=self.spec.name
            )
            self.num_non_finite += num_bad
        self.make_room(keys, flags)
        new = None if self._bloom is None else np.flatnonzero(self._rows.find(keys) < 0)
        tiered = self._rows.tiered
        at_once = KEYS_AT_ONCE if tiered is None else tiered.at_once
        for start in range(0, n, at_once):
            part = slice(start, start + at_once)
            positions = self._settle(keys[part], counts[part], flags[part], step)
            self._update(
                self._rows.arrays.values,
                positions,
                keys[part],
                gradients[part],
                step=step,
                scale=np.float32(scale),
                scalars=numbers,
            )
        if self._bloom is not None:
            # After all rows were made, so that none starts with what this step brings for others.
            self._bloom.add(keys[new], counts[new])

    def _settle(
        self, keys: Int64Array, counts: Int64Array, flags: UInt8Array, step: int
    ) -> Int64Array:
        """Count keys and make rows; return the row of each that is updated, else -1."""
        admission = None
        if self.spec.admission is not None or len(self._counters):  # a rule of now, or of before
            admission = self._admission
            if self._counting is not None:
                admission = admission._replace(kind=ALWAYS)
        static = self._static
        starts = None if static is None else static.starts(self._rows, keys, flags)
        slots = self._bring(keys, flags)
        self._rows.before_change(keys)
        self._counters.before_change(keys)
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
            self.spec.track_usage,
            step,
            positions,
            slots,
        )
        if starts is not None:
            made = positions[starts.made]
            write_vectors(self._rows.arrays, made, self._precision, starts.vectors)
        return positions

    def _bring(self, keys: Int64Array, flags: UInt8Array) -> Slots | None:
        """Bring the rows of keys that will be updated into memory; return where they are then."""
        tiered = self._rows.tiered
        if tiered is None:
            return None
        rows = self._rows.find(keys if flags.size == 0 else keys[flags != 0])
        tiered.bring(rows, int(np.count_nonzero(rows < 0)))
        return tiered.slots

    def make_room(self, keys: Int64Array, flags: UInt8Array) -> None:
        """Make room for what an apply may add; flags: its `has_gradient`, or empty."""
        new_rows = new_counters = keys.size
        can_count = not self._counts_keys or self._counters.can_take(keys.size)
        if not (self._rows.can_take(keys.size) and can_count):
            # Near the end of the reserved memory: what is really missing may still fit.
            missing = self._rows.find(keys) < 0
            with_gradient = missing & (flags != 0) if flags.size else missing
            new_rows = int(np.count_nonzero(with_gradient))
            new_counters = int(np.count_nonzero(missing)) - new_rows
        self._rows.make_room(new_rows)
        if self._counts_keys:
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

        Raises:
            ValueError: an argument is out of range, or the table does not track the usage that a
                rule needs.
        """
        if min_version > 0 or rows_per_bucket > 0:
            self.spec.require_usage("to evict by version or number of rows")
        require_one_of("evict_first", evict_first, get_args(EvictFirst))
        require(rows_per_bucket >= 0, f"rows_per_bucket must be >= 0, got {rows_per_bucket}")
        require_not_negative("l2_weight_threshold", l2_weight_threshold)
        gone = self._mine(
            expired(
                self._rows,
                dim=self.spec.dim,
                precision=self._precision,
                min_version=min_version,
                l2_weight_threshold=l2_weight_threshold,
            )
        )
        self._remove(self._rows, gone)
        gone_counters = self._mine(
            expired(
                self._counters,
                dim=0,
                precision=FLOAT32,
                min_version=min_version,
                l2_weight_threshold=0.0,
            )
        )
        self._remove(self._counters, gone_counters)
        parts = [gone, gone_counters]
        if rows_per_bucket > 0:
            most = overfull(self._rows, rows_per_bucket=rows_per_bucket, evict_first=evict_first)
            parts.append(self._mine(most))
            self._remove(self._rows, parts[-1])
        keys = np.sort(np.concatenate(parts))
        self.num_evicted += keys.size
        return keys
