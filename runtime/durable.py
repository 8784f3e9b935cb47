"""Files that are there whole or not at all, also after the power went.

They are written under a temporary name, flushed to the disk and renamed.

Whoever has an older file of the name open or mapped into memory keeps it as it was.
"""

import contextlib
import os
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import IO

PARTIAL = ".partial"


def partial_path(path: Path) -> Path:
    """Return a name beside a path for what is to become it, another one for each writer."""
    return path.with_name(f"{PARTIAL}-{path.name}-{secrets.token_hex(4)}")


@contextlib.contextmanager
def new_file(path: Path) -> Iterator[IO[bytes]]:
    """Yield a file to write; it gets its name once the block has ended, and is on the disk then.

    Where the block raises, nothing is left of it.
    """
    temporary = partial_path(path)
    try:
        with open(temporary, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise
    flush_directory(path.parent)


def write_text(path: Path, text: str) -> None:
    """Write a small file whole or not at all."""
    with new_file(path) as file:
        file.write(text.encode())


def make_folder(path: Path) -> None:
    """Make a folder, and those above it that are missing, whose names are on the disk then."""
    missing = [folder for folder in (path, *path.parents) if not folder.exists()]
    path.mkdir(parents=True, exist_ok=True)
    for folder in missing:
        flush_directory(folder.parent)


def flush_directory(path: Path) -> None:
    """Put the names in a directory onto the disk, where the file system can."""
    with contextlib.suppress(OSError):  # some network file systems refuse it
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def publish(partial: Path, path: Path) -> None:
    """Give a directory that is complete its name; raises OSError where the name is taken."""
    os.rename(partial, path)
    flush_directory(path.parent)
