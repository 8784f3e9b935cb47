"""What `python -m build` makes works outside the checkout: nothing is downloaded for it."""

import json
import os
import shutil
import stat
import subprocess
import sys
import sysconfig
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest

import synchromesh

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = {"embedding", "ps", "runtime", "scheduler", "serving", "synchromesh", "worker"}
# At the top only: worker/data is a package.
NOT_SOURCE = {"build", "data", "dist", "runs"}


def run(*command: str | Path, cwd: Path, **environment: str) -> str:
    """Run a command that must succeed, with nothing of the checkout on its path."""
    return _done(*command, cwd=cwd, **environment).stdout


def _done(*command: str | Path, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    hidden = ("PYTHONPATH", "PYTHONHOME", "RAY_ADDRESS", "RAY_AUTH_MODE")
    done = subprocess.run(
        [str(part) for part in command],
        cwd=cwd,
        env={n: value for n, value in os.environ.items() if n not in hidden} | environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, f"{done.stdout[-1000:]}\n{done.stderr[-3000:]}"
    return done


def _not_source(folder: str, names: list[str]) -> set[str]:
    made = {name for name in names if name.startswith((".", "__pycache__"))}
    made |= {name for name in names if name.endswith(".egg-info")}
    return made | (NOT_SOURCE if Path(folder) == ROOT else set())


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the source distribution, and the wheel that was built from it."""
    source = tmp_path_factory.mktemp("source") / "checkout"
    shutil.copytree(ROOT, source, ignore=_not_source)
    # With neither --sdist nor --wheel the wheel is built from the source distribution.
    run(sys.executable, "-m", "build", "--no-isolation", ".", cwd=source)
    return source / "dist"


@pytest.fixture(scope="module")
def installed(built: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the commands of a new environment: the wheel, and what it needs from this."""
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder, symlinks=True)
    python = folder / "bin" / "python"
    (wheel,) = built.glob("*.whl")
    offline = ("--no-deps", "--no-index", "--disable-pip-version-check", "--quiet")
    run(
        *(sys.executable, "-m", "pip", "--python", python, "install", *offline, wheel),
        cwd=folder,
    )
    (site,) = folder.glob("lib/python*/site-packages")
    # Of the folder named here no .pth files are read, so no editable install of this checkout.
    (site / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return folder / "bin"


def test_the_wheel_has_our_packages_and_nothing_else(built: Path) -> None:
    (wheel,) = built.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()

    about = f"synchromesh-{synchromesh.__version__}.dist-info"
    assert {name.split("/")[0] for name in names} == PACKAGES | {about}
    expected = {
        path.relative_to(ROOT).as_posix()
        for name in PACKAGES
        for path in ROOT.glob(f"{name}/**/*.py")
    }
    assert {name for name in names if name.endswith(".py")} == expected
    assert "synchromesh/py.typed" in names
    assert f"{about}/licenses/LICENSE" in names


def test_the_source_distribution_has_docs_and_jobs_and_no_part_of_the_tests(built: Path) -> None:
    (archive,) = built.glob("*.tar.gz")
    with tarfile.open(archive) as files:
        names = {name.partition("/")[2] for name in files.getnames()}

    assert {"docs/design.md", "jobs/dlrm.yaml", "LICENSE", "README.md"} <= names
    assert not {"benchmarks", "simulation", "tests"} & {name.split("/")[0] for name in names}


@pytest.mark.ray
def test_an_installed_wheel_trains_a_user_s_first_job_with_a_model_beside_it(
    installed: Path, samples: Path, tmp_path: Path
) -> None:
    """On a Ray that it starts, with a home that has nothing of Ray's: its token is kept to them."""
    page = (ROOT / "docs" / "models.md").read_text()
    model = page.partition('```python\n"""Logistic regression')[2].partition("```")[0]
    (tmp_path / "regression.py").write_text('"""Logistic regression' + model)
    (tmp_path / "job.yaml").write_text(
        "data: {train: train-2.parquet, eval: test.parquet, dense: [d1], sparse: [a],"
        " batch_size: 64}\n"
        "embedding: {dim: 4}\n"
        "model: {type: custom, class: 'regression:LogisticRegression'}\n"
        "training: {mode: sync, global_batch: 128}\n"
        "cluster: {workers: 1, servers: 1}\n"
        f"run: {{dir: {tmp_path}/run}}\n"
    )
    command = installed / "synchromesh"

    assert run(command, "--version", cwd=tmp_path).endswith(f" {synchromesh.__version__}\n")
    where = run(installed / "python", "-c", "import worker; print(worker.__file__)", cwd=tmp_path)
    assert where.startswith(str(installed.parent))
    cache = os.environ.get("XDG_CACHE_HOME", str(Path.home() / ".cache"))
    home = {"HOME": str(tmp_path), "XDG_CACHE_HOME": cache, "SYNCHROMESH_ROOT": str(samples)}
    done = _done(command, "train", tmp_path / "job.yaml", "--json", cwd=tmp_path, **home)

    result = json.loads(done.stdout)
    assert result["samples_trained"] == 1300
    assert result["eval"]["samples"] == 1000, "relative paths follow SYNCHROMESH_ROOT"
    assert (tmp_path / "run" / "result.json").is_file()
    token = tmp_path / ".ray" / "auth_token"
    assert stat.S_IMODE(token.stat().st_mode) == 0o600
    assert "chmod" not in done.stderr


def test_a_users_module_beside_the_job_is_named_by_the_installed_command(
    installed: Path, tmp_path: Path
) -> None:
    """A script has its own folder on its path and not the current one, where Ray looks first."""
    (tmp_path / "worker.py").write_text("raise AssertionError('it was imported')\n")

    done = subprocess.run(
        [installed / "synchromesh", "train", "job.yaml"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )

    assert done.returncode == 2
    assert done.stderr.startswith(f"error: {tmp_path}/worker.py is found where Synchromesh needs")
    assert done.stdout == ""
