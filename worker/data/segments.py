"""Which part of the samples each one is in, by the value of a column: for scores of each part."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa

MOST_NAMED = 255
"""Values that are told apart among rows that are decoded together; the rarest are one, `OTHER`."""

OTHER = 255
# A text goes with each batch, in four bytes a character at most.
_MOST_CHARACTERS = 60


@dataclass(frozen=True, slots=True)
class Segments:
    """The segment of each of some samples.

    Args:
        names: the segments' values as texts, `MOST_NAMED` at most.
        of: uint8[n], the position in `names` of each sample's; `OTHER`: none of them.
    """

    names: tuple[str, ...]
    of: npt.NDArray[np.uint8]

    def rows(self, which: slice | npt.NDArray[np.int64]) -> "Segments":
        """Return those of some of the samples."""
        return Segments(self.names, self.of[which])

    def in_use(self) -> "Segments":
        """Return the same with no more names than have samples here."""
        used = np.flatnonzero(np.bincount(self.of, minlength=OTHER + 1)[:OTHER])
        position = np.full(OTHER + 1, OTHER, np.uint8)
        position[used] = np.arange(used.size)
        return Segments(tuple(self.names[i] for i in used), position[self.of])


def segments_of(values: pa.Array) -> Segments:
    """Return the segments that the values of a column make: integers, texts or booleans.

    A null is the segment `null`; of a text the first 60 characters count.
    """
    if pa.types.is_dictionary(values.type):
        values = values.dictionary_decode()
    encoded = values.dictionary_encode(null_encoding="encode")
    found = encoded.indices.to_numpy(zero_copy_only=False)
    return _most_frequent([_text(each) for each in encoded.dictionary.to_pylist()], found)


def joined(parts: Sequence[Segments]) -> Segments:
    """Join the segments of samples, in their order."""
    if len({part.names for part in parts}) == 1:
        return Segments(parts[0].names, np.concatenate([part.of for part in parts]))
    names: dict[str, int] = {}
    found = []
    for part in parts:
        numbers = [names.setdefault(name, len(names)) for name in part.names]
        positions = np.full(OTHER + 1, -1, np.int64)
        positions[: len(numbers)] = numbers
        found.append(positions[part.of])
    return _most_frequent(list(names), np.concatenate(found))


def _most_frequent(texts: list[str], found: npt.NDArray[np.integer]) -> Segments:
    """Keep the values that are most often there, the first of those that are equally often.

    Args:
        found: [n], the position in `texts` of each sample's value; -1: it is none of them.
    """
    counts = np.bincount(found[found >= 0], minlength=len(texts))
    kept = np.argsort(-counts, kind="stable")[:MOST_NAMED]
    position = np.full(len(texts) + 1, OTHER, np.uint8)  # and of -1, the last
    position[kept] = np.arange(kept.size)
    return Segments(tuple(texts[i] for i in kept), position[found])


def _text(value: object) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true" if value else "false"
    return str(value)[:_MOST_CHARACTERS]
