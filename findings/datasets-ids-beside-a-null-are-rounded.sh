#!/usr/bin/env bash
# datasets 5.2.0 (Hugging Face): with the format "numpy" or "torch" a batch of an int64 column is int64, exact, unless one of its rows is
# null: then that batch is *float32*, and ids beyond 2^24 are rounded: 16777217 is read as 16777216. A list of ids with a null in it
# takes all lists of its batch along. So which id a sample has depends on who else is in its batch, and changes with each shuffle.
# Expected: float64 at worst, as the format "pandas" gives (exact to 2^53), or one dtype for the column. That float64 becomes float32 in
# these formats is known (huggingface/datasets#5517); here no float is in the data. A table of ids below 2^24 shows nothing of it.
# What to do: fill nulls before, or with_format("arrow").
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check datasets==5.2.0 numpy==2.4.6 pyarrow==26.0.1
cd "$folder"
HF_HUB_OFFLINE=1 HF_HOME="$folder" venv/bin/python - <<'PYTHON'
import numpy as np
from datasets import Dataset

ID = 2**24 + 1
data = Dataset.from_dict({"id": [ID, ID + 2, ID, None], "ids": [[ID], [ID, ID + 2], [ID], [None, ID]]})
assert str(data.features["id"].dtype) == "int64"

whole, torn = data.with_format("numpy").iter(batch_size=2)
print("batch without a null:", whole["id"].dtype, whole["id"], "with one:", torn["id"].dtype, torn["id"])
assert whole["id"].dtype == np.int64 and whole["id"].tolist() == [ID, ID + 2]
assert torn["id"].dtype == np.float32 and torn["id"][0] == ID - 1

lists, beside = whole["ids"], torn["ids"]
print("lists:", lists[0].dtype, lists[0], "beside a list with a null:", beside[0].dtype, beside[0])
assert lists[0].tolist() == [ID]
assert beside[0].dtype == np.float32 and beside[0].tolist() == [ID - 1]

alone = data.with_format("numpy")[2]["id"]
print("row 2 by itself:", alone, "of a slice:", int(data.with_format("numpy")[2:4]["id"][0]))
assert alone == ID and data.with_format("numpy")[2:4]["id"][0] == ID - 1
assert data.with_format("arrow")[2:4]["id"].to_pylist() == [ID, None]
PYTHON
