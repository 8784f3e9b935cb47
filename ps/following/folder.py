"""Where a mirror keeps checkpoints: a folder of this machine, as a run directory has them."""

import contextlib
import os
import shutil
from pathlib import Path

from ps.checkpoint.intact import names_in
from ps.checkpoint.manifest import MANIFEST, parse_manifest
from ps.following.mirror import Facts
from runtime.durable import PARTIAL, flush_directory, make_folder, partial_path, publish


def facts_of(name: str, manifest: bytes) -> Facts:
    """Read a checkpoint's manifest; raises CheckpointError."""
    found, seal = parse_manifest(manifest, Path(name) / MANIFEST)
    files = tuple((entry.path, entry.bytes) for entry in found.files)
    return Facts(seal, found.parent, files)


class KeptFolder:
    """Checkpoints in a folder. Only one process may write there.

    Raises:
        OSError: it can't be made or written.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._name = ""
        self._partial: Path | None = None
        make_folder(folder)
        for left in folder.glob(f"{PARTIAL}-*"):  # by one that was killed
            shutil.rmtree(left, ignore_errors=True)

    def names(self) -> list[str]:
        """Return those that are there, by name."""
        return [
            name for name in names_in(self._folder) if (self._folder / name / MANIFEST).exists()
        ]

    def manifest(self, name: str) -> bytes | None:
        """Return the manifest of one; None: there is none."""
        try:
            return (self._folder / name / MANIFEST).read_bytes()
        except FileNotFoundError:
            return None

    def begin(self, name: str) -> None:
        """Begin one, in a folder that nobody takes for a checkpoint."""
        self.give_up()
        self._name, self._partial = name, partial_path(self._folder / name)
        self._partial.mkdir()

    def append(self, path: str, data: bytes) -> None:
        """Add to a file of it."""
        assert self._partial is not None, "one was begun"
        place = self._partial / path
        place.parent.mkdir(parents=True, exist_ok=True)
        with open(place, "ab") as file:
            file.write(data)

    def finish(self, manifest: bytes) -> None:
        """Give it its name, with all that it has on the disk."""
        assert self._partial is not None, "one was begun"
        (self._partial / MANIFEST).write_bytes(manifest)
        for folder, _, names in os.walk(self._partial):
            for name in names:
                _flush(Path(folder, name))
            flush_directory(Path(folder))
        publish(self._partial, self._folder / self._name)
        self._partial = None

    def give_up(self) -> None:
        """Remove what was begun and is not finished."""
        if self._partial is not None:
            shutil.rmtree(self._partial, ignore_errors=True)
        self._partial = None

    def remove(self, name: str) -> None:
        """Take one away: its name first, then its files."""
        renamed = partial_path(self._folder / name)
        with contextlib.suppress(FileNotFoundError):
            os.rename(self._folder / name, renamed)
        shutil.rmtree(renamed, ignore_errors=True)


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
