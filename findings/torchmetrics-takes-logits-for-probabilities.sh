#!/usr/bin/env bash
# torchmetrics 1.9.0 with torch 2.14.1: BinaryAUROC (and other binary metrics) given logits applies the sigmoid where a value is outside
# [0, 1], and decides that for each update by itself. An update whose logits all happen to lie in [0, 1] is taken for probabilities: a
# logit of .1 becomes a score of .1 beside the .52 of the same logit in the next update. Small batches (a last batch, a user at a time, a
# request at a time) mix both scales, and the AUC of the same 4,000 logits falls from .855 to .772 with an update each.
# Expected: an AUC that does not depend on how samples are cut into updates, or an error.
# What to do: torch.sigmoid(logits) before update, always.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check torchmetrics==1.9.0 torch==2.14.1 numpy
cd "$folder"
venv/bin/python - <<'PYTHON'
import torch
from torchmetrics.classification import BinaryAUROC

torch.manual_seed(0)
logits = torch.randn(4000)
labels = (torch.rand(4000) < torch.sigmoid(2 * logits)).int()


def auc(scores, size):
    metric = BinaryAUROC()
    for start in range(0, 4000, size):
        metric.update(scores[start : start + size], labels[start : start + size])
    return metric.compute().item()


whole = auc(torch.sigmoid(logits), 4000)
for size in (4000, 100, 4, 2, 1):
    of_logits, of_probabilities = auc(logits, size), auc(torch.sigmoid(logits), size)
    print(f"updates of {size}: {of_logits:.4f} of logits, {of_probabilities:.4f} of probabilities")
    assert abs(of_probabilities - whole) < 1e-6
    assert (abs(of_logits - whole) < 1e-6) == (size >= 100)
assert auc(logits, 1) < whole - 0.08
PYTHON
