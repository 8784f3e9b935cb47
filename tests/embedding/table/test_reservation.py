import resource

import numpy as np
import pytest

from embedding.table.machine_limits import physical_memory_bytes
from embedding.table.reservation import reserve


def test_a_reservation_is_zeroed_writable_and_far_larger_than_what_it_takes():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

    array = reserve(physical_memory_bytes() // 64, 16, np.float32)
    array[12345] = 7.0

    assert array.shape == (physical_memory_bytes() // 64, 16)
    assert array.flags.c_contiguous
    assert array[12344:12347].sum(axis=1).tolist() == [0.0, 112.0, 0.0]
    grown_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert grown_kib < 64 << 10


def test_no_width_takes_no_memory():
    assert reserve(1 << 60, 0, np.float32).shape == (1 << 60, 0)


def test_a_small_array_takes_no_mapping_of_its_own():
    assert not isinstance(reserve(100, 2, np.int64).base, memoryview)
    assert reserve(100, 2, np.int64).sum() == 0


@pytest.mark.parametrize("rows", [1 << 50, 1 << 80])
def test_address_space_that_can_not_be_had_is_refused_and_says_what_may_limit_it(rows):
    with pytest.raises(MemoryError, match=r"ulimit -v and -d, .*vm\.max_map_count"):
        reserve(rows, 2, np.int64)
