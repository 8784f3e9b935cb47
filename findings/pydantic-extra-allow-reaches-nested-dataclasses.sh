#!/usr/bin/env bash
# pydantic 2.14.4: `extra="allow"` of a model holds for the plain dataclasses in its fields, too. An unknown key of
# such a dataclass is then no validation error: one without slots gets an attribute that it never declared, and
# for one with slots the validation ends in an AttributeError, which is no ValidationError. A config that lets a
# section have free keys thereby lets misspelt options of everything below it through.
# What to do: take the free keys out in a before-validator, and forbid extras in the model.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check pydantic==2.14.4
cd "$folder"
venv/bin/python - <<'PYTHON'
from dataclasses import dataclass

from pydantic import BaseModel, ConfigDict, ValidationError


@dataclass(frozen=True)
class Plain:
    rate: float = 0.1


@dataclass(frozen=True, slots=True)
class Slotted:
    rate: float = 0.1


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid")
    plain: Plain = Plain()


class Free(BaseModel):
    model_config = ConfigDict(extra="allow")
    plain: Plain = Plain()
    slotted: Slotted = Slotted()


found = Free.model_validate({"plain": {"ratee": 5.0}}).plain
print("allow, without slots:", found, vars(found))
assert found.rate == 0.1 and found.ratee == 5.0
try:
    Free.model_validate({"slotted": {"ratee": 5.0}})
    seen = "taken"
except ValidationError:
    seen = "ValidationError"
except AttributeError as error:
    seen = f"AttributeError: {error}"
print("allow, with slots:", seen)
assert seen.startswith("AttributeError")
try:
    Strict.model_validate({"plain": {"ratee": 5.0}})
    seen = "taken"
except ValidationError as error:
    seen = error.errors()[0]["type"]
print("forbid:", seen)
assert seen == "unexpected_keyword_argument"
PYTHON
