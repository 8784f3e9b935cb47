"""Initial values against a twin in NumPy and the standard library, and as random numbers."""

import math
from statistics import NormalDist

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from embedding.kernels.mixing import mix_text
from embedding.spec.initial_values import (
    Constant,
    GlorotUniform,
    Normal,
    TruncatedNormal,
    Uniform,
    Zeros,
)
from embedding.spec.table import TableSpec
from embedding.table.initial_values import normal_quantile
from embedding.table.variable import EmbeddingVariable

INITIALIZERS = [
    Uniform(scale=0.05),
    Normal(mean=0.5, stddev=2.0),
    TruncatedNormal(mean=-1.0, stddev=0.1),
    Constant(value=0.3),
    GlorotUniform(fan_in=64),
    Zeros(),
]
EXTREMES = np.array([0, 1, -1, 2**63 - 1, -(2**63)], np.int64)


def pulled(keys, *, dim=8, name="table", seed=3, initializer=INITIALIZERS[0]):
    table = EmbeddingVariable(TableSpec(name=name, dim=dim, seed=seed, initializer=initializer))
    values = np.empty((len(keys), dim), np.float32)
    table.pull(np.asarray(keys, np.int64), None, values, np.empty(len(keys), np.uint8))
    return values


def mix(z):
    with np.errstate(over="ignore"):
        z = z + np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


def twin(keys, dim, *, name, seed, initializer):
    base = mix(keys.view(np.uint64) ^ np.uint64(mix_text(name, seed)))
    bits = mix(base[:, None] + np.arange(dim, dtype=np.uint64))
    if isinstance(initializer, Constant):
        return np.full((len(keys), dim), initializer.value, np.float32)
    if isinstance(initializer, Zeros):
        return np.zeros((len(keys), dim), np.float32)
    if isinstance(initializer, Uniform | GlorotUniform):
        glorot = isinstance(initializer, GlorotUniform)
        scale = math.sqrt(6 / (initializer.fan_in + dim)) if glorot else initializer.scale
        u = (bits >> np.uint64(40)).astype(np.float32) * np.float32(2.0**-24)
        return (2 * u - 1) * np.float32(scale)
    u = ((bits >> np.uint64(12)).astype(np.float64) + 0.5) * 2.0**-52
    normal = NormalDist()
    if isinstance(initializer, TruncatedNormal):
        u = normal.cdf(-2) + u * (normal.cdf(2) - normal.cdf(-2))
    z = np.vectorize(normal.inv_cdf)(u)
    return (initializer.mean + initializer.stddev * z).astype(np.float32)


@pytest.mark.parametrize("initializer", INITIALIZERS, ids=lambda i: i.type)
def test_values_equal_those_of_the_twin(initializer):
    keys = np.concatenate([EXTREMES, np.random.default_rng(1).integers(-(2**63), 2**63 - 1, 300)])

    values = pulled(keys, dim=5, name="t", seed=9, initializer=initializer)

    expected = twin(keys, 5, name="t", seed=9, initializer=initializer)
    exact = not isinstance(initializer, Normal | TruncatedNormal)
    np.testing.assert_allclose(values, expected, rtol=0 if exact else 1e-6, atol=0)


@settings(max_examples=50, deadline=None)
@given(
    st.lists(st.integers(-(2**63), 2**63 - 1), min_size=1, max_size=300),
    st.sampled_from(INITIALIZERS),
)
def test_a_key_starts_the_same_in_any_batch_and_order(keys, initializer):
    together = pulled(keys, dim=3, initializer=initializer)
    backwards = pulled(keys[::-1], dim=3, initializer=initializer)
    alone = pulled(keys[:1], dim=3, initializer=initializer)

    assert np.array_equal(together, backwards[::-1])
    assert np.array_equal(together[:1], alone)


def test_name_seed_key_and_column_all_matter():
    values = pulled([1, 2])

    assert not np.any(values == pulled([1, 2], name="other"))
    assert not np.any(values == pulled([1, 2], seed=4))
    assert not np.any(values[0] == values[1])
    assert len(np.unique(values)) == values.size


@pytest.mark.parametrize(
    ("initializer", "mean", "stddev", "least", "greatest"),
    [
        (Uniform(scale=0.5), 0.0, 0.5 / math.sqrt(3), -0.5, 0.5),
        (Normal(mean=1.0, stddev=2.0), 1.0, 2.0, -14.0, 16.0),
        # A normal distribution cut at two standard deviations has 0.8796 of its own.
        (TruncatedNormal(mean=1.0, stddev=2.0), 1.0, 2.0 * 0.87963, -3.0, 5.0),
        (Constant(value=0.25), 0.25, 0.0, 0.25, 0.25),
        (Zeros(), 0.0, 0.0, 0.0, 0.0),
        # fan_in + dim = 24, so the limit is .5.
        (GlorotUniform(fan_in=8), 0.0, 0.5 / math.sqrt(3), -0.5, 0.5),
    ],
    ids=lambda value: getattr(value, "type", None),
)
def test_values_have_the_distribution_that_was_asked_for(
    initializer, mean, stddev, least, greatest
):
    values = pulled(np.arange(20_000), dim=16, initializer=initializer).astype(np.float64)

    assert values.mean() == pytest.approx(mean, abs=5 * stddev / math.sqrt(values.size))
    assert values.std() == pytest.approx(stddev, rel=0.01)
    assert least <= values.min()
    assert values.max() <= greatest


def normal_cdf(z):
    return np.array([0.5 * math.erfc(-x / math.sqrt(2)) for x in z])


@pytest.mark.parametrize(
    ("initializer", "cdf"),
    [
        (Uniform(scale=0.5), lambda x: x + 0.5),
        (GlorotUniform(fan_in=8), lambda x: x + 0.5),
        (Normal(mean=1.0, stddev=2.0), lambda x: normal_cdf((x - 1) / 2)),
        (
            TruncatedNormal(mean=1.0, stddev=2.0),
            lambda x: (normal_cdf((x - 1) / 2) - normal_cdf([-2])) / np.diff(normal_cdf([-2, 2])),
        ),
    ],
    ids=lambda value: getattr(value, "type", None),
)
@pytest.mark.parametrize("keys", [np.arange(3000), np.arange(3000) * 2**40 - 2**60], ids=len)
def test_no_distance_to_the_distribution_function_is_larger_than_chance_makes_it(
    initializer, cdf, keys
):
    """Kolmogorov and Smirnov's test; of samples that are right one in 100,000 would fail."""
    x = np.sort(pulled(keys, dim=16, initializer=initializer).astype(np.float64).ravel())

    n, expected = x.size, cdf(x)
    steps = np.arange(n + 1) / n
    distance = max((steps[1:] - expected).max(), (expected - steps[:-1]).max())

    assert distance < math.sqrt(-math.log(1e-5 / 2) / (2 * n))


def test_the_glorot_limit_depends_on_width_and_fan_in():
    for dim, fan_in in ((2, 4), (2, 400), (62, 4)):
        values = pulled(np.arange(5000), dim=dim, initializer=GlorotUniform(fan_in=fan_in))
        limit = math.sqrt(6 / (dim + fan_in))
        assert 0.998 * limit < np.abs(values).max() <= limit


@pytest.mark.parametrize("fan_in", [0, -1, 2**63])
def test_a_fan_in_out_of_range_is_refused(fan_in):
    with pytest.raises(ValueError, match="fan_in must be"):
        GlorotUniform(fan_in=fan_in)


@pytest.mark.parametrize("stride", [1, 2, 4096, 2**32, 2**52])
def test_neighbouring_keys_and_columns_are_independent(stride):
    values = pulled(np.arange(4000) * stride, dim=16)

    bound = 5 / math.sqrt(values.size)
    assert abs(np.corrcoef(values[:-1].ravel(), values[1:].ravel())[0, 1]) < bound
    assert abs(np.corrcoef(values[:, :-1].ravel(), values[:, 1:].ravel())[0, 1]) < bound
    assert abs(np.corrcoef(values[:-1, 1:].ravel(), values[1:, :-1].ravel())[0, 1]) < bound


@pytest.mark.parametrize("stride", [1, 4096, 2**48])
def test_pairs_of_neighbouring_keys_fill_the_square_evenly(stride):
    """Dependence that no correlation shows: chi squared over 16 x 16 cells."""
    values = pulled(np.arange(20_000) * stride, dim=4, initializer=Uniform(scale=1.0))
    cell = np.minimum(((values + 1) * 8).astype(np.int64), 15)

    for first, second in ((cell[:-1:2], cell[1::2]), (cell[:, :-1:2], cell[:, 1::2])):
        counts = np.bincount((first * 16 + second).ravel(), minlength=256)
        mean = counts.sum() / 256
        chi_squared = ((counts - mean) ** 2).sum() / mean
        # 255 degrees of freedom: mean 255, standard deviation 22.6.
        assert abs(chi_squared - 255) < 5 * 22.6


@settings(max_examples=300, deadline=None)
@given(st.floats(1e-300, 1.0, exclude_max=True))
def test_the_normal_quantile_equals_that_of_the_standard_library(p):
    assert normal_quantile(p) == pytest.approx(NormalDist().inv_cdf(p), rel=1e-14)
