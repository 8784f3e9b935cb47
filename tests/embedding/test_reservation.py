import resource
import subprocess
import sys

import numpy as np
import pytest

from embedding.reservation import physical_memory_bytes, reserve


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


@pytest.mark.skipif(sys.platform != "linux", reason="limits the address space as Linux does")
def test_a_limit_on_address_space_shortens_the_reservation():
    script = """
import resource
import numpy as np
from embedding.reservation import reserve
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + (256 << 20), resource.RLIM_INFINITY))
array = reserve(1 << 30, 2, np.int64)
array[-1] = 1
assert 64 << 20 < array.nbytes <= 256 << 20, array.nbytes
"""
    subprocess.run([sys.executable, "-c", script], check=True, timeout=120)


@pytest.mark.skipif(sys.platform != "linux", reason="limits the address space as Linux does")
def test_no_address_space_at_all_says_what_to_raise():
    script = """
import resource
import numpy as np
from embedding.reservation import reserve
resource.setrlimit(resource.RLIMIT_AS, (1 << 20, resource.RLIM_INFINITY))
try:
    reserve(1 << 30, 2, np.int64)
except MemoryError as error:
    assert "ulimit -v" in str(error), error
else:
    raise AssertionError("nothing was refused")
"""
    subprocess.run([sys.executable, "-c", script], check=True, timeout=120)
