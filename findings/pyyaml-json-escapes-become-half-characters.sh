#!/usr/bin/env bash
# PyYAML 6.0.4: JSON is YAML, but a character beyond 16 bits (emoji, rare Chinese characters) that `json.dumps` writes as
# two escapes becomes a text of two halves with SafeLoader, which equals nothing and can't be encoded: a column, a path or a
# label of that name is silently another one, until something writes it and fails. CSafeLoader, which PyYAML's page offers as
# the same but faster, refuses the text.
# Expected: yaml.safe_load(json.dumps(x)) == x, with either loader.
# What to do: json.dumps(ensure_ascii=False); or join them: text.encode("utf-16", "surrogatepass").decode("utf-16").
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check pyyaml==6.0.4
"$folder/venv/bin/python" - <<'PYTHON'
import json

import yaml

name = "a \N{GRINNING FACE}"
text = json.dumps(name)
read = yaml.safe_load(text)
print(text, "->", ascii(read), "of length", len(read))
assert read == "a \ud83d\ude00" != name and len(read) == len(name) + 1
try:
    read.encode()
    raise AssertionError("it is text now")
except UnicodeEncodeError as error:
    print("written:", error)
assert yaml.safe_load(json.dumps(name, ensure_ascii=False)) == name
assert json.loads(text) == name
try:
    yaml.load(text, yaml.CSafeLoader)
    raise AssertionError("CSafeLoader reads it now")
except yaml.YAMLError as error:
    print("CSafeLoader:", error.problem)
PYTHON
