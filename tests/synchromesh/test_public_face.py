"""What `import synchromesh` gives, what it does not load, and who may not stand in its place."""

import subprocess
import sys
from pathlib import Path

import pytest

import synchromesh


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

    done = python("import synchromesh", tmp_path)

    assert done.returncode == 1
    last = done.stderr.splitlines()[-1]
    place = tmp_path / "worker.py" if shadow == "worker.py" else tmp_path / "scheduler"
    assert f"{place} is found where Synchromesh needs its own package" in last
    assert "rename it" in last


def test_a_folder_of_data_with_our_name_is_no_shadow(tmp_path: Path) -> None:
    (tmp_path / "worker").mkdir()

    assert python("import synchromesh", tmp_path).returncode == 0


def test_checkpoints_are_opened_and_read(tmp_path: Path) -> None:
    with pytest.raises(synchromesh.RunDirectoryError, match="neither a checkpoint nor a run"):
        synchromesh.open_checkpoint(tmp_path)
