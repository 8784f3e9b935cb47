#!/usr/bin/env bash
# keras-rs 0.4.0: layers.RemoveAccidentalHits removes nothing. It adds a hundredth of the smallest *positive* float32, some 1e-40, to
# the logits of negatives that are the row's own item, where it should add the most negative one: they come out bit for bit
# as they went in. (There is a pull request since September 2026, keras-team/keras-rs#206, that says so.)
# Expected: about minus infinity there, so that the softmax leaves them out. With the other samples of a batch as negatives a
# popular item is its own negative: of two samples that both clicked item 7 the loss can't fall below log 2, and training pushes
# popular items down, which is what the layer was put there to prevent. Nothing warns of it.
# What to do: keras.ops.where(hit, -1e9, logits), hit being (ids == the positive's id) and not the label, made row by row.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check keras-rs==0.4.0 keras==3.15.1 jax==0.10.2
cd "$folder"
KERAS_BACKEND=jax venv/bin/python - <<'PYTHON'
import keras_rs
import numpy as np
from keras import ops

items = np.array([7, 7, 3])  # what the three samples of a batch clicked: each is the negative of the others
labels = np.eye(3, dtype=np.float32)
logits = np.where(items[:, None] == items[None, :], 5.0, -5.0).astype(np.float32)  # a model that has learned it all

out = np.asarray(keras_rs.layers.RemoveAccidentalHits()(logits, labels, items))
hits = (items[:, None] == items[None, :]) & (labels == 0)
print("logits of accidental hits:", logits[hits], "->", out[hits])
assert hits.sum() == 2 and out.tobytes() == logits.tobytes()


def loss(values):
    return float(ops.mean(ops.categorical_crossentropy(labels[:2], values[:2], from_logits=True)))


right = np.where(hits, -1e9, logits).astype(np.float32)
print(f"loss of the samples of item 7: {loss(out):.4f} with the layer, {loss(right):.4f} where hits are left out")
assert abs(loss(out) - np.log(2)) < 1e-3 and loss(right) < 1e-3
PYTHON
