"""The libraries that answer HTTP: each answers, and has its lines."""

import json

import pytest
from server_libraries import main


def test_each_size_and_number_of_clients_has_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--seconds", "0.3", "--repeats", "1", "--libraries", "ours"]) == 0

    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [(line["library"], line["request"], line["clients"]) for line in lines] == [
        ("ours", size, clients) for size in ("1 sample", "64 samples") for clients in (1, 8)
    ]
    assert all(line["value"] > 0 for line in lines)


def test_wrong_options_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["--repeats", "0"])
    assert ended.value.code == 2
    assert "--repeats >= 1" in capsys.readouterr().err
