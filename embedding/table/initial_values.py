"""Initial values of rows, drawn by counter: from (table seed, key, column) alone, no state.

The same key starts the same on any shard, in any order and batch, at a pull as at an apply. The
draw is SplitMix64's output function over a counter (Steele, Lea and Flood 2014; counter-based
generators: Salmon et al. 2011): base = mix64(key ^ seed of the table), and the 64 bits of column
c are mix64(base + c).
"""

import math
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from numba import njit

from embedding.kernels.mixing import mix64, mix_text
from embedding.spec.initial_values import (
    Constant,
    GlorotUniform,
    Initializer,
    Normal,
    Uniform,
    Zeros,
)

CONSTANT, UNIFORM, NORMAL, TRUNCATED_NORMAL = range(4)

_BELOW_CUT = 0.022750131948179207  # P(Z < -2) of a standard normal Z
_WITHIN_CUT = 0.9544997361036416  # P(-2 < Z < 2)
_UNIFORM_BITS, _NORMAL_BITS = 24, 52
_UNIFORM_SHIFT = np.uint64(64 - _UNIFORM_BITS)
_NORMAL_SHIFT = np.uint64(64 - _NORMAL_BITS)
_HALF_RANGE = 2 ** (_UNIFORM_BITS - 1)
_NORMAL_UNIT = 2.0**-_NORMAL_BITS

# Rational approximations of AS 241, highest power first: numerator and denominator for the
# middle, the tails and the far tails.
_MIDDLE = (
    (
        2.5090809287301226727e3,
        3.3430575583588128105e4,
        6.7265770927008700853e4,
        4.5921953931549871457e4,
        1.3731693765509461125e4,
        1.9715909503065514427e3,
        1.3314166789178437745e2,
        3.3871328727963666080e0,
    ),
    (
        5.2264952788528545610e3,
        2.8729085735721942674e4,
        3.9307895800092710610e4,
        2.1213794301586595867e4,
        5.3941960214247511077e3,
        6.8718700749205790830e2,
        4.2313330701600911252e1,
        1.0,
    ),
)
_TAIL = (
    (
        7.74545014278341407640e-4,
        2.27238449892691845833e-2,
        2.41780725177450611770e-1,
        1.27045825245236838258e0,
        3.64784832476320460504e0,
        5.76949722146069140550e0,
        4.63033784615654529590e0,
        1.42343711074968357734e0,
    ),
    (
        1.05075007164441684324e-9,
        5.47593808499534494600e-4,
        1.51986665636164571966e-2,
        1.48103976427480074590e-1,
        6.89767334985100004550e-1,
        1.67638483018380384940e0,
        2.05319162663775882187e0,
        1.0,
    ),
)
_FAR_TAIL = (
    (
        2.01033439929228813265e-7,
        2.71155556874348757815e-5,
        1.24266094738807843860e-3,
        2.65321895265761230930e-2,
        2.96560571828504891230e-1,
        1.78482653991729133580e0,
        5.46378491116411436990e0,
        6.65790464350110377720e0,
    ),
    (
        2.04426310338993978564e-15,
        1.42151175831644588870e-7,
        1.84631831751005468180e-5,
        7.86869131145613259100e-4,
        1.48753612908506148525e-2,
        1.36929880922735805310e-1,
        5.99832206555887937690e-1,
        1.0,
    ),
)


class InitialValues(NamedTuple):
    """How the rows of a table start, as numbers that kernels take.

    Args:
        kind: one of the constants of this module.
        center: the value itself, or the mean.
        spread: half the width of the uniform interval, or the standard deviation.
        seed: the table's seed, its name mixed in.
    """

    kind: int
    center: float
    spread: float
    seed: np.uint64


def initial_values_of(initializer: Initializer, *, dim: int, name: str, seed: int) -> InitialValues:
    """Return how the rows of the table of this width, name and seed start."""
    table_seed = np.uint64(mix_text(name, seed))
    if isinstance(initializer, Zeros):
        return InitialValues(CONSTANT, 0.0, 0.0, table_seed)
    if isinstance(initializer, Constant):
        return InitialValues(CONSTANT, initializer.value, 0.0, table_seed)
    if isinstance(initializer, Uniform):
        return InitialValues(UNIFORM, 0.0, initializer.scale, table_seed)
    if isinstance(initializer, GlorotUniform):
        return InitialValues(UNIFORM, 0.0, initializer.limit(dim), table_seed)
    kind = NORMAL if isinstance(initializer, Normal) else TRUNCATED_NORMAL
    return InitialValues(kind, initializer.mean, initializer.stddev, table_seed)


@njit(cache=True, nogil=True)
def _ratio(polynomials: tuple[tuple[float, ...], tuple[float, ...]], x: float) -> float:
    numerator = 0.0
    for coefficient in polynomials[0]:
        numerator = numerator * x + coefficient
    denominator = 0.0
    for coefficient in polynomials[1]:
        denominator = denominator * x + coefficient
    return numerator / denominator


@njit(cache=True, nogil=True)
def normal_quantile(p: float) -> float:
    """Return z with P(Z < z) = p for a standard normal Z, 0 < p < 1, to about 1e-16 relative.

    Source: Wichura 1988, algorithm AS 241 (PPND16), Applied Statistics 37(3), 477-484.
    """
    q = p - 0.5
    if abs(q) <= 0.425:
        return q * _ratio(_MIDDLE, 0.180625 - q * q)
    r = math.sqrt(-math.log(min(p, 1.0 - p)))
    z = _ratio(_TAIL, r - 1.6) if r <= 5.0 else _ratio(_FAR_TAIL, r - 5.0)
    return -z if q < 0.0 else z


@njit(cache=True, nogil=True)
def fill_initial(
    values: npt.NDArray[np.float32],
    row: np.int64,
    dim: int,
    initial: InitialValues,
    key: np.int64,
) -> None:
    """Write the initial vector of a key to values[row, :dim].

    Args:
        values: float32[any, at least dim], written.
        row: the row to write; may be that of a table or of a reply.
        dim: width of the vector.
        initial: how the table's rows start.
        key: any int64.
    """
    base = mix64(np.uint64(key) ^ initial.seed)
    if initial.kind == UNIFORM:
        # Exact up to the last multiplication: an integer of 24 bits times a power of two.
        unit = np.float32(initial.spread) / np.float32(_HALF_RANGE)
        for c in range(dim):
            bits = np.int32(mix64(base + np.uint64(c)) >> _UNIFORM_SHIFT)
            values[row, c] = np.float32(bits - np.int32(_HALF_RANGE)) * unit
    elif initial.kind == CONSTANT:
        for c in range(dim):
            values[row, c] = np.float32(initial.center)
    else:
        for c in range(dim):
            bits = mix64(base + np.uint64(c)) >> _NORMAL_SHIFT
            u = (np.float64(bits) + 0.5) * _NORMAL_UNIT
            if initial.kind == TRUNCATED_NORMAL:
                u = _BELOW_CUT + u * _WITHIN_CUT
            values[row, c] = np.float32(initial.center + initial.spread * normal_quantile(u))


@njit(cache=True, nogil=True)
def fill_all_initial(
    values: npt.NDArray[np.float32], initial: InitialValues, keys: npt.NDArray[np.int64]
) -> None:
    """Write the initial vector of each key, int64[n], to values, float32[n, dim]."""
    for i in range(keys.size):
        fill_initial(values, i, values.shape[1], initial, keys[i])
