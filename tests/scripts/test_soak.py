"""The soak of a job on a stream: what counts as growth, and that a short one runs to its end."""

import json

import pytest
from soak import FIGURES, growth, main


def test_growth_is_from_after_the_first_sixth_to_the_last_one() -> None:
    samples = [{"rss_bytes": value} for value in (1, 1, 10, 12, 30, 30, 30, 30, 30, 30, 20, 24)]
    assert growth(samples, "rss_bytes") == (11, 22)
    assert growth(samples[:1], "rss_bytes") == (1, 1)


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_minute_of_it_tells_every_figure(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--minutes", "1", "--rate", "1000", "--most", "10"]) == 0

    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["figure"] for line in lines if "figure" in line] == list(FIGURES)
    assert any("samples" in line and line["samples"] > 0 for line in lines)
