#!/usr/bin/env bash
# river 0.26.1: metrics.ROCAUC() has ten thresholds, evenly spaced in [0, 1]. Click probabilities all lie below the
# second one: a model with an AUC of .78 is shown as .5, with no warning. RollingROCAUC is exact.
# What to do: RollingROCAUC, or many thresholds; a progressive AUC of .50 from river says nothing about a CTR model.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check river==0.26.1 scikit-learn==1.9.1
cd "$folder"
venv/bin/python - <<'PYTHON'
import random

from river import metrics
from sklearn.metrics import roc_auc_score

draw = random.Random(1)
labels = [draw.random() < 0.02 for _ in range(20_000)]
scores = [min(0.99, max(0.0, draw.gauss(0.03 if label else 0.02, 0.01))) for label in labels]
default, fine, rolling = metrics.ROCAUC(), metrics.ROCAUC(n_thresholds=2000), metrics.RollingROCAUC(window_size=20_000)
for label, score in zip(labels, scores):
    for metric in (default, fine, rolling):
        metric.update(label, score)
exact = roc_auc_score(labels, scores)
print(f"exact {exact:.4f} default {default.get():.4f} 2000 {fine.get():.4f} rolling {rolling.get():.4f}")
assert abs(default.get() - 0.5) < 0.01 and exact > 0.75
assert abs(rolling.get() - exact) < 0.001
PYTHON
