#!/usr/bin/env bash
# lightgbm 4.7.0, xgboost 3.2.0, catboost 1.2.10: a group without a positive label has an NDCG of 1, the best there is. Of click logs most groups
# (requests, users of a day) have none: below nine of ten, and *random* scores have an NDCG@3 of .93, where scikit-learn 1.9.1, which
# gives such a group 0, says .02, and the mean of the groups that have a click is .23. catboost counts the same groups as 1
# in RecallAt and as 0 in MAP and MRR, so metrics of one call disagree; lightgbm's MAP counts them as 1 too. Only xgboost says so, and has "ndcg@3-".
# Expected: one meaning of NDCG, or these groups left out. A good and a random model differ by a tenth of what they should, early
# stopping and thresholds like "worse by .01" miss it, and NDCG of a day moves with the share of days' groups that have a click.
# What to do: evaluate the groups that have both labels alone, and say how many they are.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check lightgbm==4.7.0 catboost==1.2.10 scikit-learn==1.9.1 numpy==2.4.6
"$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check --no-deps xgboost==3.2.0
cd "$folder"
venv/bin/python -W ignore - <<'PYTHON'
import lightgbm as lgb
import numpy as np
import xgboost as xgb
from catboost.utils import eval_metric
from sklearn.metrics import ndcg_score

GROUPS, SIZE = 2000, 10
draw = np.random.default_rng(1)
clicked = np.zeros((GROUPS, SIZE))
some = draw.random(GROUPS) < 0.1  # of these groups one item was clicked, of the others none
clicked[some, draw.integers(SIZE, size=some.sum())] = 1
score = draw.random((GROUPS, SIZE))
label, start, group = clicked.ravel(), score.ravel(), np.repeat(np.arange(GROUPS), SIZE)

found = {"sklearn ndcg": ndcg_score(clicked, score, k=3)}
found["sklearn ndcg, groups with a click"] = ndcg_score(clicked[some], score[some], k=3)

result = {}
data = lgb.Dataset(draw.random((label.size, 1)), label, group=[SIZE] * GROUPS, init_score=start)
options = {"objective": "lambdarank", "metric": "ndcg,map", "eval_at": [3], "learning_rate": 1e-12, "verbose": -1, "num_threads": 1}
lgb.train(options, data, 1, valid_sets=[data], valid_names=["x"], callbacks=[lgb.record_evaluation(result)])
found |= {f"lightgbm {name[:-2]}": values[0] for name, values in result["x"].items()}

result = {}
data = xgb.DMatrix(np.zeros((label.size, 1)), label, base_margin=start)
data.set_group([SIZE] * GROUPS)
options = {"objective": "rank:ndcg", "eval_metric": ["ndcg@3", "ndcg@3-"], "learning_rate": 0, "nthread": 1}
xgb.train(options, data, 1, evals=[(data, "x")], verbose_eval=False, evals_result=result)
found |= {f"xgboost {name}": values[0] for name, values in result["x"].items()}

for name in ("NDCG", "RecallAt", "MAP", "MRR"):
    found[f"catboost {name}"] = eval_metric(label, start, f"{name}:top=3", group_id=group)[0]
for name, value in found.items():
    print(f"{name}: {value:.3f}")
assert found["sklearn ndcg"] < 0.04 and 0.2 < found["sklearn ndcg, groups with a click"] < 0.4
assert all(found[name] > 0.9 for name in ("lightgbm ndcg", "lightgbm map", "xgboost ndcg@3", "catboost NDCG", "catboost RecallAt"))
assert all(found[name] < 0.05 for name in ("xgboost ndcg@3-", "catboost MAP", "catboost MRR"))
PYTHON
