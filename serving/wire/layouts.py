"""Requests of binary tensors that are laid out as one before: only their bytes are read.

Whoever asks again and again sends the same JSON before other values: the same columns of the same
shapes. To read and check it takes longer than to compute a small request. So what it says is kept
where it is of the most usual kind, float32 and one int64 for each sample or for all of them, all
of them binary. An id that comes first, as clients write it, may differ.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np
import numpy.typing as npt
from numba import njit

from serving.requests import RequestSchema, Samples
from serving.usual import Split, UsualSamples
from serving.wire.inference import Wanted, decode, described

Value = TypeVar("Value", np.float32, np.int64)

# Where clients write what each request has for itself; of characters that mean themselves.
_ID = re.compile(rb'\{"id": ?"([ !#-\[\]-~]*)", ?')
_NAMED = b"id "  # in front of the rest of such a head, with which no JSON object begins
_MOST_LAYOUTS = 256
_MOST_BYTES = 64 << 10  # of a head that is kept


@dataclass(frozen=True, slots=True)
class _Layout:
    """Where a request's tensors are.

    Args:
        samples: n.
        split: which columns come for each sample, and which once.
        dense, keys, shared_dense, shared_keys: int64[columns], where each of the split's columns
            begins behind the JSON.
        num_bytes: of all of them.
    """

    wanted: Wanted
    samples: int
    split: Split
    dense: npt.NDArray[np.int64]
    keys: npt.NDArray[np.int64]
    shared_dense: npt.NDArray[np.int64]
    shared_keys: npt.NDArray[np.int64]
    num_bytes: int


class Decoder:
    """Reads requests of the Open Inference Protocol, and knows again what looks alike.

    Args:
        schema: of the model.
    """

    def __init__(self, schema: RequestSchema) -> None:
        self._schema = schema
        self._usual = schema.usual
        self._layouts: dict[bytes, _Layout] = {}
        self._last: tuple[bytes, _Layout] | None = None  # of a request that had no id
        one = np.zeros(1, np.int64)  # compiled now, not by the first request
        given = np.frombuffer(bytes(8), np.uint8)
        _copied(given, 0, one, 1, np.int64)
        _read_columns(given, 0, one, one, np.empty((1, 1), np.float32), np.empty((1, 1), np.int64))

    def decode(self, body: bytes, json_bytes: int | None) -> tuple[Samples, Wanted]:
        """As `inference.decode`."""
        usual = self._usual
        if self._last is not None and usual is not None and json_bytes == len(self._last[0]):
            known, layout = self._last
            if body.startswith(known) and len(body) - json_bytes == layout.num_bytes:
                batch = _read(body, json_bytes, layout, usual)
                if batch is not None:
                    return batch, layout.wanted
        small = json_bytes is not None and 0 < json_bytes <= min(len(body), _MOST_BYTES)
        if json_bytes is None or not small or usual is None:
            return decode(body, json_bytes, self._schema)
        head = body[:json_bytes]
        named = _ID.match(head)
        key = head if named is None else _NAMED + head[named.end() :]
        found_layout = self._layouts.get(key)
        if found_layout is not None and len(body) - json_bytes == found_layout.num_bytes:
            batch = _read(body, json_bytes, found_layout, usual)
            if batch is not None:
                wanted = found_layout.wanted
                if named is not None:
                    return batch, replace(wanted, id=named[1].decode())
                self._last = (head, found_layout)
                return batch, wanted
        found, wanted = decode(body, json_bytes, self._schema)
        if found_layout is None:
            made = self._layout_of(head, found.num_samples, wanted, usual)
            if made is not None:
                if len(self._layouts) >= _MOST_LAYOUTS:
                    self._layouts.clear()
                self._layouts[key] = made
        return found, wanted

    def _layout_of(
        self, head: bytes, samples: int, wanted: Wanted, usual: UsualSamples
    ) -> _Layout | None:
        """Return how a request that was read is laid out; None: it is no usual one."""
        features = self._schema.features
        types = dict.fromkeys(features.dense, "FP32")
        for feature in features.sparse:
            if types.setdefault(feature.column, "INT64") != "INT64":
                return None
        begins: dict[str, int] = {}
        context: set[str] = set()
        start = 0
        for name, kind, shape, size in described(head, self._schema):
            if size is None or types.get(name) != kind or shape[1:] not in ((), (1,)):
                return None
            if shape[0] != samples:
                context.add(name)
            begins[name] = start
            start += size
        split = usual.split(frozenset(context))
        return _Layout(
            wanted,
            samples,
            split,
            _places(begins, split.dense),
            _places(begins, split.keys),
            _places(begins, split.shared_dense),
            _places(begins, split.shared_keys),
            start,
        )


def _read(body: bytes, start: int, layout: _Layout, usual: UsualSamples) -> Samples | None:
    """Return the samples; None where a value has to be looked at."""
    given, n = np.frombuffer(body, np.uint8), layout.samples
    if not layout.split.shares:
        values = np.empty((n, layout.dense.size), np.float32)
        keys = np.empty((layout.keys.size, n), np.int64)
        if not _read_columns(given, start, layout.dense, layout.keys, values, keys):
            return None
        return usual.of_samples(values, keys)
    dense = _copied(given, start, layout.dense, n, np.float32)
    keys = _copied(given, start, layout.keys, n, np.int64)
    shared_dense = _copied(given, start, layout.shared_dense, 1, np.float32)
    shared_keys = _copied(given, start, layout.shared_keys, 1, np.int64)
    return usual.of_arrays(layout.split, dense, keys, shared_dense, shared_keys)


def _copied(
    given: npt.NDArray[np.uint8],
    start: int,
    places: npt.NDArray[np.int64],
    n: int,
    dtype: type[Value],
) -> npt.NDArray[Value]:
    out = np.empty((places.size, n), dtype)
    if places.size:
        _copy(given, start, places, out.view(np.uint8))
    return out


def _places(begins: Mapping[str, int], names: Iterable[str]) -> npt.NDArray[np.int64]:
    return np.array([begins[name] for name in names], np.int64)


@njit(cache=True, nogil=True)
def _copy(body, start, places, out):  # type: ignore[no-untyped-def]
    """Copy the bytes of each column, uint8[columns, any], from where they begin behind `start`."""
    size = out.shape[1]
    for column in range(places.size):
        first = start + places[column]
        source, target = body[first : first + size], out[column]
        for i in range(size):  # of slices, so that no index may be negative: 16 bytes at once
            target[i] = source[i]


@njit(cache=True, nogil=True)
def _read_columns(body, start, dense_places, key_places, dense, keys):  # type: ignore[no-untyped-def]
    """Copy columns of float32 to dense[n, columns], those of int64 to keys[columns, n].

    Returns:
        whether all of dense is finite.
    """
    size, rows = 4 * dense.shape[0], dense.view(np.uint8)
    for column in range(dense_places.size):
        first = start + dense_places[column]
        source = body[first : first + size]
        for i in range(dense.shape[0]):
            for byte in range(4):
                rows[i, 4 * column + byte] = source[4 * i + byte]
    size, targets = 8 * keys.shape[1], keys.view(np.uint8)
    for column in range(key_places.size):
        first = start + key_places[column]
        source, target = body[first : first + size], targets[column]
        for i in range(size):
            target[i] = source[i]
    finite = True
    for value in dense.reshape(-1):
        finite &= np.isfinite(value)
    return finite
