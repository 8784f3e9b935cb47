#!/usr/bin/env bash
# PyYAML 6.0.4: where a mapping merges (<<) one that itself merges a third, a key of *one letter* keeps the value of the
# third, a longer key that of the second, as it should: pairs are told apart by the identity of the key's text, and
# CPython has one object for each one-letter text. Tables or features with one-letter names are configured wrongly.
# Expected: the nearer mapping wins whatever the name's length.
# What to do: longer names, or no chains of merges.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check pyyaml==6.0.4
"$folder/venv/bin/python" - <<'PYTHON'
import yaml

TEXT = "first: &first {NAME: 1}\nsecond: &second {<<: *first, NAME: 2}\nthird: {<<: *second}\n"
found = {name: yaml.safe_load(TEXT.replace("NAME", name))["third"][name] for name in ("u", "user")}
print(found)
assert found == {"u": 1, "user": 2}
PYTHON
