"""Processes of a job on a stream that are killed, as a person would start it."""

import json
from pathlib import Path
from types import SimpleNamespace

import kills
import numpy as np
import pytest


def test_an_audit_tells_rows_that_were_never_trained_and_those_that_were_more_than_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    tables = [SimpleNamespace(name="a"), SimpleNamespace(name="row")]
    parts = [SimpleNamespace(frequency=np.array(times)) for times in ([1, 1, 2], [1])]
    reader = SimpleNamespace(
        store=SimpleNamespace(tables=tables),
        rows=lambda table: parts if table.name == "row" else [],
    )
    monkeypatch.setattr(kills, "CheckpointReader", lambda path: reader)

    assert kills.audit(Path("x"), 6) == {"rows": 6, "once": 3, "never": 2, "more_often": 1}


@pytest.mark.parametrize("wrong", ["--kills=0", "--rate=0"])
def test_no_kills_are_refused(wrong: str) -> None:
    with pytest.raises(SystemExit) as ended:
        kills.main([wrong])

    assert ended.value.code == 2


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.timeout(900)
def test_whoever_is_killed_each_sample_is_trained_once(capsys: pytest.CaptureFixture[str]) -> None:
    assert kills.main(["--kills", "3", "--seed", "2"]) == 0

    *each, found = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["kill"] for line in each] == [1, 2, 3]
    assert found["once"] == found["rows"] > 0
