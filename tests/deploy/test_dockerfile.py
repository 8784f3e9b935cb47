"""The Dockerfile installs what the project needs, pinned, and as nobody with rights."""

import re
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

ROOT = Path(__file__).resolve().parents[2]
LINES = (ROOT / "Dockerfile").read_text().replace("\\\n", " ").splitlines()
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
PINNED = {
    name.lower().replace("_", "-"): Version(version)
    for name, version in re.findall(
        r"^([\w.-]+)==(\S+)$", (ROOT / "deploy" / "constraints.txt").read_text(), re.MULTILINE
    )
}


@pytest.mark.parametrize("text", PROJECT["project"]["dependencies"])
def test_every_dependency_is_pinned_to_what_the_project_takes(text: str) -> None:
    requirement = Requirement(text)

    assert PINNED[requirement.name] in requirement.specifier


def test_pins_are_those_that_the_wheel_is_installed_with() -> None:
    (install,) = [line for line in LINES if "pip install" in line]

    assert "--constraint /tmp/constraints.txt /wheels/*.whl" in install
    assert "--no-cache-dir" in install


def test_images_are_of_one_version_and_processes_are_not_roots() -> None:
    sources = [line.split()[1] for line in LINES if line.startswith("FROM")]
    (python,) = [line.split("=")[1] for line in LINES if line.startswith("ARG PYTHON=")]

    assert sources == ["python:${PYTHON}"] * 2
    assert re.fullmatch(r"3\.11\.\d+-slim-bookworm", python)
    assert [line for line in LINES if line.startswith("USER")] == ["USER 1000"]


def test_the_build_gets_every_package_and_nothing_that_it_does_not_need() -> None:
    kept = {
        line[1:].rstrip("/")
        for line in (ROOT / ".dockerignore").read_text().splitlines()
        if line.startswith("!")
    }
    packages = {
        pattern.rstrip("*")
        for pattern in PROJECT["tool"]["setuptools"]["packages"]["find"]["include"]
    }

    assert packages <= kept
    assert {"pyproject.toml", PROJECT["project"]["readme"]} <= kept
    assert not kept & {"tests", "benchmarks", "simulation", ".git", "data", "runs"}


def test_the_image_is_the_one_that_the_cluster_names() -> None:
    named = re.findall(r"docker build -t (\S+)", (ROOT / "Dockerfile").read_text())
    for name in ("raycluster.yaml", "rayjob.yaml"):
        text = (ROOT / "deploy" / "kuberay" / name).read_text()
        assert set(re.findall(r"image: (\S+)", text)) == set(named)
