#!/usr/bin/env bash
# category-encoders 2.11.2: HashingEncoder hashes the text of a value alone. Of several columns all values go into the same components, the
# column's name doesn't count: user 3 with item 5 is the same row of features as user 5 with item 3, however many components
# there are. And the text is that of the column's dtype: 3 is "3", but in a column that pandas made float for a missing value it is "3.0",
# another component. One null in a batch moves all other rows of that batch; a served request without one is hashed as no training row was.
# Expected: "output features (hash buckets) per encoded column", as its documentation has it, or a hash of column and value, as
# scikit-learn's FeatureHasher (user=3); and one component for 3 whatever stands beside it. The first is no collision by chance:
# more components don't help, and any two columns with values in common have it.
# What to do: an encoder for each column, or FeatureHasher; columns as text (Int64, which keeps integers beside nulls, is no help).
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check category-encoders==2.11.2 pandas==3.1.1 scikit-learn==1.9.1
cd "$folder"
cat > run.py <<'PYTHON'
import numpy as np
import pandas as pd
from category_encoders import HashingEncoder


def encoded(frame, encoder):
    return encoder.transform(frame).to_numpy()


def main():
    pairs = pd.DataFrame({"user": [3, 5, 3], "item": [5, 3, 6]})
    encoder = HashingEncoder(cols=["user", "item"], n_components=4096, max_process=1).fit(pairs)
    rows = encoded(pairs, encoder)
    print("(user 3, item 5) = (user 5, item 3):", np.array_equal(rows[0], rows[1]))
    assert np.array_equal(rows[0], rows[1]) and not np.array_equal(rows[0], rows[2])

    users = pd.DataFrame({"user": range(1000)})
    encoder = HashingEncoder(cols=["user"], n_components=4096, max_process=1).fit(users)
    torn = pd.DataFrame({"user": [*range(999), None]})
    forms = {"float64": torn, "Int64": torn.astype("Int64"), "text": torn.astype("Int64").astype("string")}
    whole = encoded(users, encoder)[:999]
    for name, frame in forms.items():
        same = (encoded(frame, encoder)[:999] == whole).all(axis=1).sum()
        print(f"beside a null, as {name}, {same} of 999 users are in their component")
        assert same == 999 if name == "text" else same < 10


if __name__ == "__main__":
    main()
PYTHON
venv/bin/python run.py
