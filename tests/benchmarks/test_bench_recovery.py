"""What a lost server costs, with a standby and without: the lines that are printed."""

import json

import pytest
import recovery
from standbys import main


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.timeout(900)
def test_every_figure_of_small_jobs_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--quick"]) == 0

    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    found = {line["name"]: line for line in lines}
    assert found.keys() >= {
        "without_standbys", "without_standbys_wire", "without_standbys_memory", "with_standbys",
        "with_standbys_wire", "with_standbys_memory", "slower", "promotion",
    }  # fmt: skip
    assert found["promotion"]["redone_steps"] == 0
    assert found["with_standbys_wire"]["value"] > found["without_standbys_wire"]["value"]


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_server_without_a_standby_comes_back_with_its_rows(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert recovery.main(["--quick"]) == 0

    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    found = {line["name"]: line for line in lines}
    assert found.keys() == {"machine", "recovery", "rate"}
    assert found["recovery"]["rows"] > 0
    assert found["recovery"]["redone_steps"] > 0


@pytest.mark.parametrize("wrong", ["--samples=100", "--repeats=0", "--keys=0"])
def test_sizes_that_say_nothing_are_refused(wrong: str) -> None:
    with pytest.raises(SystemExit) as ended:
        main([wrong])

    assert ended.value.code == 2


@pytest.mark.parametrize("wrong", ["--rows=1000", "--batch=0"])
def test_sizes_of_a_lost_server_that_say_nothing_are_refused(wrong: str) -> None:
    with pytest.raises(SystemExit) as ended:
        recovery.main([wrong])

    assert ended.value.code == 2
