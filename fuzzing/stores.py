"""Checkpoints in a store that misbehaves: short, long and wrong answers, old lists, errors.

What is restored from it is a checkpoint that was put there, or nothing is.
"""

import contextlib
import threading
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any, ClassVar

import fsspec
from fsspec.implementations.memory import MemoryFileSystem

from fuzzing.checkpoints import content_of
from fuzzing.run import Target, WrongResultError
from ps.checkpoint.intact import newest_intact
from ps.checkpoint.manifest import MANIFEST, CheckpointError
from runtime.places import StoredPath

FOLDER = StoredPath("misbehaving://bucket/run")

# How often a call is answered wrong; a restore of the small chain makes some hundred.
_RATES = (0.002, 0.01, 0.01, 0.05, 0.5)
_OF_READS = ("error", "short", "empty", "long", "twice", "other", "changed")
_OF_LOOKS = ("error", "absent", "size", "folder")
_OF_LISTS = ("error", "fewer", "none", "more", "sizes")
KINDS = tuple(sorted({*_OF_READS, *_OF_LOOKS, *_OF_LISTS}))


class StoreFailedError(Exception):
    """What a store's package raises: no OSError, as some of them do."""


_ERRORS = (StoreFailedError, OSError, TimeoutError, PermissionError, KeyError, ValueError, EOFError)


@dataclass(frozen=True, slots=True)
class Manners:
    """How a store misbehaves; the same for the same calls, in whichever order threads make them.

    Args:
        seed: of what is drawn for each call.
        rate: part of the calls that are answered wrong.
        kinds: of wrong answers.
    """

    seed: int
    rate: float
    kinds: tuple[str, ...]


class MisbehavingStore(MemoryFileSystem):
    """Objects in memory. What is written is written; what is asked may be answered wrong."""

    protocol: ClassVar[Any] = "misbehaving"
    store: ClassVar[dict[str, Any]] = {}
    pseudo_dirs: ClassVar[list[str]] = [""]
    cachable = False
    manners: ClassVar[Manners | None] = None
    _asked: ClassVar[Counter[str]] = Counter()
    _lock: ClassVar[Any] = threading.Lock()

    @classmethod
    @contextlib.contextmanager
    def misbehaving(cls, manners: Manners) -> Iterator[None]:
        cls._asked.clear()
        cls.manners = manners
        try:
            yield
        finally:
            cls.manners = None

    @classmethod
    def _strip_protocol(cls, path: Any) -> Any:
        return super()._strip_protocol(str(path).replace("misbehaving://", "memory://"))

    def cat_file(self, path: str, start: Any = None, end: Any = None, **options: Any) -> bytes:
        data = super().cat_file(path, start, end)
        wrong, rng = self._wrong(f"read {path} {start} {end}", _OF_READS)
        half = data[: len(data) // 2]
        match wrong:
            case "short":
                return data[: rng.randrange(len(data) + 1)]
            case "empty":
                return b""
            case "long":
                return data + rng.randbytes(rng.choice((1, 100, 10_000)))
            case "twice":
                return (half + data)[: len(data)]
            case "other":
                return super().cat_file(rng.choice(sorted(self.store)), start, end)
            case "changed" if data:
                at = rng.randrange(len(data))
                return data[:at] + bytes([data[at] ^ (1 << rng.randrange(8))]) + data[at + 1 :]
        return data

    def info(self, path: str, **options: Any) -> dict[str, Any]:
        found: dict[str, Any] = super().info(path, **options)
        wrong, rng = self._wrong(f"look {path}", _OF_LOOKS)
        match wrong:
            case "absent":
                raise FileNotFoundError(path)
            case "size":
                return {**found, "size": _another_size(found["size"], rng)}
            case "folder":
                return {**found, "type": rng.choice(("directory", "file", "other"))}
        return found

    def ls(self, path: str, detail: bool = True, **options: Any) -> Any:
        found = super().ls(path, detail=True, **options)
        wrong, rng = self._wrong(f"list {path}", _OF_LISTS)
        match wrong:
            case "fewer":
                found = [each for each in found if rng.random() < 0.7]
            case "none":
                found = []
            case "more" if found:
                like = rng.choice(found)
                name = like["name"].replace("0000", "0001", 1)
                found = [*found, like, {**like, "name": f"{name}-{rng.randrange(1000)}"}]
            case "sizes":
                found = [{**each, "size": _another_size(each["size"], rng)} for each in found]
        return found if detail else [each["name"] for each in found]

    def _wrong(self, call: str, answers: tuple[str, ...]) -> tuple[str | None, Random]:
        """Return how a call is answered wrong, None: it is not; raises where it fails."""
        manners = self.manners
        if manners is None:
            return None, Random(0)
        with self._lock:
            self._asked[call] += 1
            time = self._asked[call]
        rng = Random(f"{manners.seed} {call} {time}")
        if rng.random() >= manners.rate:
            return None, rng
        wrong = rng.choice(answers)
        if wrong not in manners.kinds:
            return None, rng
        if wrong == "error":
            raise rng.choice(_ERRORS)(f"{call} failed")
        return wrong, rng


def _another_size(size: Any, rng: Random) -> Any:
    return rng.choice((0, 1, None, size, (size or 0) + 1, 2 * (size or 0), 1 << 40))


fsspec.register_implementation("misbehaving", MisbehavingStore, clobber=True)


class StoredCheckpoints:
    """Checkpoints put into the store, from which somebody goes on.

    Args:
        source: one of them; those beside it are put there, too.
    """

    def __init__(self, source: Path) -> None:
        store = MisbehavingStore()
        store.store.clear()
        self._contents: dict[str, str] = {}
        for folder in sorted(source.parent.iterdir()):
            if not (folder / MANIFEST).is_file():
                continue
            for path in sorted(folder.rglob("*")):
                if path.is_file():
                    name = f"{FOLDER}/{path.relative_to(source.parent).as_posix()}"
                    store.pipe_file(name, path.read_bytes())
            self._contents[folder.name] = content_of(folder)

    def target(self) -> Target:
        return Target("checkpoint-stores", self.make, self.read, (CheckpointError, OSError))

    def make(self, rng: Random) -> Manners:
        few = tuple(sorted(rng.sample(KINDS, rng.randrange(1, 4))))
        return Manners(rng.randrange(1 << 40), rng.choice(_RATES), rng.choice((KINDS, few)))

    def read(self, manners: Manners) -> str:
        with MisbehavingStore.misbehaving(manners):
            reader = newest_intact(FOLDER).reader
            if reader is None:
                return "none found"
            name = reader.directory.name
            content = content_of(reader.directory)
        if content != self._contents.get(name):
            raise WrongResultError(f"what was restored of {name} is not what was saved")
        return f"restored {'the newest' if name == max(self._contents) else 'an older one'}"
