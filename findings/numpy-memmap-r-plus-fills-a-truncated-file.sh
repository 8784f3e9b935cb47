#!/usr/bin/env bash
# NumPy 2.4.6: opened with mode "r+", a file that is too short is made longer, with zeros: np.load(path, mmap_mode="r+") of a
# truncated .npy and np.memmap(path, mode="r+", shape=...) succeed, the lost rows are zeros, and the file on the disk now has
# the right size, so that nobody can see afterwards that it was damaged. Modes "r" and "c", and np.load without mmap_mode,
# refuse the same file.
# Expected: an error, as with every other mode; r+ is for files that are there. A table of embeddings that a full disk or a
# broken copy cut off goes on training with rows of zeros.
# What to do: compare os.path.getsize with what it must be before, or open with "r" once.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check numpy==2.4.6
cd "$folder"
"$folder/venv/bin/python" - <<'PYTHON'
import os

import numpy as np

np.save("rows.npy", np.ones((4, 2), np.float32))
whole = os.path.getsize("rows.npy")
for mode in (None, "r", "c"):
    os.truncate("rows.npy", whole - 20)
    try:
        np.load("rows.npy", mmap_mode=mode)
        raise AssertionError(f"{mode} takes it")
    except ValueError as error:
        print(mode, "->", error)
rows = np.load("rows.npy", mmap_mode="r+")
print("r+ ->", rows.tolist(), "size", os.path.getsize("rows.npy"), "of", whole)
assert rows.sum() == 3 and os.path.getsize("rows.npy") == whole
np.load("rows.npy")  # nobody sees it any more
PYTHON
