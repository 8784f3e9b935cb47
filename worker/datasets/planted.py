"""A planted world of clicks: Criteo-like samples whose click probability is known.

The world is frozen: cardinalities, popularity, which rank has which id, what each id adds to the
logit. A seed only draws samples of it, so two seeds give independent data of the same world, and
the best possible AUC is a property of the world, up to the noise of the drawn rows.

A sample's logit is

    BIAS + sum_j slope_j * log1p(max(I_j, 0))                              a null counts as 0
         + ID_WEIGHT   * sum_c      s(c) * effect(id_c)
         + PAIR_WEIGHT * sum_(c, d) s(c) * s(d) * <h(id_c), h(id_d)> / 2   over PAIRS

with `effect` (zero mean, variance 1) and the four-dimensional hidden vectors `h` read off `mix64`
of the id, and the strength s = 1 / sqrt(1 + rank / HALF_RANK): frequent ids carry most of the
signal, as they must for one pass over a million samples to learn it, and every rare id some.

Of a click it is also known with which probability it is followed by a purchase. That logit is

    BUY_BIAS + CLICK_SHARE * (the click's - BIAS) + sum_j buy_slope_j * log1p(max(I_j, 0))
             + ID_WEIGHT * sum_c s(c) * buy_effect(id_c)

with effects of its own of each id, so the two are related, and neither tells the other.

Ranks follow a power law cut at the column's cardinality, drawn by inverting its distribution
function, so no table of ids exists and memory does not depend on the cardinality.
"""

from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import numpy as np
import numpy.typing as npt
from numba import njit

from embedding.kernels.mixing import mix64

# Raised by every change that alters the data of a seed.
WORLD_VERSION = 1
# Samples drawn from one random stream.
CHUNK_ROWS = 1 << 14

DENSE_COLUMNS = tuple(f"I{j}" for j in range(1, 14))
SPARSE_COLUMNS = tuple(f"C{c}" for c in range(1, 27))

# Distinct values of C1..C26 in the Criteo Kaggle data, as published with DLRM (arXiv 1906.00091).
# fmt: off
CARDINALITIES = (
    1460, 583, 10131227, 2202608, 305, 24, 12517, 633, 3, 93145, 5683, 8351593, 3194, 27, 14992,
    5461306, 10, 5652, 2173, 4, 7046547, 18, 15, 286181, 105, 142572,
)
# A dense value is floor(median * (u / (1 - u))^tail) - shift, null with the given probability.
#                    I1    I2    I3   I4     I5    I6   I7   I8    I9  I10  I11  I12  I13
_MEDIAN = np.array([1.5,  4.0,  6.0, 4.0, 3000, 35.0, 3.5, 8.0, 40.0, 0.7, 2.0, 0.4,  4.0])
_TAIL   = np.array([0.9,  1.1,  0.9, 0.7,  1.0,  1.0, 0.9, 0.7,  0.8, 0.5, 0.7, 0.9,  0.8])
_SHIFT  = np.array([0.0,  1.0,  0.0, 0.0,  0.0,  0.0, 0.0, 0.0,  0.0, 0.0, 0.0, 0.0,  0.0])
_NULLS  = np.array([.20, .000,  .12, .12,  .03,  .15, .05, .01,  .05, .20, .05, .20,  .12])
_SLOPE  = np.array([.50, -.16,  .14, .00, -.10, -.22, .32, .00,  .06, .40, .18, .00, -.18])
# fmt: on
_BUYS = np.array([-0.12, 0.10, 0.00, 0.18, 0.00, 0.08, -0.16, 0.20, 0.00, 0.00, 0.00, 0.15, 0.10])
_DENSE_CAP = float(1 << 24)  # float32 has every whole number up to here

# From this cardinality on, the exponent is such that 1 % of the ids get 90 % of the samples.
LARGE_CARDINALITY = 10_000
TOP_FRACTION, TOP_SHARE = 0.01, 0.9
SMALL_EXPONENT = 1.1

# Chosen so that the base rate is about .25 and the best AUC about .80: .71 of it from the dense
# columns alone, .77 without the pairs.
BIAS = -0.6
ID_WEIGHT = 0.18
PAIR_WEIGHT = 0.3
HALF_RANK = 1000.0
# Chosen so that about a fifth of the clicks are followed by a purchase.
BUY_BIAS = -2.6
CLICK_SHARE = 0.3
# Positions in C1..C26: small columns, whose pairs of ids are seen often enough to be learned.
PAIRS = ((5, 13), (8, 16), (19, 22), (1, 4))

_COLUMN_SHIFT = np.uint64(48)  # ranks lie below 2^24, so two columns never share an id
_EFFECT_SALT = np.uint64(0x6C62272E07BB0142)
_HIDDEN_SALT = np.uint64(0x27D4EB2F165667C5)
_BUY_SALT = np.uint64(0x3C6EF372FE94F82B)
_TEST_STREAM = 1 << 62  # chunks of the test rows are numbered from here
_BUY_STREAM = 1 << 63  # and what is drawn of purchases from here

Split = Literal["train", "test"]
_Bools = npt.NDArray[np.bool_]
_Floats = npt.NDArray[np.float32]
_Doubles = npt.NDArray[np.float64]
_Ids = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Samples:
    """Samples as columns, with the logit that their labels were drawn from.

    Args:
        labels: float32[n] of 0 and 1.
        dense: float32[13, n], whole numbers, -1 or more; 0 where null.
        nulls: bool[13, n], true where the dense value is missing.
        ids: int64[26, n], any values.
        logits: float64[n], of the true click probability.
        strengths: float64[26, n], s of each id.
    """

    labels: _Floats
    dense: _Floats
    nulls: _Bools
    ids: _Ids
    logits: _Doubles
    strengths: _Doubles


def draw(*, seed: int, split: Split, chunk: int, beside: _Doubles | None = None) -> Samples:
    """Draw `CHUNK_ROWS` samples: one chunk of the endless stream of a seed and a split.

    The same arguments give the same samples, whatever was drawn before. Bit-equality is promised
    for one build of NumPy and Numba on one kind of CPU: elsewhere the last bit of a power may
    differ, and with it, rarely, an id or a label.

    Args:
        seed: in [0, 2^64).
        split: `train` and `test` are independent streams.
        chunk: in [0, 2^62).
        beside: float64[n], what else comes to the logits; labels alone depend on it.
    """
    key = np.array([seed, stream_of(split, chunk)], np.uint64)
    random = np.random.Generator(np.random.Philox(key=key))
    n = CHUNK_ROWS
    logits = np.full(n, BIAS)
    if beside is not None:
        logits += beside
    dense = np.empty((len(DENSE_COLUMNS), n), np.float32)
    nulls = np.empty(dense.shape, np.bool_)
    for j in range(len(DENSE_COLUMNS)):
        np.less(random.random(n), _NULLS[j], out=nulls[j])
        _draw_dense(random.random(n), nulls[j], _MEDIAN[j], _TAIL[j], _SHIFT[j], dense[j])
        _add_dense(dense[j], _SLOPE[j], logits)
    ids = np.empty((len(SPARSE_COLUMNS), n), np.int64)
    strengths = np.empty(ids.shape)
    for c, (cardinality, exponent) in enumerate(zip(CARDINALITIES, exponents(), strict=True)):
        ranks = _draw_ranks(random.random(n), cardinality, exponent)
        _name_ranks(ranks, np.uint64(c + 1) << _COLUMN_SHIFT, ids[c], strengths[c])
        _add_ids(ids[c], strengths[c], _EFFECT_SALT, logits)
    for c, d in PAIRS:
        _add_pairs(ids[c], ids[d], strengths[c] * strengths[d], logits)
    labels = np.less(random.random(n), 1.0 / (1.0 + np.exp(-logits))).astype(np.float32)
    return Samples(
        labels=labels, dense=dense, nulls=nulls, ids=ids, logits=logits, strengths=strengths
    )


@dataclass(frozen=True, slots=True)
class Purchases:
    """What clicks are followed by.

    Args:
        labels: float32[n] of 0 and 1; 0 where a sample is no click.
        logits: float64[n], of the true probability that a click is followed by a purchase.
    """

    labels: _Floats
    logits: _Doubles


def draw_purchases(samples: Samples, *, seed: int, split: Split, chunk: int) -> Purchases:
    """Draw what the clicks of a chunk are followed by; arguments as of `draw`, which gave it.

    The samples themselves are the same whether this is drawn or not.
    """
    stream = _BUY_STREAM + chunk + (_TEST_STREAM if split == "test" else 0)
    random = np.random.Generator(np.random.Philox(key=np.array([seed, stream], np.uint64)))
    logits = BUY_BIAS + CLICK_SHARE * (samples.logits - BIAS)
    for values, slope in zip(samples.dense, _BUYS, strict=True):
        _add_dense(values, slope, logits)
    for ids, strengths in zip(samples.ids, samples.strengths, strict=True):
        _add_ids(ids, strengths, _BUY_SALT, logits)
    buys = np.less(random.random(logits.size), 1.0 / (1.0 + np.exp(-logits)))
    return Purchases(labels=buys * samples.labels, logits=logits)


def stream_of(split: Split, chunk: int) -> int:
    """Return the number of the random stream of a chunk."""
    return chunk + (_TEST_STREAM if split == "test" else 0)


@lru_cache
def exponents() -> tuple[float, ...]:
    """Return the power-law exponent of each sparse column, all above 1."""
    return tuple(_exponent(n) if n >= LARGE_CARDINALITY else SMALL_EXPONENT for n in CARDINALITIES)


def top_share(cardinality: int, exponent: float, fraction: float) -> float:
    """Return the share of samples that have one of a column's most frequent ids.

    Args:
        cardinality: number of ids of the column.
        exponent: of its power law, above 1.
        fraction: of the ids, rounded down to whole ones.
    """
    a = exponent - 1
    top = int(cardinality * fraction)
    return float((1 - (top + 1.0) ** -a) / (1 - (cardinality + 1.0) ** -a))


def _exponent(cardinality: int) -> float:
    low, high = 1.0001, 3.0
    for _ in range(60):
        middle = (low + high) / 2
        if top_share(cardinality, middle, TOP_FRACTION) < TOP_SHARE:
            low = middle
        else:
            high = middle
    return round(low, 4)  # so that no last bit of a power reaches the data


@njit(cache=True, nogil=True)
def _draw_dense(
    uniform: _Doubles, nulls: _Bools, median: float, tail: float, shift: float, out: _Floats
) -> None:
    """Log-logistic counts: heavy-tailed, with a closed inverse."""
    for i in range(uniform.size):
        odds = uniform[i] / (1.0 - uniform[i])
        value = min(np.floor(median * odds**tail) - shift, _DENSE_CAP)
        out[i] = 0.0 if nulls[i] else value


@njit(cache=True, nogil=True)
def _add_dense(dense: _Floats, slope: float, logits: _Doubles) -> None:
    for i in range(dense.size):
        logits[i] += slope * np.log1p(max(np.float64(dense[i]), 0.0))


@njit(cache=True, nogil=True)
def _draw_ranks(uniform: _Doubles, cardinality: int, exponent: float) -> _Ids:
    """Ranks from 0: P(rank < r) = (1 - (r + 1)^-a) / (1 - (cardinality + 1)^-a), a = exponent-1."""
    a = exponent - 1.0
    mass = 1.0 - (cardinality + 1.0) ** -a
    ranks = np.empty(uniform.size, np.int64)
    for i in range(uniform.size):
        rank = int((1.0 - uniform[i] * mass) ** (-1.0 / a)) - 1
        ranks[i] = min(max(rank, 0), cardinality - 1)
    return ranks


@njit(cache=True, nogil=True)
def _name_ranks(ranks: _Ids, salt: np.uint64, ids: _Ids, strengths: _Doubles) -> None:
    for i in range(ranks.size):
        ids[i] = np.int64(mix64(np.uint64(ranks[i]) + salt))
        strengths[i] = 1.0 / np.sqrt(1.0 + ranks[i] / HALF_RANK)


@njit(cache=True, nogil=True)
def _add_ids(ids: _Ids, strengths: _Doubles, salt: np.uint64, logits: _Doubles) -> None:
    """An effect is uniform on [-sqrt 3, sqrt 3), from the upper 53 bits of a mix."""
    for i in range(ids.size):
        bits = mix64(np.uint64(ids[i]) ^ salt) >> np.uint64(11)
        effect = (np.float64(bits) * 2.0**-52 - 1.0) * 1.7320508075688772
        logits[i] += ID_WEIGHT * strengths[i] * effect


@njit(cache=True, nogil=True)
def _add_pairs(ids_c: _Ids, ids_d: _Ids, strengths: _Doubles, logits: _Doubles) -> None:
    """A hidden vector is four numbers uniform on about [-sqrt 3, sqrt 3), 16 bits of a mix each."""
    for i in range(ids_c.size):
        left = mix64(np.uint64(ids_c[i]) ^ _HIDDEN_SALT)
        right = mix64(np.uint64(ids_d[i]) ^ _HIDDEN_SALT)
        product = 0.0
        for k in range(4):
            shift = np.uint64(16 * k)
            u = np.float64((left >> shift) & np.uint64(0xFFFF)) - 32767.5
            v = np.float64((right >> shift) & np.uint64(0xFFFF)) - 32767.5
            product += u * v
        logits[i] += PAIR_WEIGHT * strengths[i] * product * (3.0 / 32768.0**2 / 2.0)
