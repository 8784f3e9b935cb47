"""Cuts beside the disk: the lines that are printed, and wrong calls."""

import json
from pathlib import Path

import pytest
from checkpoint import main


def test_every_figure_of_a_small_shard_is_printed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert (
        main(["--rows", "2000", "--repeats", "1", "--seconds", "0.2", "--folder", str(tmp_path)])
        == 0
    )

    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    found = {line["name"]: line for line in lines}
    assert found.keys() >= {
        "disk_write", "disk_read", "freeze", "cut_write", "cut_write_hammered", "restore",
        "training_slower", "training_longest_pull", "training_p99_pull", "hammer_slower",
        "hammer_longest_pull", "hammer_p99_pull", "delta", "restore_chain", "torch_write",
        "rocksdb_write",
    }  # fmt: skip
    assert found["cut_write"]["bytes"] > 2000 * 136
    assert 136 <= found["delta"]["value"] < 400
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("wrong", ["--rows=10", "--repeats=0", "--dim=0", "--seconds=0"])
def test_sizes_that_say_nothing_are_refused(wrong: str) -> None:
    with pytest.raises(SystemExit) as ended:
        main([wrong])

    assert ended.value.code == 2
