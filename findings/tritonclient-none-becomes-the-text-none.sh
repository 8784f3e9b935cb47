#!/usr/bin/env bash
# tritonclient 2.73.0: None in an array for a BYTES tensor is sent as the text "None", a number as its digits, bytes as they
# are, NaN as "nan", in JSON and in the binary form alike, without an error. So where a column has missing values a
# category "None" is asked for, which the model has never seen, or has seen as something else.
# What to do: replace missing values before (by what training had for them), or leave the sample's value out.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check 'tritonclient[http]==2.73.0'
cd "$folder"
venv/bin/python - <<'PYTHON'
import json

import numpy as np
import tritonclient.http as http
from tritonclient.utils import deserialize_bytes_tensor

values = np.array(["shoes", None, b"hats", 7, float("nan")], object)
for binary in (True, False):
    tensor = http.InferInput("category", [5], "BYTES")
    tensor.set_data_from_numpy(values, binary_data=binary)
    body, head = http.InferenceServerClient.generate_request_body([tensor])
    if binary:
        sent = [each.decode() for each in deserialize_bytes_tensor(body[head:])]
    else:
        sent = json.loads(body)["inputs"][0]["data"]
    print("binary" if binary else "JSON", sent)
    assert sent == ["shoes", "None", "hats", "7", "nan"]
PYTHON
