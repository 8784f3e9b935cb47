"""What a module was made for, from what `synchromesh export` wrote; needs no torch."""

import json
from pathlib import Path
from typing import Any

import pytest

from worker.models.torch import ModuleInputs

LOOKUPS = [
    {"feature": "item", "dim": 4, "combiner": "mean", "max_length": None},
    {"feature": "seen", "dim": 8, "combiner": "none", "max_length": 20},
    {"feature": "tags", "dim": 2, "combiner": "none", "max_length": None},
]
MODEL = {"type": "torch", "tasks": ["click", "buy"], "dense": ["d", "e"], "lookups": LOOKUPS}


def test_it_is_what_the_class_was_given(tmp_path: Path) -> None:
    (tmp_path / "export.json").write_text(json.dumps({"model": MODEL}))

    inputs = ModuleInputs.of_export(tmp_path)

    assert inputs == ModuleInputs(
        num_dense=2,
        dims={"item": 4, "seen": 8, "tags": 2},
        sequences={"seen": 20, "tags": None},
        tasks=("click", "buy"),
        dense=("d", "e"),
    )


@pytest.mark.parametrize(
    ("about", "said"),
    [
        ({"model": {**MODEL, "type": "dlrm"}}, "of a model of type 'dlrm'"),
        ({"model": {"type": "torch"}}, "does not say what a model takes: KeyError"),
        ([], "does not say what a model takes"),
    ],
)
def test_what_is_none_is_refused(tmp_path: Path, about: Any, said: str) -> None:
    (tmp_path / "export.json").write_text(json.dumps(about))

    with pytest.raises(ValueError, match=said):
        ModuleInputs.of_export(tmp_path)
