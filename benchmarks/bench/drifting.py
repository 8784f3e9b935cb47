"""Samples whose world moves as they come: ids appear, popularity moves, the label rate shifts."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa

# Of the ids of a column that are in use at the end, as a share of those in use at any time.
_NEW_SHARE = 0.75
# How often the ids of a column change their places in the order of popularity.
_MOVES = 8
_SMALLEST, _LARGEST = 10, 20_000
_BIAS, _SWING = -2.0, 1.0
_ID_WEIGHT, _DENSE_WEIGHT = 0.25, 0.15


@dataclass(frozen=True, slots=True)
class Drifting:
    """Rows in the order in which they come.

    Args:
        table: `label`, float32, 0 or 1; dense columns, float32 >= 0; sparse ones, int64.
        probabilities: float64[n], those that the labels were drawn with: nobody scores better.
    """

    table: pa.Table
    probabilities: npt.NDArray[np.float64]


def drifting(rows: int, *, dense: list[str], sparse: list[str], seed: int = 1) -> Drifting:
    """Draw rows from first to last.

    A column's ids come by a power law. The window of ids in use slides over the whole time, until
    three quarters of them are new; within it popularity moves eight times; and the logit's
    constant rises and falls twice, by one up and down.
    """
    rng = np.random.default_rng(seed)
    time = np.arange(rows) / rows
    logits = _BIAS + _SWING * np.sin(4 * np.pi * time)
    columns: dict[str, npt.NDArray[np.generic]] = {}
    for name in dense:
        values = rng.exponential(3.0, rows).astype(np.float32)
        columns[name] = np.floor(values)
        logits += _DENSE_WEIGHT * rng.normal() * (np.log1p(columns[name]) - 1.0)
    for number, name in enumerate(sparse):
        size = round(float(np.geomspace(_SMALLEST, _LARGEST, len(sparse))[number]))
        ranks = (size ** rng.random(rows)).astype(np.int64) - 1
        moved = (ranks + (time * _MOVES).astype(np.int64) * (size // _MOVES + 1)) % size
        places = moved + (time * size * _NEW_SHARE).astype(np.int64)
        effects = rng.normal(size=round(size * (1 + _NEW_SHARE)) + 1)
        logits += _ID_WEIGHT * effects[places]
        columns[name] = places + (number << 40)
    probabilities = 1 / (1 + np.exp(-logits))
    label = (rng.random(rows) < probabilities).astype(np.float32)
    return Drifting(pa.table({"label": label, **columns}), probabilities)
