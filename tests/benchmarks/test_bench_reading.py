"""What the benchmark of reading prints, at sizes that mean nothing."""

import json

import pytest
import reading


def test_each_size_of_row_groups_has_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    sizes = ["--row-groups", "65536,100"]
    assert reading.main(["--quick", "--only", "lists", *sizes]) == 0

    whole, small = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert (whole["row_group_rows"], small["row_group_rows"]) == (65_536, 100)
    assert whole["times_reference"] == 1
    assert small["times_reference"] == pytest.approx(small["value"] / whole["value"], rel=1e-2)
    for line in (whole, small):
        assert line["rows"] == 20_000
        assert 0 < line["before_mb"] <= line["peak_mb"]
        assert line["pyarrow"] > 0
    assert 0 < whole["requests"] < small["requests"]


def test_a_size_that_is_none_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        reading.main(["--row-groups", "0"])
    assert "whole numbers >= 1, got '0'" in capsys.readouterr().err
