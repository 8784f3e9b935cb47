"""The run directory: who may write in it, and what it keeps."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from scheduler import JobConfig
from scheduler.errors import RunDirectoryError
from scheduler.run.directory import RunDirectory, checkpoints_of, latest_checkpoint
from scheduler.run.lease import LEASE_FILES

ROOT = Path(__file__).parents[3]


def config(
    path: Path, *, overwrite: bool = True, name: str = "first", checkpoints: str | None = None
) -> JobConfig:
    return JobConfig.from_dict(
        {
            "name": name,
            "data": {"train": "x", "sparse": ["a"]},
            "model": {"type": "wide_deep"},
            "checkpoint": {"path": checkpoints},
            "run": {"dir": str(path), "overwrite": overwrite},
        }
    )


def names(path: Path) -> set[str]:
    return {entry.name for entry in path.iterdir()} - LEASE_FILES


def test_an_overwritten_run_loses_its_old_files_only(tmp_path: Path) -> None:
    run = RunDirectory(config(tmp_path / "run"), least_checkpoint_bytes=0)
    run.write_result({"a": 1})
    (run.path / "notes.txt").write_text("mine")
    old = run.checkpoint_path("full", 3)
    old.mkdir(parents=True)
    (old / "manifest.json").write_text("{}")
    assert latest_checkpoint(run.path) == old
    run.close()

    RunDirectory(config(tmp_path / "run"), least_checkpoint_bytes=0).close()

    assert names(run.path) == {"job.yaml", "notes.txt", "run.json"}
    with pytest.raises(RunDirectoryError, match="neither a checkpoint nor a run"):
        latest_checkpoint(run.path)


@pytest.mark.parametrize(
    ("place", "text"),
    [("taken", "File exists"), ("taken/below", "Not a directory"), ("nosuch://x/y", "nosuch")],
)
def test_a_place_of_checkpoints_that_cannot_be_one_is_named_before_anything_is_made(
    tmp_path: Path, place: str, text: str
) -> None:
    (tmp_path / "taken").write_text("mine")
    wanted = place if "://" in place else str(tmp_path / place)

    with pytest.raises(RunDirectoryError, match=f"checkpoint.path .*can't be used: .*{text}"):
        RunDirectory(config(tmp_path / "run", checkpoints=wanted), least_checkpoint_bytes=0)

    assert [entry.name for entry in tmp_path.iterdir()] == ["taken"]


@pytest.mark.parametrize("overwrite", [True, False])
def test_the_folder_of_a_persons_own_job_file_is_no_run_directory(
    tmp_path: Path, overwrite: bool
) -> None:
    (tmp_path / "job.yaml").write_text("run: {dir: ., overwrite: true}\n")
    (tmp_path / "metrics.jsonl").write_text("mine\n")
    before = {file: file.read_bytes() for file in tmp_path.iterdir()}

    with pytest.raises(RunDirectoryError, match="is not a run directory"):
        RunDirectory(config(tmp_path, overwrite=overwrite), least_checkpoint_bytes=0)

    assert {file: file.read_bytes() for file in tmp_path.iterdir()} == before


@pytest.mark.parametrize("overwrite", [True, False])
def test_a_second_job_is_refused_while_the_first_one_lives_and_changes_nothing(
    tmp_path: Path, overwrite: bool
) -> None:
    run = RunDirectory(config(tmp_path), least_checkpoint_bytes=0)
    run.write_control({"pid": 1})
    before = {file: file.read_bytes() for file in tmp_path.iterdir()}

    second = config(tmp_path, overwrite=overwrite, name="second")
    wanted = "belongs to a job that runs: 'first', process \\d+ on" if overwrite else "exists"
    with pytest.raises(RunDirectoryError, match=wanted):
        RunDirectory(second, least_checkpoint_bytes=0)

    assert {file: file.read_bytes() for file in tmp_path.iterdir()} == before
    run.close()
    RunDirectory(config(tmp_path, name="third"), least_checkpoint_bytes=0).close()


def test_two_jobs_that_begin_in_one_new_directory_do_not_both_get_it(tmp_path: Path) -> None:
    first = RunDirectory(config(tmp_path / "r", overwrite=False), least_checkpoint_bytes=0)
    for name in ("job.yaml", "run.json"):  # as if the first had not come to write them yet
        (tmp_path / "r" / name).unlink()

    with pytest.raises(RunDirectoryError, match="belongs to a job that runs: 'first'"):
        RunDirectory(config(tmp_path / "r", overwrite=False), least_checkpoint_bytes=0)
    first.close()


@pytest.mark.parametrize("said", ["", "[" * 100_000, '{"time": 1e300}', "7"])
def test_a_run_whose_holder_said_nonsense_is_refused_all_the_same(
    tmp_path: Path, said: str
) -> None:
    run = RunDirectory(config(tmp_path / "run"), least_checkpoint_bytes=0)
    (run.path / ".lease.json").write_text(said)

    with pytest.raises(RunDirectoryError, match="it has not said which"):
        RunDirectory(config(tmp_path / "run"), least_checkpoint_bytes=0)
    run.close()


def test_the_lease_of_a_process_that_was_killed_is_free(tmp_path: Path) -> None:
    program = (
        "import os, sys\n"
        "from pathlib import Path\n"
        "from scheduler.run.lease import RunLease\n"
        "RunLease(Path(sys.argv[1]), job='killed')\n"
        "os.kill(os.getpid(), 9)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path)], cwd=ROOT, check=False
    )  # fmt: skip
    assert done.returncode == -9
    assert "killed" in (tmp_path / ".lease.json").read_text()

    RunDirectory(config(tmp_path, overwrite=False), least_checkpoint_bytes=0).close()


def test_a_run_that_can_not_begin_gives_its_lease_back(tmp_path: Path) -> None:
    with pytest.raises(RunDirectoryError, match="MiB free"):
        RunDirectory(config(tmp_path / "r"), least_checkpoint_bytes=1 << 60)

    RunDirectory(config(tmp_path / "r"), least_checkpoint_bytes=0).close()


def test_the_newest_checkpoint_has_the_highest_step_and_is_the_last_of_that_step(
    tmp_path: Path,
) -> None:
    run = RunDirectory(config(tmp_path), least_checkpoint_bytes=0)
    for name in ("full-000000000007", "full-000000000012", "full-000000000012-2",
                 "full-000000000012-10", "full-000000000009"):  # fmt: skip
        path = tmp_path / "checkpoints" / name
        path.mkdir(parents=True)
        (path / "manifest.json").write_text("{}")
    run.close()

    assert latest_checkpoint(tmp_path).name == "full-000000000012-10"


def test_deltas_stand_among_the_full_checkpoints_by_step_and_nothing_else_does(
    tmp_path: Path,
) -> None:
    names = ("full-000000000004", "delta-000000000006", "delta-000000000008", "full-000000000008",
             "delta-000000000010")  # fmt: skip
    for name in (*names, ".partial-full-000000000012-ab12cd34", "delta-x", "copy of full-1"):
        (tmp_path / "checkpoints" / name).mkdir(parents=True)
        (tmp_path / "checkpoints" / name / "manifest.json").write_text("{}")
    (tmp_path / "checkpoints" / "delta-000000000020").mkdir()  # without a manifest

    assert tuple(path.name for path in checkpoints_of(tmp_path)) == names


def test_a_recovery_epoch_is_on_the_disk_before_it_is_used(tmp_path: Path) -> None:
    run = RunDirectory(config(tmp_path), least_checkpoint_bytes=0)
    assert run.recovery_epoch == 0

    entered = run.enter_epoch()

    assert json.loads((tmp_path / "epoch.json").read_text()) == {"recovery_epoch": entered}
    assert (entered, run.enter_epoch(), run.recovery_epoch) == (1, 2, 2)
    run.close()


def test_json_files_hold_null_for_what_json_has_no_number_for(tmp_path: Path) -> None:
    run = RunDirectory(config(tmp_path), least_checkpoint_bytes=0)
    run.write_result({"auc": float("nan")})
    run.write_control({"time": float("inf")})
    run.close()

    assert '"auc": null' in (tmp_path / "result.json").read_text()
