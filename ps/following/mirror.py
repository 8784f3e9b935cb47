"""A copy of a job's newest checkpoints: what is there is whole, and lies on what is there.

Neither sockets nor files nor a clock: who asks and where it is kept are given.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from ps.checkpoint.chain import MAX_CHAIN
from ps.checkpoint.manifest import MANIFEST, MAX_MANIFEST_BYTES, Parent


class GoneError(Exception):
    """A checkpoint is not there any more, or not as it was: the newest is asked for anew."""


@dataclass(frozen=True, slots=True)
class Facts:
    """What a manifest says that a mirror needs.

    Args:
        seal: the checksum of the manifest.
        parent: what it lies on; None: it is full.
        files: (path, bytes) of each.
    """

    seal: str
    parent: Parent | None
    files: tuple[tuple[str, int], ...]


class Origin(Protocol):
    """Where the checkpoints are."""

    def piece(self, checkpoint: str, path: str, offset: int) -> tuple[int, bytes]:
        """Return how long a file is, and some of it; raises GoneError."""
        ...


class Kept(Protocol):
    """Where the copy is: folders, of which one that is not finished is not seen."""

    def names(self) -> list[str]:
        """Return the finished ones."""
        ...

    def manifest(self, name: str) -> bytes | None:
        """Return the manifest of a finished one; None: there is none."""
        ...

    def begin(self, name: str) -> None:
        """Begin one; what was begun before and is not finished goes."""
        ...

    def append(self, path: str, data: bytes) -> None:
        """Add to a file of the one that was begun."""
        ...

    def finish(self, manifest: bytes) -> None:
        """The one that was begun has all its files: from now on it is there, on the disk too."""
        ...

    def remove(self, name: str) -> None:
        """Take a finished one away, at once for who looks for it."""
        ...


class Mirror:
    """Brings one checkpoint after another, each after what it lies on.

    Args:
        origin, kept: from where to where.
        facts_of: reads the manifest of a name; raises ValueError where it is none.

    Raises:
        ValueError: a manifest that is kept is damaged.
    """

    def __init__(self, origin: Origin, kept: Kept, facts_of: Callable[[str, bytes], Facts]) -> None:
        self._origin = origin
        self._kept = kept
        self._facts_of = facts_of
        self._needed: frozenset[str] = frozenset()  # by the one that was brought last
        self._facts: dict[str, Facts] = {}  # of what is kept
        for name in kept.names():
            manifest = kept.manifest(name)
            if manifest is not None:
                self._facts[name] = facts_of(name, manifest)

    def bring(self, name: str) -> None:
        """Have a checkpoint, and all that it lies on; what neither it nor the last one needs goes.

        Where it fails, what was there is there.

        Raises:
            GoneError: it, or something that it lies on, went meanwhile.
            ValueError: a manifest is damaged.
        """
        chain, lacking = self._chain(name)
        # What goes stands in the way of a name, or lies on what does.
        self._remove_all_but(self._needed | frozenset(chain))
        for each, manifest, facts in reversed(lacking):
            self._take(each, manifest, facts)
        needed = frozenset(chain)
        self._remove_all_but(self._needed | needed)
        self._needed = needed

    def _chain(self, name: str) -> tuple[list[str], list[tuple[str, bytes, Facts]]]:
        """Return the names of a chain, the newest first, and what is lacking of it."""
        names: list[str] = []
        lacking: list[tuple[str, bytes, Facts]] = []
        seal: str | None = None
        while len(names) < MAX_CHAIN:
            names.append(name)
            facts = None if seal is None else self._own(name, seal)
            if facts is None:
                manifest = self._whole(name, MANIFEST)
                facts = self._facts_of(name, manifest)
                if seal is not None and facts.seal != seal:
                    raise GoneError(f"{name} is another one than {names[-2]} lies on")
                if self._own(name, facts.seal) is None:
                    lacking.append((name, manifest, facts))
            if facts.parent is None:
                return names, lacking
            name, seal = facts.parent.name, facts.parent.seal
        raise ValueError(f"{names[0]} lies on more than {MAX_CHAIN - 1} others")

    def _own(self, name: str, seal: str) -> Facts | None:
        """Return what is known of a checkpoint that is here, if it is the one of that seal."""
        facts = self._facts.get(name)
        return facts if facts is not None and facts.seal == seal else None

    def _take(self, name: str, manifest: bytes, facts: Facts) -> None:
        if name in self._facts:  # of another history
            above = {each for each in self._facts if name in self._below(each)}
            self._remove_all_but(frozenset(self._facts) - above - {name})
        self._kept.begin(name)
        for path, size in facts.files:
            offset = 0
            while offset < size:
                found, data = self._origin.piece(name, path, offset)
                if found != size or not data or offset + len(data) > size:
                    raise GoneError(f"{name}/{path} has {found} bytes, its manifest says {size}")
                self._kept.append(path, data)
                offset += len(data)
            if size == 0:
                self._kept.append(path, b"")
        # Another one may have come to have its name meanwhile, with files as long.
        if self._whole(name, MANIFEST) != manifest:
            raise GoneError(f"{name} is another one than when its manifest was read")
        self._kept.finish(manifest)
        self._facts[name] = facts

    def _whole(self, name: str, path: str) -> bytes:
        size, data = self._origin.piece(name, path, 0)
        parts = [data]
        if size > MAX_MANIFEST_BYTES:
            raise ValueError(f"{name}/{path} has {size} bytes, at most {MAX_MANIFEST_BYTES}")
        while (offset := sum(map(len, parts))) < size:
            found, data = self._origin.piece(name, path, offset)
            if found != size or not data:
                raise GoneError(f"{name}/{path} has changed while it was read")
            parts.append(data)
        return b"".join(parts)

    def _remove_all_but(self, needed: frozenset[str]) -> None:
        """Remove what is not needed, nor lies below what is; what lies on another one first."""
        stays = needed.union(*(self._below(name) for name in needed))
        gone = [name for name in self._facts if name not in stays]
        for name in sorted(gone, key=lambda name: -len(self._below(name))):
            self._kept.remove(name)
            del self._facts[name]

    def _below(self, name: str) -> list[str]:
        """Return what one lies on that is kept, the nearest first."""
        found: list[str] = []
        facts = self._facts.get(name)
        while facts is not None and facts.parent is not None and facts.parent.name not in found:
            found.append(facts.parent.name)
            facts = self._facts.get(facts.parent.name)
        return found
