#!/usr/bin/env bash
# torch 2.14.1, CPU: a sparse tensor of one entry, one number wide, whose values are an expanded scalar (strides 0) adds nothing to a
# dense tensor: to_dense(), dense + sparse and dense.add_(sparse) take it for 0; torch.sparse.sum says 1. With two entries, or two numbers
# each, it is right. So the step of SGD is lost where a batch has one id of an nn.Embedding(n, 1, sparse=True) (a bias, a first-order
# weight) and its loss ends in .sum(), whose gradient is such a scalar. Adagrad and SparseAdam do their step.
# Expected: 1, as of values that are not expanded (.contiguous() leaves these as they are). There is no warning: the id does not learn.
# What to do: a loss that is a mean, or loss.backward(torch.ones_like(loss)) of losses that are not yet summed.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check torch==2.14.1 numpy
cd "$folder"
venv/bin/python - <<'PYTHON'
import torch
from torch import nn


def sparse(entries, dim, *, expanded):
    values = torch.ones(()).expand(entries, dim) if expanded else torch.ones(entries, dim)
    return torch.sparse_coo_tensor([list(range(entries))], values, (8, dim), check_invariants=True)


for entries, dim, expanded, right in ((1, 1, True, False), (1, 1, False, True), (2, 1, True, True), (1, 2, True, True)):
    it = sparse(entries, dim, expanded=expanded)
    sums = [it.to_dense().sum(), (torch.zeros(8, dim) + it).sum(), torch.zeros(8, dim).add_(it).sum()]
    sums = [each.item() for each in sums]
    print(f"{entries} x {dim}, {'expanded' if expanded else 'of its own memory'}: {sums}, torch.sparse.sum {torch.sparse.sum(it).item()}")
    assert sums == [entries * dim * right] * 3
    assert torch.sparse.sum(it).item() == entries * dim


def moved(ids, *, dim=1, optimizer=torch.optim.SGD, end=torch.Tensor.sum):
    weights = nn.Embedding(8, dim, sparse=True)
    before = weights.weight.detach().clone()
    end(weights(torch.tensor(ids))).backward()
    optimizer(weights.parameters(), lr=1.0).step()
    return (weights.weight.detach() - before).abs().sum().item()


found = {
    "SGD, one id, sum": moved([3]),
    "SGD, one id, mean": moved([3], end=torch.Tensor.mean),
    "SGD, one id of dim 2, sum": moved([3], dim=2),
    "SGD, two ids, sum": moved([3, 4]),
    "Adagrad, one id, sum": moved([3], optimizer=torch.optim.Adagrad),
}
for name, by in found.items():
    print(f"{name}: moved by {by:.3f}")
    assert (by < 1e-6) == (name == "SGD, one id, sum")
PYTHON
