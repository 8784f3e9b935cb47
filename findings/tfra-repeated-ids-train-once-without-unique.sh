#!/usr/bin/env bash
# tensorflow-recommenders-addons 0.8.1 (TFRA), TensorFlow 2.16.2, tf-keras 2.16.0, Python 3.11: a layer with with_unique=False (and
# shadow_ops.embedding_lookup, which it uses) does not add up the gradients of an id that is twice in a batch. With bp_v2=False the last one
# counts, with bp_v2=True the first one; the others are lost. An id that is 1,000 times in a batch learns as if it were in it once.
# Expected: the sum, as of tf.nn.embedding_lookup and of the layer's default. `with_unique` is said to be whether the layer looks for
# repeated ids, so one leaves that out to save its time; the lookup is right either way.
# What to do: leave with_unique=True, or tf.unique before and tf.gather behind.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check tensorflow-cpu==2.16.2 tensorflow-recommenders-addons==0.8.1
"$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check --no-deps tf-keras==2.16.0  # TFRA's optimizers know no other Keras
cd "$folder"
TF_USE_LEGACY_KERAS=1 TF_CPP_MIN_LOG_LEVEL=3 venv/bin/python -W ignore - <<'PYTHON'
import tensorflow as tf
from tensorflow_recommenders_addons import dynamic_embedding as de

COUNT = 1000
ids = tf.constant([7] * COUNT + [5], tf.int64)
weights = tf.concat([tf.range(1, COUNT + 1, dtype=tf.float32), [1.0]], 0)[:, None]  # the gradient of each occurrence
found = {}
for unique in (True, False):
    for bp_v2 in (False, True):
        layer = de.keras.layers.Embedding(
            1, key_dtype=tf.int64, initializer=tf.keras.initializers.Constant(0.0), with_unique=unique, bp_v2=bp_v2,
            name=f"layer_{unique}_{bp_v2}",
        )
        optimizer = de.DynamicEmbeddingOptimizer(tf.keras.optimizers.SGD(1.0))
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(layer(ids) * weights)
        optimizer.apply_gradients(zip(tape.gradient(loss, layer.trainable_variables), layer.trainable_variables))
        moved = -layer(tf.constant([7, 5], tf.int64)).numpy().ravel()
        found[unique, bp_v2] = moved[0]
        print(f"with_unique={unique}, bp_v2={bp_v2}: id 7, {COUNT} times in the batch, moves by {moved[0]:.0f}, id 5 by {moved[1]:.0f}")
        assert moved[1] == 1
total = COUNT * (COUNT + 1) // 2
assert found == {(True, False): total, (True, True): total, (False, False): COUNT, (False, True): 1}
PYTHON
