"""Staleness as an input: what is replayed is training, and what is stale is what the case says."""

import json
from pathlib import Path

import pytest
import stale_gradients

from worker.datasets.synthetic import CriteoLike, write_criteo_like


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("rows")
    write_criteo_like(directory, CriteoLike(rows=3000, test_rows=500, files=2))
    return directory


def lines_of(capsys: pytest.CaptureFixture[str], *arguments: str) -> list[dict[str, object]]:
    assert stale_gradients.main(list(arguments)) == 0
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def test_cases_differ_by_what_is_stale_and_by_nothing_else(
    rows: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    small = ("--data", str(rows), "--batch", "64", "--m", "2", "--steps", "12", "--seeds", "2")
    cases = ("sync", "one step after 20 steps", "rows one step", "dense one step", "all one step")
    found = lines_of(capsys, *small, "--cases", *cases)

    assert [line["case"] for line in found] == [
        case.name for case in stale_gradients.CASES if case.name in cases
    ]
    by_name = {line["case"]: line for line in found}
    assert by_name["sync"]["difference"] == 0
    # Twelve steps: it is sync, to the last bit.
    assert by_name["one step after 20 steps"]["auc"] == by_name["sync"]["auc"]
    stale = [by_name[case]["dense_squares"] for case in cases if case != cases[1]]
    assert len(set(stale)) == len(stale)


def test_a_case_that_is_not_there_and_data_that_are_not_are_refused(
    rows: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        stale_gradients.main(["--cases", "fresh"])
    assert ended.value.code == 2
    assert "there is no case 'fresh'" in capsys.readouterr().err

    assert stale_gradients.main(["--data", str(tmp_path / "none")]) == 2
    assert "none" in capsys.readouterr().err
