#!/usr/bin/env bash
# torch 2.13.0: under torch.autocast(bfloat16) the output of a model's last linear layer is bfloat16, whatever dtype
# its parameters have: logits have eight bits, so 20,000 samples share some 2,000 of them. Samples with the
# same score are ties, by which an AUC is off by as much as half of their share of all pairs.
# What to do: compute the last layer in float32, with torch.autocast("cpu", enabled=False); .float() of the logits
# afterwards is too late.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check torch==2.13.0 numpy
cd "$folder"
venv/bin/python - <<'PYTHON'
import torch

torch.manual_seed(1)
hidden, last = torch.nn.Linear(64, 64), torch.nn.Linear(64, 1)
x = torch.randn(20_000, 64)
with torch.no_grad():
    exact = last(torch.relu(hidden(x)))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rounded = last(torch.relu(hidden(x)))
        with torch.autocast("cpu", enabled=False):
            kept = last(torch.relu(hidden(x)).float())
counts = [each.unique().numel() for each in (exact, rounded.float(), kept)]
print(f"distinct logits of 20,000: float32 {counts[0]}, bfloat16 {counts[1]}, last layer apart {counts[2]}")
assert rounded.dtype == torch.bfloat16 and counts[1] < 4000
assert min(counts[0], counts[2]) > 19_000
PYTHON
