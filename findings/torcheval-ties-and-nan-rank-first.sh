#!/usr/bin/env bash
# torcheval 0.0.7, torch 2.14.1: hit_rate and reciprocal_rank count the candidates whose score is *greater* than that of the right one.
# Equal scores count for the model, and of NaN none is greater: a model that scores all candidates alike, or that has become NaN, has a
# hit rate at 1 and a mean reciprocal rank of 1.0, the best there is. Logits in bfloat16, which tie, score better than in float32.
# Expected: chance for a constant (hit rate at 1 of 1 in 50 below, as torch.topk gives about), and NaN or an error for NaN. Who keeps the
# checkpoint with the best MRR keeps the one that diverged.
# What to do: refuse scores that aren't finite; rank with half of the ties, in float32.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check torcheval==0.0.7 torch==2.14.1 numpy==2.4.6
cd "$folder"
venv/bin/python -W ignore - <<'PYTHON'
import torch
from torcheval.metrics import HitRate, ReciprocalRank

SAMPLES, CANDIDATES = 20_000, 50
torch.manual_seed(1)
right = torch.randint(CANDIDATES, (SAMPLES,))
draw = 10 + torch.randn(SAMPLES, CANDIDATES) * 0.1  # says nothing about what is right
models = {
    "random": draw,
    "random, in bfloat16": draw.bfloat16(),
    "all alike": torch.zeros(SAMPLES, CANDIDATES),
    "all NaN": torch.full((SAMPLES, CANDIDATES), float("nan")),
}
found = {}
for name, scores in models.items():
    hits, ranks = HitRate(k=1), ReciprocalRank()
    hits.update(scores, right)
    ranks.update(scores, right)
    found[name] = hits.compute().float().mean().item(), ranks.compute().float().mean().item()
    print(f"{name}: hit rate at 1 {found[name][0]:.3f}, mean reciprocal rank {found[name][1]:.3f}")
assert abs(found["random"][0] - 1 / CANDIDATES) < 0.005
assert found["random, in bfloat16"][0] > 1.5 * found["random"][0]
assert found["all alike"] == found["all NaN"] == (1.0, 1.0)
PYTHON
