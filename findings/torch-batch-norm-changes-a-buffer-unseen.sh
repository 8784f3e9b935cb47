#!/usr/bin/env bash
# torch 2.13.0: in training batch norm changes its buffers running_mean and running_var in place and leaves their
# version counters (tensor._version) as they were. Who watches the counters for changes, as autograd does, sees
# nothing of it; num_batches_tracked alone is counted.
# What to do: compare what buffers hold, and not their versions, to find modules that keep something of a batch.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check torch==2.13.0 numpy
cd "$folder"
venv/bin/python - <<'PYTHON'
import torch

norm = torch.nn.BatchNorm1d(3)
before = {name: (each.clone(), each._version) for name, each in norm.named_buffers()}
norm(torch.randn(8, 3))
for name, each in norm.named_buffers():
    held, version = before[name]
    print(f"{name}: changed {not torch.equal(each, held)}, version {version} -> {each._version}")
    assert not torch.equal(each, held)
    assert (each._version > version) == (name == "num_batches_tracked")
PYTHON
