"""The rules by which a key without a row is admitted, as kernels ask for them."""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from numba import njit

from embedding.kernels.arguments import read_only
from embedding.kernels.mixing import mix64, mix_text
from embedding.spec.admission import CounterAdmission, FrequencyAdmission, ProbabilisticAdmission
from embedding.spec.table import TableSpec
from embedding.table.bloom import NO_BLOOM, BloomArrays, BloomFilter
from embedding.table.row_arrays import RowArrays

ALWAYS, COUNTER, BLOOM, PROBABILISTIC = range(4)

_UNIT = 2.0**-53
_UNIT_SHIFT = np.uint64(11)


class Admission(NamedTuple):
    """What kernels take of a table's rule.

    Args:
        kind: one of the constants of this module.
        min_count: of the counter and of the Bloom filter.
        probability: that one occurrence admits a key.
        seed: of the draws.
        counters: of keys without a row, used by the counter.
        bloom: used by the Bloom filter.
    """

    kind: int
    min_count: int
    probability: float
    seed: np.uint64
    counters: RowArrays
    bloom: BloomArrays


def admission_of(spec: TableSpec, counters: RowArrays, bloom: BloomFilter | None) -> Admission:
    """Return the rule of a table with its counters and its filter."""
    rule = spec.admission
    # No table's name has a slash, so these draws are not the initial values of any.
    seed = np.uint64(mix_text(f"{spec.name}/admission", spec.seed))
    if rule is None:
        return Admission(ALWAYS, 0, 1.0, seed, counters, NO_BLOOM)
    if isinstance(rule, ProbabilisticAdmission):
        return Admission(PROBABILISTIC, 0, rule.probability, seed, counters, NO_BLOOM)
    if isinstance(rule, CounterAdmission | FrequencyAdmission):
        # By the frequency in another table: its counts come with the pull, counters stay empty.
        return Admission(COUNTER, rule.min_count, 1.0, seed, counters, NO_BLOOM)
    assert bloom is not None, "made with the table"
    return Admission(BLOOM, rule.min_count, 1.0, seed, counters, bloom.arrays)


@njit(cache=True, nogil=True)
def is_drawn(
    seed: np.uint64, probability: float, key: np.int64, step: int, count: np.int64
) -> bool:
    """Return whether one of `count` occurrences of a key at a step is drawn.

    One draw u by (seed, key, step) decides: u >= (1 - probability)^count.
    """
    missed, factor, rest = 1.0, 1.0 - probability, count
    while rest > 0:
        if rest & 1:
            missed *= factor
        factor *= factor
        rest >>= 1
    bits = mix64(mix64(np.uint64(key) ^ seed) + np.uint64(step)) >> _UNIT_SHIFT
    return bool(np.float64(bits) * _UNIT >= missed)


def with_frequency(
    counts: npt.NDArray[np.uint32], frequency: npt.NDArray[np.int64]
) -> npt.NDArray[np.uint32]:
    """Return counts with the frequency so far added, uint32[n]; no counts: 0 for each key."""
    total = frequency + counts if counts.size else frequency
    return read_only(np.minimum(total, 0xFFFFFFFF).astype(np.uint32))
