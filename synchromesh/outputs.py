"""Places that a command writes to, looked at before any work is done."""

import tempfile
from pathlib import Path


class OutputError(ValueError):
    """The output can't be written where it was asked for."""


def check_place(path: Path) -> None:
    """Refuse a place where nothing can be made; folders above it may be missing still.

    Raises:
        OutputError: something above it is no folder, or nothing can be made there.
    """
    above = next(each for each in path.absolute().parents if each.exists())
    if not above.is_dir():
        raise OutputError(f"{path} can't be written: {above} is not a folder")
    try:
        tempfile.TemporaryFile(dir=above).close()
    except OSError as error:
        raise OutputError(
            f"{path} can't be written: nothing can be made in {above}: {error.strerror or error}"
        ) from error


def check_file_place(path: Path) -> None:
    """Refuse a place where no file can be made, as `check_place`, or that is a folder."""
    check_place(path)
    if path.is_dir():
        raise OutputError(f"{path} can't be written: it is a folder; name a file")
