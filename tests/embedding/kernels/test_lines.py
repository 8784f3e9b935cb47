import numpy as np
import pytest
from numba import njit

from embedding.kernels.lines import (
    add_row,
    copy_row,
    line_of,
    line_of_zeros,
    load_line,
    multiply_add,
    repeated,
    roots,
    store_line,
    transpose_lines,
)


@njit
def _polynomial(rows, factors, out):
    """out = the sum of factors[i] * rows[16 i : 16 i + 16]."""
    total = line_of_zeros()
    for i in range(factors.size):
        total = multiply_add(repeated(factors, i), load_line(rows, 16 * i), total)
    store_line(total, out, 1)


def test_a_sum_of_multiples_of_lines():
    rows = np.random.default_rng(0).normal(size=(5, 16)).astype(np.float32)
    factors = np.array([1, -2, 0, 0.5, 3], np.float32)
    out = np.full(18, 7, np.float32)

    _polynomial(rows.reshape(-1), factors, out)

    np.testing.assert_allclose(out[1:17], factors @ rows, rtol=1e-5, atol=1e-6)
    assert out[0] == out[17] == 7


@njit
def _by_elements(a, b, factor, out):
    """out = the root of (a * factor + b) / b - a."""
    x, y = load_line(a, 0), load_line(b, 0)
    store_line(roots((x * line_of(factor) + y) / y - x), out, 0)


def test_arithmetic_on_lines_is_that_of_single_float32():
    rng = np.random.default_rng(1)
    a, b = rng.uniform(-0.5, 0.0, 16).astype(np.float32), rng.uniform(1, 2, 16).astype(np.float32)
    out = np.empty(16, np.float32)

    _by_elements(a, b, np.float32(0.3), out)

    np.testing.assert_array_equal(out, np.sqrt((a * np.float32(0.3) + b) / b - a))


@njit
def _transpose(source, at, step, target, to, stride):
    transpose_lines(source, at, step, target, to, stride)


def test_a_block_of_lines_is_transposed_and_nothing_beside_it():
    source = np.arange(16 * 20 + 3, dtype=np.float32)
    target = np.full(2 + 16 * 24, -1, np.float32)

    _transpose(source, 3, 20, target, 2, 24)

    rows = target[2:].reshape(16, 24)
    np.testing.assert_array_equal(rows[:, :16], source[3:].reshape(16, 20)[:, :16].T)
    assert (rows[:, 16:] == -1).all()
    assert (target[:2] == -1).all()


@njit
def _copy(source, at, dim, target, to):
    copy_row(source, at, dim, target, to)


@njit
def _add(source, at, dim, target, to):
    add_row(source, at, dim, target, to)


@pytest.mark.parametrize("dim", [1, 15, 16, 17, 40, 64])
def test_rows_of_any_width_are_copied_and_added_and_nothing_beside_them(dim):
    source = np.random.default_rng(dim).normal(size=dim + 5).astype(np.float32)
    copied, added = np.full((2, dim + 2), 7, np.float32)

    _copy(source, 3, dim, copied, 1)
    _add(source, 3, dim, added, 1)

    assert np.array_equal(copied[1:-1], source[3 : 3 + dim])
    assert np.array_equal(added[1:-1], np.float32(7) + source[3 : 3 + dim])
    assert copied[0] == copied[-1] == added[0] == added[-1] == 7
