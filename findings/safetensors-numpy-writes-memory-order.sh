#!/usr/bin/env bash
# safetensors 0.8.0, NumPy side: an array that is not C-contiguous is written as it lies in memory, under its shape.
# A transposed or Fortran-ordered matrix loads as another matrix, without an error (the torch side raises).
# What to do: numpy.ascontiguousarray before save_file.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check safetensors==0.8.0 numpy==2.4.6
cd "$folder"
venv/bin/python - <<'PYTHON'
import numpy as np
from safetensors.numpy import load_file, save_file

x = np.arange(6, dtype=np.float32).reshape(2, 3)
save_file({"transposed": x.T, "fortran": np.asfortranarray(x), "copied": np.ascontiguousarray(x.T)}, "a.safetensors")
loaded = load_file("a.safetensors")
print(loaded)
assert np.array_equal(loaded["copied"], x.T)
assert loaded["transposed"].shape == (3, 2) and not np.array_equal(loaded["transposed"], x.T)
assert loaded["fortran"].tolist() == [[0, 3, 1], [4, 2, 5]]
PYTHON
