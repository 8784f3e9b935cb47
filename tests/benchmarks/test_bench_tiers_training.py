"""The benchmark of jobs with tiers as a user runs it, at sizes whose figures mean nothing."""

import json
from pathlib import Path

import pytest
from tiers_training import main


@pytest.mark.slow
def test_every_figure_has_a_line(
    jobs_in_threads: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--quick", "--without-prefetch", "--path", str(tmp_path)]) == 0

    found = [json.loads(line) for line in capsys.readouterr().out.splitlines() if line[:1] == "{"]
    lines = {line["name"]: line for line in found}
    cases = ["sync memory", "sync tiers", "sync tiers without prefetch"]
    ratios = [f"{case}, of memory" for case in cases[1:]]
    assert list(lines) == [*cases, *ratios]
    assert all(lines[case]["same_model"] for case in cases)
    assert all(lines[ratio]["target"] == 0.7 for ratio in ratios)
    assert lines["sync tiers"]["reads_that_were_ahead"] > 0
    assert lines["sync tiers without prefetch"]["reads_that_were_ahead"] == 0
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("wrong", [("--samples", "0"), ("--times", "1"), ("--path", "/none")])
def test_mistakes_exit_2(wrong: tuple[str, str]) -> None:
    with pytest.raises(SystemExit) as exit_:
        main(list(wrong))
    assert exit_.value.code == 2
