"""A store in memory that knows no rename, and of which any call may fail: `faulty://bucket/...`."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, ClassVar

import fsspec
from fsspec.implementations.memory import MemoryFile, MemoryFileSystem


class BrokenStoreError(Exception):
    """What a store's package raises: no OSError, as some of them do."""


class _Calls:
    def __init__(self) -> None:
        self.made = 0
        self.fails_at: int | None = None
        self.fails_on = False

    def one(self, what: str) -> None:
        self.made += 1
        here = self.fails_at is not None and (
            self.made >= self.fails_at if self.fails_on else self.made == self.fails_at
        )
        if here:
            raise BrokenStoreError(f"call {self.made}, {what}, failed")


CALLS = _Calls()


class _FaultyFile(MemoryFile):
    """An object that is there once it is closed."""

    is_new = False

    def write(self, data: Any) -> int:
        CALLS.one("write")
        return super().write(data)

    def close(self) -> None:
        if self.is_new:
            CALLS.one("close")
            self.is_new = False
            self.commit()

    def read(self, *arguments: Any) -> bytes:
        CALLS.one("read")
        return super().read(*arguments)


class FaultyFileSystem(MemoryFileSystem):
    protocol: ClassVar[Any] = "faulty"
    store: ClassVar[dict[str, Any]] = {}
    pseudo_dirs: ClassVar[list[str]] = [""]
    cachable = False

    @classmethod
    def _strip_protocol(cls, path: Any) -> Any:
        return super()._strip_protocol(str(path).replace("faulty://", "memory://"))

    def _open(self, path: str, mode: str = "rb", **options: Any) -> Any:
        CALLS.one(f"open {path} {mode}")
        if mode != "wb":
            data = self.store[path].getvalue() if path in self.store else None
            if data is None:
                raise FileNotFoundError(path)
            return _FaultyFile(self, path, data)
        file = _FaultyFile(self, path)
        file.is_new = True
        return file

    def ls(self, path: str, detail: bool = True, **options: Any) -> Any:
        CALLS.one(f"ls {path}")
        return super().ls(path, detail=detail, **options)

    def info(self, path: str, **options: Any) -> Any:
        CALLS.one(f"info {path}")
        return super().info(path, **options)

    def cat_file(self, path: str, start: Any = None, end: Any = None, **options: Any) -> bytes:
        CALLS.one(f"read {path}")
        return super().cat_file(path, start, end)

    def pipe_file(self, path: str, value: bytes, **options: Any) -> None:
        """Fails before, or after the object is there: the answer was lost."""
        path = self._strip_protocol(path)
        CALLS.one(f"put {path}")
        _FaultyFile(self, path, value).commit()
        CALLS.one(f"answer to the put of {path}")

    def rm_file(self, path: str) -> None:
        CALLS.one(f"rm {path}")
        super().rm_file(path)

    def mv(self, *arguments: Any, **options: Any) -> None:
        raise NotImplementedError("this store knows no rename")

    def cp_file(self, *arguments: Any, **options: Any) -> None:
        raise NotImplementedError("this store knows no copies")


@contextmanager
def failing(call: int, *, from_there_on: bool = False) -> Iterator[None]:
    """Have the call of that number from now on fail, counted from 1, or all from that one on."""
    CALLS.made, CALLS.fails_at, CALLS.fails_on = 0, call, from_there_on
    try:
        yield
    finally:
        CALLS.fails_at = None


def objects() -> set[str]:
    """Return the names of all objects."""
    return set(FaultyFileSystem.store)


def empty() -> None:
    FaultyFileSystem.store.clear()
    FaultyFileSystem.pseudo_dirs[:] = [""]


fsspec.register_implementation("faulty", FaultyFileSystem, clobber=True)
