#!/usr/bin/env bash
# torchrec 1.9.2, fbgemm-gpu-cpu 1.9.0, torchmetrics 1.0.3, torch 2.14.1, CPU: AUCMetric ranks equal scores by the order of the rows. Of 10,000
# samples with one score, which tell nothing, the AUC is .67 where the positives stand last and .32 where they stand first (seen here;
# its sort is not stable, so these figures may differ elsewhere).
# Expected: .5, a tie counting one half, as scikit-learn 1.9.1 has it. New users and items share the score of what is unknown, rounded scores
# and trees tie by thousands, and rows are seldom in a random order: sessions end with the click, samplers write the negatives behind
# their positive. The same model then has another AUC for another order of the same rows, and a worse one may have the better AUC.
# What to do: give scores and labels to sklearn.metrics.roc_auc_score, or shuffle the window.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check torch==2.14.1 torchmetrics==1.0.3 tensordict==0.15.3 \
    pyre-extensions iopath tqdm numpy==2.4.6 scikit-learn==1.9.1
"$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check --no-deps torchrec==1.9.2 fbgemm-gpu-cpu==1.9.0  # else a CUDA build too
cd "$folder"
venv/bin/python -W ignore - <<'PYTHON'
import torch
from sklearn.metrics import roc_auc_score
from torchrec.metrics.auc import AUCMetric
from torchrec.metrics.metrics_config import DefaultTaskInfo as task


def torchrec_auc(scores, labels):
    size = len(labels)
    metric = AUCMetric(world_size=1, my_rank=0, batch_size=size, tasks=[task], window_size=size, fused_update_limit=0)
    ones = torch.ones_like(labels)
    metric.update(predictions={task.name: scores}, labels={task.name: labels}, weights={task.name: ones})
    return next(iter(metric.compute().values())).item()


torch.manual_seed(1)
clicked = (torch.rand(10_000) < 0.02).double()
first, last = clicked.sort(descending=True)[0], clicked.sort()[0]
same = torch.full_like(clicked, 0.5)
found = {}
for name, labels in (("last", last), ("first", first)):
    found[name] = torchrec_auc(same, labels)
    print(f"one score, positives {name}: torchrec {found[name]:.3f}, scikit-learn {roc_auc_score(labels, same):.3f}")
assert found["last"] > 0.6 and found["first"] < 0.4
scores = torch.rand(10_000).double() + 0.2 * clicked
print(f"without ties: torchrec {torchrec_auc(scores, clicked):.5f}, scikit-learn {roc_auc_score(clicked, scores):.5f}")
assert abs(torchrec_auc(scores, clicked) - roc_auc_score(clicked, scores)) < 1e-5
PYTHON
