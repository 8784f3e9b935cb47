"""A table that is only read, from layers that several processes may share."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from embedding import TableSpec
from embedding.kernels.arguments import input_array, output_array
from embedding.spec.admission import (
    BloomAdmission,
    CounterAdmission,
    FrequencyAdmission,
    ProbabilisticAdmission,
)
from embedding.table.admission import ALWAYS, BLOOM, COUNTER, PROBABILISTIC
from embedding.table.bloom import BloomSize
from embedding.table.initial_values import initial_values_of
from embedding.table.key_maps import static_keys
from embedding.table.precision import kind_of
from serving.rows.layers import LayerArrays, Rule, find_layers, frequencies, pull_layers
from serving.rows.paging import FileTable, RowCache, VectorFile

Int64Array = npt.NDArray[np.int64]
Float32Array = npt.NDArray[np.float32]
UInt8Array = npt.NDArray[np.uint8]

_INT64, _UINT8, _FLOAT32 = map(np.dtype, ("int64", "uint8", "float32"))
_NO_COUNTS = np.empty(0, np.int64)
_NO_FILTER = np.zeros((0, 1), np.uint8)
_NOT_FETCHED = np.empty((0, 1), np.float32)


@dataclass(frozen=True, slots=True)
class PagedLayers:
    """Where vectors are that memory is not to hold: files of the base and of the overlay.

    Args:
        cache: of this process, which reads them.
        files: of both layers.
    """

    cache: RowCache
    files: tuple[VectorFile, VectorFile]


class Filters(Protocol):
    """Which counters of a table's Bloom filter reach a count: uint8[4096, counters of a block]."""

    def __call__(self, min_count: int, /) -> UInt8Array: ...


class ServedTable:
    """Rows by key as a checkpoint has them; what it reads can be changed by nobody.

    A pull gives what `EmbeddingVariable.pull` gives with count 0, bit for bit where
    rows are kept as they were trained.

    Args:
        spec: of the table in training.
        base, overlay: its layers; what the overlay says of a key holds.
        kept_as: how they keep vectors, as `serving.rows.quantized.kind_for` has it.
        filters: of a table whose admission is a Bloom filter.
        read: the table that `spec.base` names.
        paged: where vectors are, where the layers' own arrays are not to be read.
    """

    def __init__(
        self,
        spec: TableSpec,
        base: LayerArrays,
        overlay: LayerArrays,
        *,
        kept_as: int,
        filters: Filters | None = None,
        read: "ServedTable | None" = None,
        paged: PagedLayers | None = None,
    ) -> None:
        self.spec = spec
        self._base = base
        self._overlay = overlay
        self._filters = filters
        self._read = read
        self.paged = paged
        if paged is not None:
            self._files = FileTable(list(paged.files))
            self._first = np.array([each.first for each in paged.files], np.int64)
        self.kept_as = kept_as
        self._precision = kind_of(spec.value_dtype)
        self._default_value = np.float32(spec.default_value)
        self._initial = initial_values_of(
            spec.initializer, dim=spec.dim, name=spec.name, seed=spec.seed
        )
        self._rule = self._rule_of(spec)

    @property
    def layers(self) -> tuple[LayerArrays, LayerArrays]:
        """The base and the overlay."""
        return self._base, self._overlay

    def _rule_of(self, spec: TableSpec) -> Rule:
        rule = spec.admission
        if rule is None:
            return Rule(ALWAYS, 0, _NO_FILTER, 1)
        if isinstance(rule, ProbabilisticAdmission):
            return Rule(PROBABILISTIC, 0, _NO_FILTER, 1)
        if isinstance(rule, BloomAdmission):
            return self._bloom_rule(rule.min_count)
        return Rule(COUNTER, rule.min_count, _NO_FILTER, 1)

    def _bloom_rule(self, min_count: int) -> Rule:
        assert isinstance(self.spec.admission, BloomAdmission)
        assert self._filters is not None, "made with the table"
        hashes = BloomSize.of(self.spec.admission).hashes
        return Rule(BLOOM, min_count, self._filters(min_count), hashes)

    def pull(
        self, keys: Int64Array, counts: None, values: Float32Array, admitted: UInt8Array
    ) -> None:
        """Read the vector of each key.

        Args:
            keys: int64[n], any values, repeated ones too.
            counts: None: whoever only reads, has seen a key 0 times.
            values: float32[n, dim], written.
            admitted: uint8[n], written: 1 where the key has a row or would be admitted, else 0.

        Raises:
            ValueError: an array has another type or shape.
            ServingError: vectors in a file can't be read.
        """
        n = len(keys)
        keys = input_array("keys", keys, _INT64, (n,))
        values = output_array("values", values, _FLOAT32, (n, self.spec.dim))
        has_row = np.empty(n, np.uint8)
        asked = _NO_COUNTS
        if self._read is not None and isinstance(self.spec.admission, FrequencyAdmission):
            asked = self._read.frequency(keys, self.spec.admission.min_count)
        pull_layers(
            self._base,
            self._overlay,
            _NOT_FETCHED if self.paged is None else self._fetch(self.paged, keys),
            self.kept_as,
            self._precision,
            self._rule,
            self._initial,
            self._default_value,
            keys,
            asked,
            values,
            output_array("admitted", admitted, _UINT8, (n,)),
            has_row,
        )
        if self._read is not None and self.spec.warm_start is not None:
            new = np.flatnonzero((has_row == 0) & (admitted != 0))
            if new.size:
                vectors = np.empty((new.size, self.spec.dim), np.float32)
                static = static_keys(keys[new], self.spec.warm_start.rows_per_bucket)
                self._read.pull(static, None, vectors, np.empty(new.size, np.uint8))
                values[new] = vectors

    def _fetch(self, paged: PagedLayers, keys: Int64Array) -> Float32Array:
        """Return what the layers have of each key's row, of a key without one anything."""
        rows, of_layer = np.empty((2, keys.size), np.int64)
        find_layers(self._base, self._overlay, keys, self._first, rows, of_layer)
        return paged.cache.read(rows, of_layer, self._files)

    def frequency(self, keys: Int64Array, enough: int) -> Int64Array:
        """Return how often each key was seen, int64[n], exact below `enough` but for filters."""
        rule = self._rule
        if rule.kind == BLOOM:
            rule = self._bloom_rule(enough)
        out = np.empty(keys.size, np.int64)
        frequencies(self._base, self._overlay, rule, keys, out)
        return out


def counting_tables(specs: Sequence[TableSpec]) -> dict[str, set[int]]:
    """Return the tables whose frequencies admit keys of others, and the counts that these ask."""
    found: dict[str, set[int]] = {}
    for spec in specs:
        if isinstance(spec.admission, FrequencyAdmission):
            found.setdefault(spec.admission.table, set()).add(spec.admission.min_count)
    return found


def thresholds(specs: Sequence[TableSpec]) -> dict[str, list[int]]:
    """Return for each table with a Bloom filter the counts that something asks of it."""
    asked = counting_tables(specs)
    return {
        spec.name: sorted({spec.admission.min_count, *asked.get(spec.name, ())})
        for spec in specs
        if isinstance(spec.admission, BloomAdmission)
    }


def keeps_counters(spec: TableSpec, counting: Mapping[str, set[int]]) -> tuple[bool, int]:
    """Return whether counts of rowless keys are of use, and from which on."""
    if spec.name in counting:
        return True, 1
    if isinstance(spec.admission, CounterAdmission):
        return True, spec.admission.min_count
    return False, 0
