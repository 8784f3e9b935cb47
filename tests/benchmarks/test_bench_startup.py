"""The benchmark of a start: phases that add up, and Ray's share beside them."""

from pathlib import Path

from bench_startup import main, middle
from command_here import run_here

from worker.datasets.synthetic import CriteoLike, write_criteo_like


def test_phases_are_those_of_the_run_with_the_median_total() -> None:
    runs = [{"a": 1.0, "b": 4.0}, {"a": 2.0, "b": 0.5}, {"a": 0.0, "b": 3.0}]
    assert middle(runs) == {"a": 0.0, "b": 3.0}


def test_mistakes_exit_2(tmp_path: Path) -> None:
    write_criteo_like(tmp_path / "data", CriteoLike(rows=2000, test_rows=100, files=1))
    for arguments, message in (
        (["--repeats", "0"], "--repeats must be >= 1, got 0"),
        (["--data", str(tmp_path / "data")], "has 2000 train rows"),
    ):
        done = run_here(*arguments, main=main)
        assert (done.returncode, done.stdout) == (2, "")
        assert message in done.stderr
