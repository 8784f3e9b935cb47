"""Files that are there whole or not at all, also after the power went.

They are written under a temporary name, flushed to the disk and renamed.

Whoever has an older file of the name open or mapped into memory keeps it as it was.
"""

import contextlib
import os
import secrets
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import IO

PARTIAL = ".partial"


def partial_path(path: Path) -> Path:
    """Return a name beside a path for what is to become it, another one for each writer."""
    return path.with_name(f"{PARTIAL}-{path.name}-{secrets.token_hex(4)}")


class Flushes:
    """Puts many files onto the disk at the same time, beside who writes the next ones.

    A flush waits for the disk, and several that wait together are done by one write of its journal.
    All files, and their names, are on the disk once the block has ended: until then nothing may
    say that they are there.

    Args:
        threads: so many wait at once.

    Raises:
        OSError: at the end of the block: a file could not be put there.
    """

    def __init__(self, threads: int = 8) -> None:
        self._threads = ThreadPoolExecutor(threads, thread_name_prefix="flush")
        self._under_way: list[Future[None]] = []
        self._folders: dict[Path, None] = {}

    def add(self, file: IO[bytes], folder: Path) -> None:
        """Put a file that is written onto the disk; the caller closes it, and names it."""
        self._under_way.append(self._threads.submit(_flush, os.dup(file.fileno())))
        self._folders[folder] = None

    def make_folder(self, path: Path) -> None:
        """Make a folder, as `make_folder`."""
        for folder in _made(path):
            self._folders[folder.parent] = None

    def __enter__(self) -> "Flushes":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        try:
            flushed = [each.exception() for each in self._under_way]
            if kind is None:
                for failed in filter(None, flushed):
                    raise failed
                list(self._threads.map(flush_directory, self._folders))
        finally:
            self._threads.shutdown()


def _flush(descriptor: int) -> None:
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def new_file(path: Path, flushes: Flushes | None = None) -> Iterator[IO[bytes]]:
    """Yield a file to write; it gets its name once the block has ended, and is on the disk then.

    Where the block raises, nothing is left of it.

    Args:
        flushes: by which it is on the disk, later.
    """
    temporary = partial_path(path)
    try:
        with open(temporary, "wb") as file:
            yield file
            file.flush()
            if flushes is None:
                os.fsync(file.fileno())
            else:
                flushes.add(file, path.parent)
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise
    if flushes is None:
        flush_directory(path.parent)


def write_text(path: Path, text: str) -> None:
    """Write a small file whole or not at all."""
    with new_file(path) as file:
        file.write(text.encode())


def make_folder(path: Path) -> None:
    """Make a folder, and those above it that are missing, whose names are on the disk then."""
    for folder in _made(path):
        flush_directory(folder.parent)


def _made(path: Path) -> list[Path]:
    """Make a folder and those above it; return those that were missing."""
    missing = [folder for folder in (path, *path.parents) if not folder.exists()]
    path.mkdir(parents=True, exist_ok=True)
    return missing


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
