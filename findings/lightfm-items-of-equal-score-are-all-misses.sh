#!/usr/bin/env bash
# lightfm-next 1.19.0 (a fork of LightFM that builds with current Python): the rank of an item counts all others of the same score before it
# (on purpose, lyst/lightfm#149, but its documentation doesn't say so). Items that are described by features which others have too, what
# LightFM is for, have equal scores by the dozen: a model that puts each user's category on top, ten items, has a precision at 5 of
# 0 and a reciprocal rank of exactly 1/10, where ties at random give .23 and .45. The AUC of one score for all is below 0, which no AUC can be.
# Expected: half of the ties, as AUC is "the probability that a randomly chosen positive example has a higher score" there, and .5 for a
# constant in scikit-learn 1.9.1; or the order in which argsort of `predict` shows them. Models of features look worse than those with an
# embedding for each item, which has no ties and knows nothing of new items.
# What to do: rank the scores of `predict` yourself, ties at random; roc_auc_score for each user.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check lightfm-next==1.19.0 scikit-learn==1.9.1 numpy==2.4.6 scipy==1.17.1
cd "$folder"
venv/bin/python -W ignore - <<'PYTHON'
import numpy as np
from lightfm import LightFM
from lightfm.evaluation import auc_score, precision_at_k, reciprocal_rank
from scipy.sparse import csr_matrix
from sklearn.metrics import roc_auc_score

USERS, ITEMS, KINDS, LIKED = 300, 200, 20, 5
draw = np.random.default_rng(0)
kind = np.arange(ITEMS) % KINDS
features = csr_matrix((np.ones(ITEMS, np.float32), (np.arange(ITEMS), kind)))  # an item is its kind, ten items each
taste = draw.integers(KINDS, size=USERS)
user = np.repeat(np.arange(USERS), LIKED)
item = np.concatenate([draw.choice(np.flatnonzero(kind == each), LIKED, replace=False) for each in taste])


def matrix(rows):
    return csr_matrix((np.ones(rows.sum(), np.float32), (user[rows], item[rows])), shape=(USERS, ITEMS))


later = draw.random(len(user)) < 0.4
train, test = matrix(~later), matrix(later)
users = np.flatnonzero(test.getnnz(axis=1))
options = {"item_features": features, "num_threads": 1}


def compare():
    theirs = [float(each.mean()) for each in (
        precision_at_k(model, test, k=5, **options), reciprocal_rank(model, test, **options), auc_score(model, test, **options))]
    ours = []
    for each in users:
        scores, liked = model.predict(int(each), np.arange(ITEMS), **options), test[each].toarray().ravel() > 0
        order = np.lexsort((draw.random(ITEMS), -scores))  # ties at random
        ours.append((liked[order[:5]].mean(), 1 / (1 + np.argmax(liked[order])), roc_auc_score(liked, scores)))
    return theirs, np.mean(ours, axis=0).tolist()


model = LightFM(16, loss="warp", random_state=0)
model.fit(train, epochs=30, **options)
theirs, ours = compare()
print("precision at 5, reciprocal rank, AUC:", np.round(theirs, 3), "with ties at random or a half:", np.round(ours, 3))
assert theirs[0] < 0.01 and abs(theirs[1] - 0.1) < 0.01 and ours[0] > 0.15 and ours[1] > 0.3

for name in ("item_embeddings", "user_embeddings", "item_biases", "user_biases"):
    getattr(model, name)[:] = 0
theirs, ours = compare()
print(f"one score for all: AUC {theirs[2]:.4f}, scikit-learn {ours[2]:.4f}")
assert theirs[2] < 0 and ours[2] == 0.5
PYTHON
