import numpy as np
import pytest

from embedding.kernels.row_copy import copy_rows


@pytest.mark.parametrize("width", [1, 8, 15, 16, 17, 40, 64])
@pytest.mark.parametrize("first", [0, 3])
def test_the_columns_asked_for_are_copied_and_nothing_else(width, first):
    source = np.random.default_rng(width).normal(size=(300, 70)).astype(np.float32)
    positions = np.random.default_rng(first).integers(-1, 300, 200)
    target = np.full((202, width), 7, np.float32)

    copy_rows(source, positions, first, target[1:-1])

    wanted = np.where(positions[:, None] < 0, np.float32(7), source[positions, first:][:, :width])
    assert np.array_equal(target[1:-1], wanted)
    assert (target[[0, -1]] == 7).all()


def test_no_row_is_copied_where_none_is_asked_for():
    target = np.full((3, 20), 7, np.float32)

    copy_rows(np.ones((0, 20), np.float32), np.full(3, -1), 0, target)
    copy_rows(np.ones((5, 20), np.float32), np.empty(0, np.int64), 0, target[:0])

    assert (target == 7).all()
