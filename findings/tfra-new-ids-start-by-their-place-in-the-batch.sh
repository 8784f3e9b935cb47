#!/usr/bin/env bash
# tensorflow-recommenders-addons 0.8.1 (TFRA), TensorFlow 2.16.2, tf-keras 2.16.0, Python 3.11: with an initializer of tf.keras, RandomNormal say, a new
# id starts from the vector of its *place* in the lookup. The first id of every batch gets the same row, bit for bit, the second that
# of all other second ones: a table has no more different starts than a batch has ids. An initializer object of Keras gives the same numbers at
# each call, and TFRA calls it once a lookup; Keras warns of that, once, where it has no seed, and not at all where it has one.
# Expected: a draw for each id, as tf.random_normal_initializer gives (shown beside it), which reads the same. New ids
# can't be told apart before they have learned something of their own, which is what random starts are for.
# What to do: tf.random_normal_initializer(...) or tf.compat.v1's.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check tensorflow-cpu==2.16.2 tensorflow-recommenders-addons==0.8.1
"$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check --no-deps tf-keras==2.16.0  # TFRA's optimizers know no other Keras
cd "$folder"
TF_USE_LEGACY_KERAS=1 TF_CPP_MIN_LOG_LEVEL=3 venv/bin/python -W ignore - <<'PYTHON'
import numpy as np
import tensorflow as tf
from tensorflow_recommenders_addons import dynamic_embedding as de

BATCHES, SIZE, DIM = 50, 20, 8


def different_rows(name, initializer):
    """Train ids that are new in each batch, with gradients of zero, and return how many of their rows differ."""
    layer = de.keras.layers.Embedding(DIM, key_dtype=tf.int64, initializer=initializer, name=name)
    optimizer = de.DynamicEmbeddingOptimizer(tf.keras.optimizers.SGD(0.1))

    @tf.function(autograph=False)
    def step(ids):
        with tf.GradientTape() as tape:
            loss = 0.0 * tf.reduce_sum(layer(ids))
        optimizer.apply_gradients(zip(tape.gradient(loss, layer.trainable_variables), layer.trainable_variables))

    ids = np.random.default_rng(0).permutation(2**20)[: BATCHES * SIZE].reshape(BATCHES, SIZE)
    for batch in ids:
        step(tf.constant(batch, tf.int64))
    rows = layer(tf.constant(ids.ravel(), tf.int64)).numpy()
    assert len(rows) == BATCHES * SIZE and np.abs(rows).max() > 0
    return len(np.unique(rows, axis=0))


for name, make, expected in (
    ("keras", lambda: tf.keras.initializers.RandomNormal(), SIZE),
    ("keras_seed", lambda: tf.keras.initializers.RandomNormal(seed=7), SIZE),
    ("keras_uniform", lambda: tf.keras.initializers.RandomUniform(), SIZE),
    ("tf", lambda: tf.random_normal_initializer(), BATCHES * SIZE),
):
    found = different_rows(name, make())
    print(f"{name}: {BATCHES * SIZE} ids have {found} different rows")
    assert found == expected
PYTHON
