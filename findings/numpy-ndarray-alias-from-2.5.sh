#!/usr/bin/env bash
# NumPy 2.5.5, Python 3.12: numpy.typing.NDArray is a `type` alias now (2.4.6: a plain generic alias of ndarray). So
# typing.get_origin(NDArray[np.int64]) is NDArray and no longer np.ndarray, and its get_args are the scalar type alone,
# not (shape, dtype). Whoever reads annotations to see what an array holds (decoders, validators) stops knowing it;
# type checkers and running code see no difference, and with Python 3.11 pip still takes 2.4.
# What to do: take `__value__` of the origin, or read both forms.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
for version in 2.4.6 2.5.5; do
    "${PYTHON:-python3.12}" -m venv "$folder/$version"
    "$folder/$version/bin/python" -m pip install --quiet --disable-pip-version-check numpy==$version
done
cd "$folder"
cat > look.py <<'PYTHON'
import sys
import typing

import numpy as np
import numpy.typing as npt

kind = npt.NDArray[np.int64]
origin, arguments = typing.get_origin(kind), typing.get_args(kind)
print(np.__version__, "origin:", origin, "arguments:", arguments)
if sys.argv[1] == "2.4.6":
    assert origin is np.ndarray and typing.get_origin(arguments[1]) is np.dtype
else:
    assert isinstance(origin, typing.TypeAliasType) and arguments == (np.int64,)
    assert typing.get_origin(origin.__value__) is np.ndarray
PYTHON
2.4.6/bin/python look.py 2.4.6
2.5.5/bin/python look.py 2.5.5
