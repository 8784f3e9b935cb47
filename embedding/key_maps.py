"""Which row of a part of a composition a key has."""

import numpy as np
import numpy.typing as npt

from embedding.composition_spec import Part

Int64Array = npt.NDArray[np.int64]


def map_keys(part: Part, keys: Int64Array) -> Int64Array:
    """Return the key of each key's row in a physical table.

    own: the key itself. quotient and remainder: of the division by the part's divisor m, rounded
    towards minus infinity, so that 0 <= remainder < m for negative keys too.

    Args:
        keys: int64[n], any values.

    Returns:
        int64[n], the given array where nothing changes.
    """
    if part.keys == "quotient":
        return np.floor_divide(keys, np.int64(part.divisor))
    if part.keys == "remainder":
        return np.remainder(keys, np.int64(part.divisor))
    return keys
