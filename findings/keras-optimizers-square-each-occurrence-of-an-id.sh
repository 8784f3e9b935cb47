#!/usr/bin/env bash
# keras 3.15.1 on TensorFlow 2.21.0: the gradient of an Embedding is one row for each *occurrence* of an id, and Adam, Adagrad,
# RMSprop, Ftrl and the like square these rows one by one where they should square their sum. So an id that is 100 times
# in a batch moves 10 times too far (as the root of its count): Adam's first step is 9.9996 learning rates, not 1. `clipnorm`
# takes the norm of the rows too, and lets through what is ten times its limit. SGD without clipping is right.
# Expected: the step of the same gradient as a dense one, which is shown beside it: rows of one id summed first. The popular ids
# of a recommendation model learn at a far higher rate than is set, the higher the larger the batch.
# What to do: tf.convert_to_tensor of such gradients in a train step of one's own; or look up tf.unique of the ids and gather.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check tensorflow-cpu==2.21.0 keras==3.15.1
cd "$folder"
KERAS_BACKEND=tensorflow TF_CPP_MIN_LOG_LEVEL=3 venv/bin/python - <<'PYTHON'
import keras
import numpy as np
import tensorflow as tf


def moved(optimizer, sparse=True):
    """Return how far one step of `fit` moves the row of an id that is in all 100 samples of the batch."""
    ids = keras.Input((1,), dtype="int64")
    layer = keras.layers.Embedding(10, 4, embeddings_initializer="zeros")
    model = keras.Model(ids, keras.ops.sum(layer(ids), axis=(1, 2)))
    if not sparse:
        apply = optimizer.apply
        optimizer.apply = lambda grads, *rest: apply([tf.convert_to_tensor(each) for each in grads], *rest)
    model.compile(loss=lambda label, score: score, optimizer=optimizer)
    model.fit(np.zeros((100, 1), np.int64), np.zeros(100), batch_size=100, verbose=0)
    return -float(layer.embeddings.numpy()[0, 0])


rate = {"learning_rate": 1.0}
for name, make, ratio in (
    ("SGD", lambda: keras.optimizers.SGD(**rate), 1),
    ("SGD, clipnorm=0.2", lambda: keras.optimizers.SGD(clipnorm=0.2, **rate), 10),
    ("Adam", lambda: keras.optimizers.Adam(**rate), 10),
    ("Adagrad", lambda: keras.optimizers.Adagrad(initial_accumulator_value=0.0, **rate), 10),
    ("RMSprop", lambda: keras.optimizers.RMSprop(**rate), 10),
    ("Ftrl", lambda: keras.optimizers.Ftrl(initial_accumulator_value=1e-9, **rate), 10),
):
    found, right = moved(make()), moved(make(), sparse=False)
    print(f"{name}: moves by {found:.4f}, with the rows summed first by {right:.4f}")
    assert abs(found / right / ratio - 1) < 0.01
PYTHON
