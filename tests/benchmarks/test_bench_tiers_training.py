"""The benchmark of jobs with tiers as a user runs it, at sizes whose figures mean nothing."""

import json
from pathlib import Path

import pytest
from tiers_training import main


@pytest.mark.slow
def test_every_figure_has_a_line(
    jobs_in_threads: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--quick", "--path", str(tmp_path)]) == 0

    found = [json.loads(line) for line in capsys.readouterr().out.splitlines() if line[:1] == "{"]
    lines = {line["name"]: line for line in found}
    assert list(lines) == ["sync memory", "sync tiers", "sync tiers without prefetch"]
    assert all(line["same_model"] for line in lines.values())
    assert lines["sync tiers"]["reads_that_were_ahead"] > 0
    assert lines["sync tiers without prefetch"]["reads_that_were_ahead"] == 0
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("wrong", [("--samples", "0"), ("--times", "1"), ("--path", "/none")])
def test_mistakes_exit_2(wrong: tuple[str, str]) -> None:
    with pytest.raises(SystemExit) as exit_:
        main(list(wrong))
    assert exit_.value.code == 2
