#!/usr/bin/env bash
# torch 2.14.1, CPU: the gradient of an nn.Embedding or nn.EmbeddingBag in bfloat16 is summed in bfloat16, one occurrence after the
# other. A sum has 8 bits, so it stops growing at some 256 times its summands: an id that is 4,096 times in a batch, each
# time with gradient 1, gets 256. So it is with sparse=True, and with weight[ids]; float16 stops at 2,048. weight.index_select(0, ids),
# which is the same lookup, and x.sum() give 4,096: they sum in float32.
# Expected: float32 sums and one rounding at the end, as of matrix products. The ids that are in most samples (country,
# device, "unknown") hardly learn more from a batch of 4,096 than from one of 256, and nothing is NaN or infinite.
# What to do: keep tables in float32 and cast what was looked up; or look up by index_select.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check torch==2.14.1 numpy
cd "$folder"
venv/bin/python - <<'PYTHON'
import torch
from torch.nn.functional import embedding, embedding_bag

COUNT = 4096
ids = torch.zeros(COUNT, dtype=torch.long)
offsets = torch.arange(0, COUNT, 4)
lookups = {
    "nn.Embedding": lambda weight: embedding(ids, weight),
    "nn.Embedding, sparse": lambda weight: embedding(ids, weight, sparse=True),
    "nn.EmbeddingBag": lambda weight: embedding_bag(ids, weight, offsets, mode="sum"),
    "weight[ids]": lambda weight: weight[ids],
    "weight.index_select": lambda weight: weight.index_select(0, ids),
}
for dtype, last in ((torch.bfloat16, 256), (torch.float16, 2048), (torch.float32, COUNT)):
    for name, lookup in lookups.items():
        weight = torch.ones(10, 4, dtype=dtype, requires_grad=True)
        lookup(weight).sum().backward()
        got = weight.grad.to_dense()[0, 0].item()
        print(f"{str(dtype)[6:]}, {name}: {got:.0f} of {COUNT}")
        assert got == (COUNT if "select" in name else last)
PYTHON
