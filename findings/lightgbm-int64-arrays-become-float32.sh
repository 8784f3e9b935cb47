#!/usr/bin/env bash
# lightgbm 4.7.0: features in a NumPy array of int64 are rounded to float32, in training and in predict; the same integers in a
# pandas DataFrame, an Arrow table or a float64 array are kept to float64, which LightGBM computes in. So seconds since 1970 come in
# steps of 128, ids beyond 2^24 fall together, and a model that was trained on a DataFrame scores `frame.to_numpy()` wrongly.
# Expected: the same trees and scores whatever holds the numbers, or a warning. Below a model with an AUC of .96 has one of .53
# on the same rows, in the same process. It hurts who trains from files and serves from arrays.
# What to do: astype(np.float64) before Dataset and before predict.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check lightgbm==4.7.0 pandas==3.1.1 pyarrow==26.0.1 scikit-learn==1.9.1
cd "$folder"
venv/bin/python - <<'PYTHON'
import lightgbm as lgb
import numpy as np
import pandas as pd
import pyarrow as pa
from sklearn.metrics import roc_auc_score

seconds = 1_790_000_000 + np.random.default_rng(0).integers(0, 3600, 20_000)
clicked = (seconds % 60 < 30).astype(float)
forms = {
    "array of int64": seconds[:, None],
    "array of float64": seconds[:, None].astype(np.float64),
    "pandas, int64": pd.DataFrame({"seconds": seconds}),
    "Arrow, int64": pa.table({"seconds": seconds}),
}
options = {"objective": "binary", "verbose": -1, "num_threads": 1, "num_leaves": 200, "min_data_in_leaf": 5}
for trained, rows in forms.items():
    model = lgb.train(options, lgb.Dataset(rows, clicked), 30)
    for scored, same in forms.items():
        score = model.predict(same, num_threads=1)
        auc = roc_auc_score(clicked, score)
        print(f"trained on {trained}, scored on {scored}: AUC {auc:.3f}, {len(np.unique(score))} scores")
        assert auc < 0.6 if "array of int64" in (trained, scored) else auc > 0.9
assert len(np.unique(seconds)) > 3500 and len(np.unique(seconds.astype(np.float32))) < 32
PYTHON
