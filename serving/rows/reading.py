"""The rows of all lookups of a request in one call, written where the model reads them.

A pull by tables takes longer for its calls than for the rows where a request has few samples; and
all of its cache misses come one after another. Here the lines of the indexes are asked for first,
of all tables, then the rows, then these are copied. Nothing is removed of keys that come twice.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
from numba import carray, njit

from embedding.kernels.addresses import address_of, pointer_at
from embedding.kernels.lines import copy_row
from embedding.kernels.prefetch import prefetch, prefetch_row
from embedding.table.index import WORDS, Geometry, home_of, line_of, search_from
from embedding.table.precision import FLOAT32, read_vector
from serving.rows.layers import LayerArrays
from serving.rows.paging import NONE, FileTable
from serving.rows.quantized import INT8, read_int8
from serving.rows.table import ServedTable
from worker.inference import ReadTable
from worker.spec import Lookup

Int64s = npt.NDArray[np.int64]
Float32s = npt.NDArray[np.float32]

_BLOCK = 512  # keys whose lines and rows are asked for before they are read

# What the kernel knows of a lookup: two layers, and then how vectors lie and where they go.
_LINES, _INDEX, _VALUES, _ROWS, _OF_LAYER = range(5)
_WIDTH, _KIND, _DIM, _COLUMN, _FIELDS = (2 * _OF_LAYER + i for i in range(5))


class RowReader:
    """Reads samples that have one key for each lookup, from tables as they are now.

    Args:
        lookups: of the model.
        tables: that they name.
    """

    def __init__(self, lookups: Sequence[Lookup], tables: Sequence[ServedTable]) -> None:
        self._tables = tables  # whose arrays must live
        self._columns = [slice(each.column, each.column + each.dim) for each in lookups]
        self._places = np.empty((len(lookups), _FIELDS), np.int64)
        for place, lookup, table in zip(self._places, lookups, tables, strict=True):
            base, overlay = table.layers
            place[:_OF_LAYER] = _layer(base)
            place[_OF_LAYER : 2 * _OF_LAYER] = _layer(overlay)
            width = base.values.shape[1]
            place[2 * _OF_LAYER :] = (width, table.kept_as, lookup.dim, lookup.column)
        self._missing = np.empty(0, np.int64)
        # All tables are paged, by one cache, or none is.
        paged = [table.paged for table in tables if table.paged is not None]
        self._cache = paged[0].cache if paged else None
        self._files = FileTable([file for each in paged for file in each.files])
        firsts = [file.first for each in paged for file in each.files]
        self._firsts = np.array(firsts, np.int64).reshape(-1, 2)

    @classmethod
    def of(cls, lookups: Sequence[Lookup], tables: Mapping[str, ReadTable]) -> "RowReader | None":
        """Return what reads for these lookups; None where a key's vector is not just one row."""
        found = []
        for lookup in lookups:
            table = tables.get(lookup.physical[0].table)
            plain = len(lookup.physical) == 1 and lookup.physical[0].keys == "own"
            if not plain or lookup.assembled or not isinstance(table, ServedTable):
                return None
            found.append(table)
        return cls(lookups, found)

    def read(
        self, keys: Int64s, starts: Int64s, shared: Int64s, firsts: Int64s, out: Float32s
    ) -> None:
        """Write the vector of each key.

        Args:
            keys: int64, one key for each sample, lookup after lookup; of shared lookups for each
                run of samples.
            starts: int64[lookups + 1], each lookup's part of them.
            shared: int64[lookups], 1 where the lookup is shared by runs.
            firsts: int64[runs], where vectors of runs are written.
            out: float32[n, W], C-contiguous, written: the pooled input of the model, of runs for
                their first samples alone.
        """
        if self._missing.size < keys.size:
            self._missing = np.empty(keys.size, np.int64)
        if self._cache is None:
            count = _read_rows(self._places, keys, starts, shared, firsts, out, self._missing)
        else:
            rows, of_files = np.empty((2, keys.size), np.int64)
            count = _find_rows(
                self._places, keys, starts, self._firsts, rows, of_files, self._missing
            )
            words = self._cache.read(rows, of_files, self._files)
            _write_rows(self._places, rows, words, starts, shared, firsts, out)
        if count:
            self._read_others(self._missing[:count], keys, starts, shared, firsts, out)

    def _read_others(
        self, missing: Int64s, keys: Int64s, starts: Int64s, shared: Int64s, firsts: Int64s,
        out: Float32s,
    ) -> None:  # fmt: skip
        """Read what has no row by its table, whose rule says what it reads as."""
        numbers = np.searchsorted(starts, missing, "right") - 1
        for number in np.unique(numbers).tolist():
            these = missing[numbers == number]
            table, columns = self._tables[number], self._columns[number]
            vectors = np.empty((these.size, columns.stop - columns.start), np.float32)
            table.pull(keys[these], None, vectors, np.empty(these.size, np.uint8))
            rows = these - starts[number]
            out[firsts[rows] if shared[number] else rows, columns] = vectors


def _layer(layer: LayerArrays) -> tuple[int, ...]:
    lines = layer.entries.shape[0]
    return (
        lines,
        address_of(layer.entries) if lines else 0,
        address_of(layer.values) if layer.values.size else 0,
        layer.values.shape[0],
    )


@njit(cache=True, nogil=True, inline="always")
def _index_at(place, layer):  # type: ignore[no-untyped-def]
    lines = place[layer + _LINES]
    entries = carray(pointer_at(place[layer + _INDEX]), (lines, WORDS), np.int64)
    return entries, Geometry(np.uint64(lines), np.uint64(0), np.uint64(0))


@njit(cache=True, nogil=True, inline="always")
def _values_at(place, layer):  # type: ignore[no-untyped-def]
    shape = (place[layer + _ROWS], place[_WIDTH])
    return carray(pointer_at(place[layer + _VALUES]), shape, np.float32)


@njit(cache=True, nogil=True)
def _ask(place, layer, keys, homes):  # type: ignore[no-untyped-def]
    """Write homes, and ask for their lines."""
    if place[layer + _LINES] == 0:
        return
    entries, geometry = _index_at(place, layer)
    for i in range(keys.size):
        homes[i] = home_of(keys[i], geometry)
        prefetch(entries, line_of(homes[i]), 0)


@njit(cache=True, nogil=True)
def _find(place, layer, keys, homes, rows):  # type: ignore[no-untyped-def]
    """Write the row of each key that has one in a layer, and ask for it.

    Without a row it is -1 where the layer says nothing, -2 where it says that there is none.
    """
    if place[layer + _LINES] == 0:
        rows[: keys.size] = -1
        return
    entries, geometry = _index_at(place, layer)
    values, width = _values_at(place, layer), place[_WIDTH]
    for i in range(keys.size):
        row, _ = search_from(entries, homes[i], geometry.lines, keys[i])
        if row >= values.shape[0]:
            row = -2
        rows[i] = row
        if row >= 0:
            prefetch_row(values, row, width)


@njit(cache=True, nogil=True)
def _read_rows(  # type: ignore[no-untyped-def]
    places, keys, starts, shared, firsts, out, missing
):
    """Write the vectors of keys that have a row; list the others, return how many."""
    below_homes, above_homes = np.empty(_BLOCK, np.uint64), np.empty(_BLOCK, np.uint64)
    below, above = np.empty(_BLOCK, np.int64), np.empty(_BLOCK, np.int64)
    count, num_lookups = 0, places.shape[0]
    row_of_one = np.empty(1, np.int64)
    one = np.empty((1, max(places[:, _DIM].max(), 1) if num_lookups else 1), np.float32)
    flat, one_flat, pooled_width = out.reshape(-1), one.reshape(-1), out.shape[1]
    begin = 0
    for start in range(0, keys.size, _BLOCK):
        end = min(start + _BLOCK, keys.size)
        while starts[begin + 1] <= start:
            begin += 1
        for step in range(3):
            number = begin
            while number < num_lookups and starts[number] < end:
                first, last = max(start, starts[number]), min(end, starts[number + 1])
                at, to = first - start, last - start
                place, these = places[number], keys[first:last]
                if step == 0:
                    _ask(place, 0, these, below_homes[at:to])
                    _ask(place, _OF_LAYER, these, above_homes[at:to])
                elif step == 1:
                    _find(place, 0, these, below_homes[at:to], below[at:to])
                    _find(place, _OF_LAYER, these, above_homes[at:to], above[at:to])
                else:
                    dim, column, kind = place[_DIM], place[_COLUMN], place[_KIND]
                    width = place[_WIDTH]
                    below_values, above_values = _values_at(place, 0), _values_at(place, _OF_LAYER)
                    for i in range(at, to):
                        sample = start + i - starts[number]
                        if shared[number]:
                            sample = firsts[sample]
                        target = sample * pooled_width + column
                        row, values = above[i], above_values
                        if row == -1:
                            row, values = below[i], below_values
                        if row < 0:
                            missing[count] = start + i
                            count += 1
                        elif kind == FLOAT32:
                            copy_row(values.reshape(-1), row * width, dim, flat, target)
                        else:
                            if kind == INT8:
                                row_of_one[0] = row
                                read_int8(values, row_of_one, one[:, :dim])
                            else:
                                read_vector(values, row, kind, one, 0, dim)
                            copy_row(one_flat, 0, dim, flat, target)
                number += 1
    return count


@njit(cache=True, nogil=True)
def _find_rows(  # type: ignore[no-untyped-def]
    places, keys, starts, first_rows, rows, of_files, missing
):
    """Write the number of each key's row and the place of its file; list keys without a row.

    Args:
        first_rows: int64[lookups, 2], the numbers of the first rows of both layers.

    Returns:
        how many keys have none, whose number is NONE.
    """
    below_homes, above_homes = np.empty(_BLOCK, np.uint64), np.empty(_BLOCK, np.uint64)
    below, above = np.empty(_BLOCK, np.int64), np.empty(_BLOCK, np.int64)
    count = 0
    for number in range(places.shape[0]):
        place = places[number]
        for start in range(starts[number], starts[number + 1], _BLOCK):
            size = min(start + _BLOCK, starts[number + 1]) - start
            these = keys[start : start + size]
            _ask(place, 0, these, below_homes)
            _ask(place, _OF_LAYER, these, above_homes)
            _find(place, 0, these, below_homes, below)
            _find(place, _OF_LAYER, these, above_homes, above)
            for i in range(size):
                layer = 0 if above[i] == -1 else 1
                row = below[i] if layer == 0 else above[i]
                of_files[start + i] = 2 * number + layer
                rows[start + i] = first_rows[number, layer] + row if row >= 0 else NONE
                if row < 0:
                    missing[count] = start + i
                    count += 1
    return count


@njit(cache=True, nogil=True)
def _write_rows(  # type: ignore[no-untyped-def]
    places, rows, words, starts, shared, firsts, out
):
    """Write the vectors of keys that have a row from what layers have of them."""
    num_lookups = places.shape[0]
    row_of_one = np.empty(1, np.int64)
    one = np.empty((1, max(places[:, _DIM].max(), 1) if num_lookups else 1), np.float32)
    flat, one_flat, words_flat = out.reshape(-1), one.reshape(-1), words.reshape(-1)
    for number in range(num_lookups):
        place = places[number]
        dim, column, kind = place[_DIM], place[_COLUMN], place[_KIND]
        for i in range(starts[number], starts[number + 1]):
            if rows[i] == NONE:
                continue
            sample = i - starts[number]
            if shared[number]:
                sample = firsts[sample]
            target = sample * out.shape[1] + column
            if kind == FLOAT32:
                copy_row(words_flat, i * words.shape[1], dim, flat, target)
                continue
            if kind == INT8:
                row_of_one[0] = i
                read_int8(words, row_of_one, one[:, :dim])
            else:
                read_vector(words, i, kind, one, 0, dim)
            copy_row(one_flat, 0, dim, flat, target)
