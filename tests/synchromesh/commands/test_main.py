"""The command `synchromesh`: every command has an example, and mistakes have one line."""

import os
import subprocess
import sys
from importlib import import_module

import click
import pytest
from command_here import run_here

import synchromesh
from synchromesh.commands.main import COMMANDS, main


def leaves(command: click.Command, name: str) -> list[tuple[str, click.Command]]:
    if isinstance(command, click.Group):
        return [
            leaf for sub, each in command.commands.items() for leaf in leaves(each, f"{name} {sub}")
        ]
    return [(name, command)]


def command_of(name: str) -> click.Command:
    return import_module(f"synchromesh.commands.{COMMANDS[name][0]}").command


@pytest.mark.parametrize("name", COMMANDS)
def test_help_has_an_example_that_names_the_command(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([name, "--help"]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert f"Example: synchromesh {name} " in shown


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_takes_json(name: str) -> None:
    for full_name, command in leaves(command_of(name), name):
        assert "--json" in [o for p in command.params for o in p.opts], full_name


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "Usage: synchromesh"),
        (["trian"], "error: No such command 'trian'"),
        (["train"], "error: Missing argument 'JOB.yaml' (see synchromesh train --help)"),
        (["evaluate", "x", "j.yaml", "k"], "error: an override must look like key.path=value"),
        (["inspect", "x", "--top", "1"], "error: --top needs TABLE"),
        (["control", "nowhere", "mode", "fast"], "error: Invalid value for"),
        (["data", "criteo-like", "--rows", "x", "--out", "d"], "error: Invalid value for '--rows'"),
    ],
)
def test_wrong_usage_exits_2(
    arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.startswith(said)


def test_version_and_module_door() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "synchromesh", "--version"], capture_output=True, text=True
    )

    assert done.stdout == f"synchromesh, version {synchromesh.__version__}\n"


@pytest.mark.parametrize(
    ("typed", "offered"),
    [
        ("tr", ["plain,train"]),
        (
            "checkpoint ",
            [
                f"plain,{name}"
                for name in ("compact", "diff", "import-rows", "list", "show", "verify")
            ],
        ),
        ("train --j", ["plain,--json"]),
        ("train jobs/", ["file,jobs/"]),
        ("evaluate runs/", ["file,runs/"]),
    ],
)
def test_shells_are_told_what_can_follow(typed: str, offered: list[str]) -> None:
    """As the function asks that README.md installs in bash; files bash completes itself."""
    words = f"synchromesh {typed}"
    asked = {
        "_SYNCHROMESH_COMPLETE": "bash_complete",
        "COMP_WORDS": words,
        "COMP_CWORD": str(words.count(" ")),
    }
    if typed == "tr":
        done = subprocess.run(
            [sys.executable, "-c", "from synchromesh.door import script; script()"],
            env={**os.environ, **asked},
            capture_output=True,
            text=True,
            check=False,
        )
    else:
        done = run_here(**asked)

    assert done.stdout.split() == offered, done.stderr
