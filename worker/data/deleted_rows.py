"""Rows of a file that its table no longer has: a mask, and its text in a plan."""

import base64
import itertools
import zlib
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

Kept = npt.NDArray[np.bool_]


def pack(kept: Kept) -> str:
    """Return a mask as text: its bits, compressed, in base 64."""
    return base64.b64encode(zlib.compress(np.packbits(kept).tobytes())).decode()


def unpack(text: str, rows: int) -> Kept:
    """Read what `pack` wrote.

    Args:
        text: of a mask.
        rows: its length.

    Raises:
        ValueError: the text is of no mask of that length.
    """
    try:
        data = zlib.decompress(base64.b64decode(text, validate=True))
    except zlib.error as error:
        raise ValueError(f"it isn't compressed: {error}") from error
    if len(data) != -(-rows // 8):
        raise ValueError(f"it has {len(data)} bytes, expected those of {rows} rows")
    return np.unpackbits(np.frombuffer(data, np.uint8), count=rows).view(np.bool_)


def without(positions: npt.NDArray[np.int64], rows: int) -> Kept:
    """Return the mask that leaves out rows by their positions.

    Raises:
        ValueError: a position is outside of [0, rows).
    """
    if positions.size and not 0 <= positions.min() <= positions.max() < rows:
        wrong = positions.max() if positions.min() >= 0 else positions.min()
        raise ValueError(f"it deletes row {wrong} of a file of {rows} rows")
    kept = np.ones(rows, np.bool_)
    kept[positions] = False
    return kept


def rows_kept(kept: Kept, row_group_rows: Sequence[int]) -> tuple[int, ...]:
    """Return how many rows of each row group are kept."""
    ends = np.cumsum([0, *row_group_rows])
    return tuple(int(kept[start:end].sum()) for start, end in itertools.pairwise(ends))
