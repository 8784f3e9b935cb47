"""What every command answers alike: errors, exit codes and lines of JSON.

Exit codes: 0 done; 2 what was asked for can't be done as it was asked for, and nothing was begun;
1 it failed on the way; 130 it was interrupted. A checkpoint that is damaged is a failure in every
command, whenever it is seen; where there is none, or it doesn't fit, the answer is 2.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import click
from rich.console import Console

from ps.checkpoint.errors import CheckpointError, UnfitCheckpointError
from runtime.strict_json import json_text

PIPED_WIDTH = 200
_LEAST_TOKEN = 16
FAILURES = (OSError, ValueError, MemoryError)

json_option = click.option(
    "--json",
    "as_json",
    is_flag=True,
    help="Print one line of JSON on stdout, and nothing for people.",
)


class Refused(click.ClickException):
    """Wrong input: nothing was begun."""

    exit_code = 2

    def show(self, file: IO[Any] | None = None) -> None:
        click.echo(f"error: {self.message}", err=True)


class Failed(Refused):
    """It failed on the way."""

    exit_code = 1


@contextmanager
def answering(
    *refusals: type[Exception],
    failures: tuple[type[Exception], ...] = FAILURES,
    failed: str = "",
    interrupted: str = "interrupted",
) -> Iterator[None]:
    """Turn exceptions into answers.

    Args:
        refusals: those that mean that what was asked for can't be done as it was asked for. A
            CheckpointError needs no mention.
        failures: those that mean that it failed on the way; `refusals` come first.
        failed: what a failure begins with, such as what was not written.
        interrupted: what is said where it was interrupted, unless the interruption has a text.
    """
    try:
        yield
    except UnfitCheckpointError as error:
        raise Refused(_text_of(error)) from error
    except CheckpointError as error:
        raise Failed(failed + _text_of(error)) from error
    except refusals as error:
        raise Refused(_text_of(error)) from error
    except failures as error:
        raise Failed(failed + _text_of(error)) from error
    except KeyboardInterrupt as error:
        raise Interrupted(str(error) or interrupted) from error


class Interrupted(Refused):
    """Stopped by a signal."""

    exit_code = 130


def _text_of(error: Exception) -> str:
    return str(error) or type(error).__name__


def print_json(value: Any) -> None:
    """Print one line of JSON that every reader takes."""
    click.echo(json_text(value))


def people_console() -> Console:
    """Return the console of tables on stdout; in a pipe names stay whole for who searches them."""
    console = Console(markup=False, highlight=False, emoji=False)
    if not console.is_terminal and "COLUMNS" not in os.environ:
        console.width = max(console.width, PIPED_WIDTH)
    return console


def names(_: click.Context, __: click.Parameter, text: str | None) -> list[str] | None:
    """Read names with commas between them, each of them once."""
    return None if text is None else list(dict.fromkeys(n for n in text.split(",") if n))


def read_token(option: str, file: str | None, variable: str) -> str | None:
    """Return the token that a file, else the environment holds; None where neither is given.

    Raises:
        Refused: the file can't be read, or it is no token.
    """
    token = os.environ.get(variable) or None
    where = f"${variable}"
    if file is not None:
        where = file
        try:
            token = Path(file).read_text().strip()
        except (OSError, UnicodeDecodeError) as error:
            raise Refused(f"{option} {file} can't be read: {error}") from error
    if token is not None and (len(token) < _LEAST_TOKEN or not token.isascii()):
        raise Refused(f"the token in {where} must have at least {_LEAST_TOKEN} ASCII characters")
    return token
