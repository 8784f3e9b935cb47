"""Requests of binary tensors that are laid out as one before: only their bytes are read.

Whoever asks again and again sends the same JSON before other values: the same columns of the same
shapes. To read and check it takes longer than to compute a small request. So what it says is kept
where it is of the most usual kind, float32 and one int64 for each sample, all of them binary.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from numba import njit

from serving.requests import RequestSchema
from serving.wire.inference import Wanted, decode, described
from worker.data.batch import Batch, SingleKeys
from worker.data.shared import SharedBatch

_MOST_LAYOUTS = 256
_MOST_BYTES = 64 << 10  # of a head that is kept


@dataclass(frozen=True, slots=True)
class _Layout:
    """Where a request's tensors are.

    Args:
        samples: n.
        dense, keys: int64[columns], where each one begins behind the JSON.
        num_bytes: of all of them.
    """

    wanted: Wanted
    samples: int
    dense: npt.NDArray[np.int64]
    keys: npt.NDArray[np.int64]
    num_bytes: int


class Decoder:
    """Reads requests of the Open Inference Protocol, and knows again what looks alike.

    Args:
        schema: of the model.
    """

    def __init__(self, schema: RequestSchema) -> None:
        self._schema = schema
        self._layouts: dict[bytes, _Layout] = {}

    def decode(
        self, body: bytes, json_bytes: int | None
    ) -> tuple[Batch | SharedBatch | SingleKeys, Wanted]:
        """As `inference.decode`."""
        if json_bytes is None or not 0 < json_bytes <= min(len(body), _MOST_BYTES):
            return decode(body, json_bytes, self._schema)
        head = body[:json_bytes]
        layout = self._layouts.get(head)
        if layout is not None and len(body) - json_bytes == layout.num_bytes:
            batch = self._read(body, json_bytes, layout)
            if batch is not None:
                return batch, layout.wanted
        found, wanted = decode(body, json_bytes, self._schema)
        if layout is None and isinstance(found, Batch):
            layout = self._layout_of(head, found.num_samples, wanted)
            if layout is not None:
                if len(self._layouts) >= _MOST_LAYOUTS:
                    self._layouts.clear()
                self._layouts[head] = layout
        return found, wanted

    def _read(self, body: bytes, start: int, layout: _Layout) -> SingleKeys | None:
        """Return the samples; None where a value has to be looked at."""
        n = layout.samples
        by_column = np.empty((layout.dense.size, n), np.float32)
        keys = np.empty((layout.keys.size, n), np.int64)
        given = np.frombuffer(body, np.uint8)
        _copy(given, start, layout.dense, by_column.view(np.uint8))
        _copy(given, start, layout.keys, keys.view(np.uint8))
        dense = self._schema.transformed(by_column)
        return None if dense is None else SingleKeys(dense, keys)

    def _layout_of(self, head: bytes, samples: int, wanted: Wanted) -> _Layout | None:
        """Return how a request that was read is laid out; None: it is no usual one."""
        features = self._schema.features
        if not self._schema.takes_single_integers:
            return None
        wanted_types = dict.fromkeys(features.dense, "FP32")
        for feature in features.sparse:
            if wanted_types.setdefault(feature.column, "INT64") != "INT64":
                return None
        begins: dict[str, int] = {}
        start = 0
        for name, kind, shape, size in described(head, self._schema):
            alike = shape in ((samples,), (samples, 1))
            if size is None or not alike or wanted_types.get(name) != kind:
                return None
            begins[name] = start
            start += size
        return _Layout(
            wanted,
            samples,
            _places(begins, features.dense),
            _places(begins, [feature.column for feature in features.sparse]),
            start,
        )


def _places(
    begins: Mapping[str, int], names: "list[str] | tuple[str, ...]"
) -> npt.NDArray[np.int64]:
    return np.array([begins[name] for name in names], np.int64)


@njit(cache=True, nogil=True)
def _copy(body, start, places, out):  # type: ignore[no-untyped-def]
    """Copy the bytes of each column, uint8[columns, any], from where they begin behind `start`."""
    size = out.shape[1]
    for column in range(places.size):
        first = start + places[column]
        for i in range(size):
            out[column, i] = body[first + i]
