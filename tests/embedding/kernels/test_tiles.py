"""Tiles of a matrix product."""

import numpy as np
import pytest
from numba import njit

from embedding.kernels.tiles import tile_of


@pytest.mark.parametrize(("rows", "lines"), [(1, 1), (1, 4), (6, 4), (2, 3)])
def test_a_tile_adds_the_products_of_its_rows_and_lines(rows, lines):
    add_products = tile_of(rows, lines)

    @njit
    def run(x, w, count, sums):
        add_products(x, 2, 9, w, 16, 16 * 7, count, sums)

    rng = np.random.default_rng(rows)
    x = rng.integers(-8, 8, 2 + 9 * rows).astype(np.float32)
    w = rng.integers(-8, 8, 16 + 16 * 7 * lines).astype(np.float32)
    sums = rng.integers(-8, 8, 16 * rows * lines).astype(np.float32)
    expected = sums.copy().reshape(rows, lines, 16)
    of_rows = x[2:].reshape(rows, 9)[:, :5]
    of_lines = w[16:].reshape(lines, 7, 16)[:, :5]
    expected += np.einsum("rk,cke->rce", of_rows, of_lines)

    run(x, w, 5, sums)

    np.testing.assert_array_equal(sums.reshape(rows, lines, 16), expected)


def test_nothing_is_added_of_no_inputs():
    add_products = tile_of(1, 1)

    @njit
    def run(x, w, sums):
        add_products(x, 0, 0, w, 0, 0, 0, sums)

    sums = np.arange(16, dtype=np.float32)

    run(np.ones(1, np.float32), np.ones(16, np.float32), sums)

    np.testing.assert_array_equal(sums, np.arange(16))
