import numpy as np
import pytest

from worker.data.deleted_rows import pack, rows_kept, unpack, without


@pytest.mark.parametrize("rows", [0, 1, 7, 8, 9, 1000])
def test_a_mask_survives_as_text(rows: int) -> None:
    kept = np.random.default_rng(rows).random(rows) < 0.5

    assert np.array_equal(unpack(pack(kept), rows), kept)


@pytest.mark.parametrize("text", ["", "!", "AAAA", pack(np.ones(9, np.bool_))])
def test_text_that_is_no_mask_of_the_file_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        unpack(text, 8)


def test_a_mask_counts_the_rows_of_each_row_group() -> None:
    kept = without(np.array([0, 2, 3, 2]), 6)

    assert kept.tolist() == [False, True, False, False, True, True]
    assert rows_kept(kept, [2, 0, 2, 2]) == (1, 0, 0, 2)


@pytest.mark.parametrize("position", [-1, 6])
def test_a_position_outside_of_the_file_is_refused(position: int) -> None:
    with pytest.raises(ValueError, match="of a file of 6 rows"):
        without(np.array([0, position]), 6)
