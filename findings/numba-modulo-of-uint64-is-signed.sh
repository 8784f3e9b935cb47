#!/usr/bin/env bash
# numba 0.68.1, NumPy 2.4.6: `h % 1000` of unsigned 64-bit hashes is another number in compiled code than in NumPy for every
# hash beyond 2^63, half of them: 1000 is an int64, and of uint64 % int64 the hash is taken for a negative number. It is
# a valid bucket each time, so nothing fails. As an expression of arrays it is the same, and float64. `//` likewise; `>>`, `&` and `^` are right.
# Expected: NumPy's buckets, as with the same line outside of numba. A table that is filled by one and read by
# the other has another id's row in half of its lookups.
# What to do: np.uint64(1000) within the compiled function, or a size that is a power of two and `&`.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check numba==0.68.1 numpy==2.4.6
cd "$folder"
venv/bin/python - <<'PYTHON'
import numba
import numpy as np


def loop(hashes, size):
    buckets = np.empty(len(hashes), np.int64)
    for number in range(len(hashes)):
        buckets[number] = hashes[number] % size
    return buckets


def whole(hashes, size):
    return hashes % size


hashes = np.random.default_rng(1).integers(0, 2**64, 100_000, np.uint64)
right = hashes % 1000
assert right.dtype == np.uint64 and right[0] == int(hashes[0]) % 1000
small = hashes < 2**63
for function, size, fits in ((loop, 1000, False), (whole, 1000, False), (loop, np.uint64(1000), True)):
    found = numba.njit(function)(hashes, size)
    print(f"{function.__name__} % {type(size).__name__}: {found.dtype}, as NumPy's for {(found == right).mean():.1%}")
    assert found.min() >= 0 and found.max() < 1000 and (found == right)[small].all()
    assert (found == right).all() if fits else (found == right)[~small].mean() < 0.01
    assert found.dtype == (np.float64 if function is whole else np.int64)
PYTHON
