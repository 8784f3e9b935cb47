#!/usr/bin/env bash
# implicit 0.7.3, CPU: `recommend` gives the items that it was told to leave out where fewer than N others remain: those that the user has
# already (filter_already_liked_items, which is on unless told), and those of filter_items, stand at the end of the list. Matrix factorizations give
# them the score -3.4e38, nearest neighbours 0, which items without a common user have too. With candidates of one's own (`items`) that is every
# user who has one of them, also where N is their number. And N beyond the catalog is filled up with item 0 and the score 0, again and again.
# Expected: a shorter list; "don't return items present in the training set that were rated by the specified user" is what its documentation
# says. A shelf of 20 items in stock, ranked for a user, ends with what that user has bought, and a count of what was shown is wrong.
# What to do: keep ids whose score is above -3.4e38 (above 0 for nearest neighbours), or take them out again by user_items.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check implicit==0.7.3 numpy==2.4.6 scipy==1.17.1
cd "$folder"
OPENBLAS_NUM_THREADS=1 venv/bin/python -W ignore - <<'PYTHON'
import numpy as np
from implicit.als import AlternatingLeastSquares
from implicit.bpr import BayesianPersonalizedRanking
from implicit.nearest_neighbours import CosineRecommender
from scipy.sparse import random

USER, ITEMS = 1, 50
bought = random(200, ITEMS, 0.1, format="csr", random_state=0, dtype=np.float32)
bought.data[:] = 1
has = bought[USER].indices
rest = np.setdiff1d(np.arange(ITEMS), has)
shelf = np.concatenate([has[:2], rest[:3]])  # five candidates, of which the user has two
print(f"the user has {has.tolist()}, candidates are {shelf.tolist()}")
lowest = np.finfo(np.float32).min
for model, mark in (
    (AlternatingLeastSquares(8, iterations=5, num_threads=1, random_state=0), lowest),
    (BayesianPersonalizedRanking(8, iterations=50, num_threads=1, random_state=0), lowest),
    (CosineRecommender(K=20, num_threads=1), 0),
):
    name = type(model).__name__
    model.fit(bought, show_progress=False)
    ids, scores = model.recommend(USER, bought[USER], N=5, items=shelf)
    print(f"{name}: {ids.tolist()}, scores {scores.tolist()}")
    assert sorted(ids[:3]) == rest[:3].tolist() and sorted(ids[3:]) == has[:2].tolist()
    assert (scores[3:] == mark).all() and (scores[:3] > mark).all()
    ids, scores = model.recommend(USER, bought[USER], N=ITEMS)
    assert sorted(ids[-len(has) :]) == has.tolist() and (scores[-len(has) :] == mark).all()
    ids, scores = model.recommend(USER, bought[USER], N=ITEMS + 10)
    if mark:
        print(f"{name}, N = {ITEMS + 10} of {ITEMS} items: ends with {ids[-10:].tolist()}")
        assert ids[-10:].tolist() == [0] * 10 and (scores[-10:] == 0).all()
PYTHON
