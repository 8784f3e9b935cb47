"""result.json read again: damage is named, and what a job wrote is taken."""

import json
from pathlib import Path
from typing import Any

import pytest
from a_result import RESULT

from scheduler.errors import RunDirectoryError
from scheduler.run.results import read_result


def write(folder: Path, value: Any) -> Path:
    path = folder / "result.json"
    path.write_text(json.dumps(value))
    return path


def test_what_a_job_wrote_is_read(tmp_path: Path) -> None:
    assert read_result(write(tmp_path, RESULT)) == RESULT


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        ({"checkpoint": 5}, "checkpoint can't be 5"),
        ({"global_step": "x"}, "global_step can't be 'x'"),
        ({"global_step": True}, "global_step can't be True"),
        ({"recoveries": 5}, "recoveries can't be 5"),
        ({"recoveries": [5]}, "recoveries can't hold 5"),
        ({"eval": []}, r"eval can't be \[\]"),
        ({"tables": {"a": 1}}, "tables can't hold 1"),
        ({"skipped_files": {"read": None}}, "skipped_files can't hold None"),
    ],
)
@pytest.mark.parametrize("whole", [True, False])
def test_a_value_of_another_type_is_named(
    tmp_path: Path, damage: dict[str, Any], said: str, whole: bool
) -> None:
    path = write(tmp_path, {**RESULT, **damage})

    with pytest.raises(RunDirectoryError, match=f"{path} is damaged.*{said}"):
        read_result(path, whole=whole)


@pytest.mark.parametrize(
    ("value", "said"), [([], "no JSON object"), (None, "no JSON object"), ({}, "it lacks check")]
)
def test_what_is_no_result_is_refused(tmp_path: Path, value: Any, said: str) -> None:
    with pytest.raises(RunDirectoryError, match=said):
        read_result(write(tmp_path, value))


def test_results_of_earlier_versions_may_lack_what_these_did_not_write(tmp_path: Path) -> None:
    assert read_result(write(tmp_path, {"global_step": 3}), whole=False) == {"global_step": 3}
