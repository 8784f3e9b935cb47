"""What is freed stays with the process that asked for that."""

import subprocess
import sys

CODE = """
import resource, numpy as np
from runtime.memory import keep_freed_memory
{keep}
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(5):
        arrays = [np.ones(1 << 20, np.float32) for _ in range(4)]
        del arrays
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
faults()
print(faults())
"""


def test_memory_that_is_kept_is_not_missing_when_it_is_used_again() -> None:
    missing = []
    for keep in ("", "keep_freed_memory()"):
        code = CODE.format(keep=keep)
        done = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True
        )
        missing.append(int(done.stdout))

    assert missing[1] < 100 < missing[0]  # of 20 arrays of 1,024 pages
