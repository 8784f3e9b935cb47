"""How long training pauses while servers come and go: the lines that are printed."""

import json

import pytest
from moves import main


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_pauses_of_a_small_job_are_printed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--quick"]) == 0

    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    found = {line["name"]: line for line in lines}
    assert found.keys() == {"machine", "pause_2_to_3_servers", "pause_3_to_2_servers"}
    for name in list(found)[1:]:
        line = found[name]
        assert {"stand_still", "enter", "first_step"} <= line["parts"].keys()
        assert sum(line["parts"].values()) == pytest.approx(line["value"], abs=0.01)
        assert line["rows_in_pause"] < line["moved_rows"]


@pytest.mark.parametrize("wrong", ["--rows=100", "--repeats=0", "--batch=0", "--tables=0"])
def test_sizes_that_say_nothing_are_refused(wrong: str) -> None:
    with pytest.raises(SystemExit) as ended:
        main([wrong])

    assert ended.value.code == 2


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_skewed_load_is_printed_before_and_after_buckets_move(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["--quick", "--skewed"]) == 0

    _, line = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert line["name"] == "load_of_the_busiest_server"
    assert line["value"] < line["before"]
    assert max(line["shares_after"]) < max(line["shares_before"])
