#!/usr/bin/env bash
# deepctr-torch 0.3.0 with torch 2.14.1: fit and predict put all columns side by side as float32 and turn those of ids back into integers.
# Ids beyond 2^24 = 16,777,216 are rounded to the next even one on the way (beyond 2^25 to the next multiple of 4, ...), so two items share
# one row, and the other rows are never read nor trained. The table may be as large as one likes (SparseFeat(vocabulary_size=...)), and
# nothing warns.
# Expected: ids stay integers, or a vocabulary of more than 2^24 is refused.
# What to do: use_hash or a vocabulary below 2^24; or call the model with float64 (model.double() and a loop of one's own).
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check deepctr-torch==0.3.0 torch==2.14.1 numpy requests
cd "$folder"
venv/bin/python - <<'PYTHON'
import sys
import types

import numpy as np

sys.modules["requests"] = types.ModuleType("requests")  # else it looks for a newer version of itself

from deepctr_torch.inputs import SparseFeat
from deepctr_torch.models import WDL

FIRST = 2**24
columns = [SparseFeat("item", FIRST + 16, embedding_dim=2)]
model = WDL(columns, columns, dnn_hidden_units=(4,), l2_reg_embedding=0, l2_reg_linear=0)
model.compile("sgd", "binary_crossentropy")
table = model.embedding_dict["item"].weight
before = table.detach()[FIRST:].clone()
scores = model.predict({"item": np.arange(FIRST, FIRST + 8)}, 8).ravel()
print(len(set(scores.tolist())), "scores of 8 items, whose vectors are", len(set(map(tuple, before[:8].tolist()))))
assert scores[0] == scores[1] and scores[3] == scores[4] == scores[5]

model.fit({"item": np.full(64, FIRST + 1)}, np.ones(64), batch_size=8, verbose=0)
moved = (table.detach()[FIRST:] != before).any(dim=1).nonzero().ravel().tolist()
print(f"trained item {FIRST + 1}, and moved the vector of {[FIRST + row for row in moved]}")
assert moved == [0]
PYTHON
