"""Which checkpoints of a run are kept; removing the others, so that a kept one never lacks another.

Each is renamed before it is removed: a name below which something is read is a whole checkpoint.
"""

import contextlib
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ps.checkpoint.intact import unfinished_in
from ps.checkpoint.manifest import MANIFEST
from runtime.durable import PARTIAL, flush_directory, partial_path
from runtime.places import Place, StoredPath, remove_below

Kind = Literal["full", "delta", "damaged", "unreadable"]


@dataclass(frozen=True, slots=True)
class Link:
    """One checkpoint among others.

    Args:
        name: of its folder.
        kind: `damaged`: its files are, its manifest can be read; `unreadable`: nor that.
        parent: name of the one that it is a delta of, where it is known to be one.
    """

    name: str
    kind: Kind
    parent: str | None = None


def superseded(checkpoints: Sequence[Link], keep: int) -> list[str]:
    """Return the names of the checkpoints that may go, what needs another one before that one.

    What is as new as the oldest of the full ones that are kept stays, and what it needs. As long as
    some of that can't be read, nothing goes: it may need anything.

    Args:
        checkpoints: all of a run, the oldest first.
        keep: how many full ones are kept, at least 1.
    """
    fulls = [place for place, link in enumerate(checkpoints) if link.kind == "full"]
    if len(fulls) <= keep:
        return []
    links = {link.name: link for link in checkpoints}
    stays: set[str] = set()
    for link in checkpoints[fulls[-keep] :]:
        name: str | None = link.name
        while name is not None and name in links and name not in stays:
            if links[name].kind == "unreadable":
                return []
            stays.add(name)
            name = links[name].parent
    gone = [link for link in checkpoints if link.name not in stays]
    parents = {link.name: link.parent for link in checkpoints}
    return [link.name for link in sorted(gone, key=lambda link: -_depth(link.name, parents))]


def _depth(name: str, parents: dict[str, str | None]) -> int:
    """Return how many checkpoints lie below one."""
    below: set[str] = set()
    parent = parents.get(name)
    while parent is not None and parent not in below:
        below.add(parent)
        parent = parents.get(parent)
    return len(below)


def remove(folder: Place) -> None:
    """Take a checkpoint away: its name first, then its files; in a store its manifest first.

    Raises:
        OSError: it could not be taken away; all is as it was. Files that can't be removed are
            left to `remove_partial` and `remove_unfinished`.
    """
    if isinstance(folder, StoredPath):
        remove_below(folder, first=MANIFEST)
        return
    renamed = partial_path(folder)
    os.rename(folder, renamed)
    flush_directory(folder.parent)
    shutil.rmtree(renamed, ignore_errors=True)


def remove_unfinished(folder: StoredPath) -> None:
    """Remove what writers and removers left in a store who died, as `remove_partial` does."""
    for path in unfinished_in(folder):
        remove_below(path)


def remove_partial(folder: Path) -> None:
    """Remove what writers and removers left who died. Only for who knows that none works here."""
    for path in folder.glob(f"{PARTIAL}-*"):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            with contextlib.suppress(OSError):
                path.unlink()
