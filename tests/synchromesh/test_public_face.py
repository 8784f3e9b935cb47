"""What `import synchromesh` gives, what it does not load, and who may not stand in its place."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

import synchromesh
from scheduler.driver import shadows
from synchromesh import shadowing

ROOT = Path(__file__).resolve().parents[2]


def python(program: str, folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", program], cwd=folder, capture_output=True, text=True, check=False
    )


def test_every_public_name_is_there_and_says_what_it_is() -> None:
    for name in synchromesh.__all__:
        found = getattr(synchromesh, name)
        assert name == "__version__" or found.__doc__, name
    assert set(synchromesh.__all__) <= set(dir(synchromesh))


def test_a_name_that_is_not_public_is_no_attribute() -> None:
    with pytest.raises(AttributeError, match="no attribute 'Coordinator'"):
        synchromesh.Coordinator  # noqa: B018


def test_importing_it_loads_neither_ray_nor_numba_nor_pyarrow(tmp_path: Path) -> None:
    done = python(
        "import sys, synchromesh, synchromesh.commands.main\n"
        "print(sorted({'ray', 'numba', 'pyarrow'} & set(sys.modules)))",
        tmp_path,
    )

    assert done.stdout == "[]\n", done.stderr


@pytest.mark.parametrize("shadow", ["worker.py", "scheduler/__init__.py"])
def test_a_users_own_module_in_place_of_ours_is_named(tmp_path: Path, shadow: str) -> None:
    (tmp_path / shadow).parent.mkdir(exist_ok=True)
    (tmp_path / shadow).write_text("")

    done = python("from synchromesh import JobConfig", tmp_path)

    assert done.returncode == 1
    last = done.stderr.splitlines()[-1]
    place = tmp_path / "worker.py" if shadow == "worker.py" else tmp_path / "scheduler"
    assert f"{place} is found where Synchromesh needs its own package" in last
    assert "rename it" in last


def test_a_folder_of_data_with_our_name_is_no_shadow(tmp_path: Path) -> None:
    (tmp_path / "worker").mkdir()

    assert python("from synchromesh import JobConfig", tmp_path).returncode == 0


@pytest.mark.parametrize(
    "door", [["-m", "synchromesh"], ["-c", "from synchromesh.door import script; script()"]]
)
def test_the_command_names_it_in_one_line(tmp_path: Path, door: list[str]) -> None:
    """Also where the command is a script elsewhere: Ray's processes look here first."""
    (tmp_path / "runtime.py").write_text("raise AssertionError('it was imported')\n")
    if door[0] == "-c":  # it has the current folder on its path, as a script has not
        door = ["-c", f"import sys; sys.path[0] = {str(ROOT)!r}; {door[1]}"]

    done = subprocess.run(
        [sys.executable, *door, "train", "job.yaml"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )

    assert done.returncode == 2
    assert done.stderr.startswith(f"error: {tmp_path}/runtime.py is found where Synchromesh needs")
    assert len(done.stderr.splitlines()) == 1


def test_a_job_is_refused_where_only_rays_processes_would_find_it(tmp_path: Path) -> None:
    (tmp_path / "worker.py").write_text("")
    (tmp_path / "scripts").mkdir()
    (tmp_path / "scripts" / "mine.py").write_text(
        "from synchromesh import JobConfig, Trainer\n"
        "Trainer(JobConfig.from_yaml('job.yaml')).fit()\n"
    )
    (tmp_path / "job.yaml").write_text(
        "data: {train: a.parquet, sparse: [a]}\nmodel: {type: dlrm}\nrun: {dir: run}\n"
    )

    done = subprocess.run(
        [sys.executable, "scripts/mine.py"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )

    last = done.stderr.splitlines()[-1]
    assert f"StartError: {tmp_path}/worker.py would be found by Ray's processes" in last
    shadows.refuse_shadows_of_actors(ROOT)


def test_both_looks_know_every_package_that_actors_need() -> None:
    assert shadows.PACKAGES == shadowing.PACKAGES
    assert all((ROOT / name / "__init__.py").is_file() for name in shadows.PACKAGES)


def test_checkpoints_are_opened_and_read(tmp_path: Path) -> None:
    with pytest.raises(synchromesh.RunDirectoryError, match="neither a checkpoint nor a run"):
        synchromesh.open_checkpoint(tmp_path)
