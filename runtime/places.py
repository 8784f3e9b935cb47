"""Places of files: a path of a file system, or a URL of a store that knows no rename.

What is written below a `Path` is there whole or not at all, and on the disk. An object of a store
is there once it is written, and as safe as the store keeps it; a folder there is only a common
beginning of names. So whoever writes several files there writes the one last that makes them
count, and removes that first.
"""

import contextlib
import io
import os
import shutil
import stat
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Protocol

import pyarrow as pa
from pyarrow import fs as pafs

from runtime.durable import Flushes, make_folder, new_file, write_text
from runtime.storage import StorageError, brief, join_url, open_filesystem, split_url

_OBJECT_STORES = frozenset({"s3", "gcs", "abfs"})  # as pyarrow names them; they have no folders
_FILE = pafs.FileType.File
_REMEDY = "See that the store can be reached, and that the credentials allow it"


class NoFileError(ValueError):
    """What should be a file to be read is a pipe, a device or a folder."""


@dataclass(frozen=True, slots=True)
class StoredPath:
    """A place in a store, to be used as a `Path` is.

    Args:
        url: with options of the store after its last `?`, as in `runtime.storage`.
    """

    url: str

    def __str__(self) -> str:
        return self.url

    def __truediv__(self, name: str | Path) -> "StoredPath":
        return StoredPath(join_url(self.url, str(name)))

    @property
    def name(self) -> str:
        return split_url(self.url)[2].rstrip("/").rpartition("/")[2]

    @property
    def parent(self) -> "StoredPath":
        scheme, authority, path, options = split_url(self.url)
        above = path.rstrip("/").rpartition("/")[0]
        mark = f"?{options}" if options else ""
        return StoredPath(f"{scheme}://{authority}{above}{mark}")

    def with_name(self, name: str) -> "StoredPath":
        return self.parent / name

    def opened(self) -> tuple[pafs.FileSystem, str]:
        """Return its filesystem, and the path in that."""
        return open_filesystem(self.url)


Place = Path | StoredPath


def place_of(text: str | Place) -> Place:
    """Return the place that a path or URL names; `file://` is a path."""
    if not isinstance(text, str):
        return text
    scheme, authority, path, _ = split_url(text)
    if scheme == "file" and not authority:
        return Path(path)
    return StoredPath(text) if scheme else Path(text)


class OpenFile(Protocol):
    """A file that is read from anywhere in it, by several threads."""

    size: int

    def read(self, offset: int, num_bytes: int) -> bytes: ...

    def read_buffer(self, offset: int, num_bytes: int) -> pa.Buffer:
        """Read as `read` does, into memory of Arrow's where that saves work."""

    def close(self) -> None: ...


class _LocalFile:
    def __init__(self, path: Path) -> None:
        if not stat.S_ISREG(path.stat().st_mode):
            raise NoFileError(f"{path} is not a regular file")
        self._file = open(path, "rb", buffering=0)  # noqa: SIM115
        self.size = os.fstat(self._file.fileno()).st_size

    def read(self, offset: int, num_bytes: int) -> bytes:
        data = os.pread(self._file.fileno(), num_bytes, offset)
        while 0 < len(data) < num_bytes:  # the system reads 2 GiB at most
            more = os.pread(self._file.fileno(), num_bytes - len(data), offset + len(data))
            if not more:
                break
            data += more
        return data

    def read_buffer(self, offset: int, num_bytes: int) -> pa.Buffer:
        # Arrow gives the same memory again and again; that of large `bytes` is new each time, and
        # the system makes zeros of each page of it first.
        buffer = pa.allocate_buffer(num_bytes)
        view, done = memoryview(buffer), 0
        while done < num_bytes:
            count = os.preadv(self._file.fileno(), [view[done:]], offset + done)
            if not count:
                break
            done += count
        return buffer.slice(0, done)

    def close(self) -> None:
        self._file.close()


class _StoredFile:
    def __init__(self, place: StoredPath) -> None:
        self._place = place
        with _saying(place, "can't be opened"):
            filesystem, path = place.opened()
            self._file = filesystem.open_input_file(path)
            self.size = self._file.size()

    def read(self, offset: int, num_bytes: int) -> bytes:
        with _saying(self._place, "can't be read"):
            data: bytes = self._file.read_at(num_bytes, offset)
            return data

    def read_buffer(self, offset: int, num_bytes: int) -> pa.Buffer:
        return pa.py_buffer(self.read(offset, num_bytes))

    def close(self) -> None:
        with contextlib.suppress(Exception):
            self._file.close()


class _RangesOfStore:
    """A file of a store of fsspec, read by requests for ranges of it, several at a time.

    Not through Arrow: that keeps one open file and a lock around it, and writes beyond the end of
    its memory where a store gives more bytes than it was asked for.
    """

    def __init__(self, place: StoredPath, store: Any, path: str) -> None:
        self._place, self._store, self._path = place, store, path
        self.size = size_at(place)

    def read(self, offset: int, num_bytes: int) -> bytes:
        end = min(offset + num_bytes, self.size)
        if end <= offset:
            return b""
        with _saying(self._place, "can't be read"):
            data = bytes(self._store.cat_file(self._path, start=offset, end=end))
            if len(data) > end - offset:
                raise ValueError(f"asked for {end - offset} bytes, the store gave {len(data)}")
            return data

    def read_buffer(self, offset: int, num_bytes: int) -> pa.Buffer:
        return pa.py_buffer(self.read(offset, num_bytes))

    def close(self) -> None:
        pass


def open_at(place: Place) -> OpenFile:
    """Open a file to be read, a local one through links too.

    Raises:
        NoFileError: it is a pipe, a device or a folder, of which reading might never end.
        OSError: it can't be opened.
    """
    if isinstance(place, Path):
        return _LocalFile(place)
    with _saying(place, "can't be opened"):
        filesystem, path = place.opened()
        handler = getattr(filesystem, "handler", None)
    if isinstance(handler, pafs.FSSpecHandler):
        return _RangesOfStore(place, handler.fs, path)
    return _StoredFile(place)


def size_at(place: Place) -> int:
    """Return the bytes of a file; raises FileNotFoundError, OSError."""
    if isinstance(place, Path):
        return place.stat().st_size
    return _info(place).size or 0


def time_at(place: Place) -> float:
    """Return when a file was written, in seconds since 1970; raises FileNotFoundError, OSError."""
    if isinstance(place, Path):
        return place.stat().st_mtime
    return (_info(place).mtime_ns or 0) / 1e9


def is_file(place: Place) -> bool:
    """Whether there is a file; raises OSError where a store can't say."""
    if isinstance(place, Path):
        return place.is_file()
    with _saying(place, "can't be looked at"):
        filesystem, path = place.opened()
        return bool(filesystem.get_file_info(path).type == _FILE)


def folders_in(place: Place) -> list[Place]:
    """Return the folders in a place, by name; none where it is not there."""
    if isinstance(place, Path):
        return [path for path in sorted(place.glob("*")) if path.is_dir()]
    with _saying(place, "can't be listed"):
        filesystem, path = place.opened()
        found = filesystem.get_file_info(pafs.FileSelector(path, allow_not_found=True))
    names = {info.base_name for info in found if info.type == pafs.FileType.Directory}
    return [place / name for name in sorted(names)]


def holding(folder: Place, names: Iterable[str], file: str) -> list[Place]:
    """Return those of the folders below a folder in which there is a file of a name."""
    places = [folder / name for name in names]
    if isinstance(folder, Path):
        return [place for place in places if is_file(place / file)]
    with _saying(folder, "can't be looked at"):
        filesystem, path = folder.opened()
        start = path.rstrip("/")
        infos = filesystem.get_file_info([f"{start}/{place.name}/{file}" for place in places])
    kinds = [info.type for info in infos]
    return [place for place, kind in zip(places, kinds, strict=True) if kind == _FILE]


def sizes_of(folder: Place, names: Iterable[str]) -> dict[str, int | None]:
    """Return how long files are, by their path from a folder on; None: there is no such file."""
    if isinstance(folder, Path):
        return {name: _size_or_none(folder / name) for name in names}
    with _saying(folder, "can't be listed"):
        filesystem, path = folder.opened()
        selector = pafs.FileSelector(path, allow_not_found=True, recursive=True)
        found = filesystem.get_file_info(selector)
    start = len(path.rstrip("/")) + 1
    sizes = {info.path[start:]: info.size for info in found if info.type == _FILE}
    return {name: sizes.get(name) for name in names}


def _size_or_none(path: Path) -> int | None:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return None


@contextlib.contextmanager
def new_file_at(place: Place, flushes: Flushes | None = None) -> Iterator[IO[bytes]]:
    """Yield a file to write, which is there once the block has ended.

    Where the block raises nothing is left of it but, in a store, perhaps an object without its end.

    Args:
        flushes: by which it is on the disk, later, where it is no store.
    """
    if isinstance(place, Path):
        with new_file(place, flushes) as file:
            yield file
        return
    with _saying(place, "can't be written"):
        filesystem, path = place.opened()
        _make_way_for(filesystem, path)
        stream = filesystem.open_output_stream(path)
    try:
        yield _Saying(stream, place)  # type: ignore[misc]
        with _saying(place, "can't be written"):
            stream.close()
    except BaseException:
        # Closed before it is deleted: who drops an open stream may have it written all the same.
        with contextlib.suppress(Exception):
            stream.close()
        with contextlib.suppress(Exception):
            filesystem.delete_file(path)
        raise


class _Saying(io.RawIOBase):
    """Writes to a store, whose package may raise anything."""

    def __init__(self, stream: pa.NativeFile, place: StoredPath) -> None:
        self._stream, self._place = stream, place

    def writable(self) -> bool:
        return True

    def write(self, data: object) -> int:
        with _saying(self._place, "can't be written"):
            self._stream.write(data)
        return memoryview(data).nbytes  # type: ignore[arg-type]


def write_text_at(place: Place, text: str) -> None:
    """Write a small file whole or not at all, in a store by one request where its package can.

    Where that fails nobody knows whether it is there.
    """
    if isinstance(place, Path):
        write_text(place, text)
        return
    with _saying(place, "can't be written"):
        filesystem, path = place.opened()
        handler = getattr(filesystem, "handler", None)
        if isinstance(handler, pafs.FSSpecHandler):
            # A stream that fails may be closed, and so written, by who collects the garbage.
            handler.fs.pipe_file(path, text.encode())
            return
        _make_way_for(filesystem, path)
        with filesystem.open_output_stream(path) as stream:
            stream.write(text.encode())


def _make_way_for(filesystem: pafs.FileSystem, path: str) -> None:
    if filesystem.type_name not in _OBJECT_STORES:
        filesystem.create_dir(path.rpartition("/")[0], recursive=True)


def make_folder_at(place: Place) -> None:
    """Make a folder, whose name is on the disk then; in a store there is nothing to make."""
    if isinstance(place, Path):
        make_folder(place)


def remove_file_at(place: Place) -> None:
    """Remove a file, if it is there; raises OSError."""
    if isinstance(place, Path):
        place.unlink(missing_ok=True)
        return
    with _saying(place, "can't be removed"), contextlib.suppress(FileNotFoundError):
        filesystem, path = place.opened()
        filesystem.delete_file(path)


def remove_below(place: Place, first: str | None = None) -> None:
    """Remove a folder and all in it.

    Args:
        first: the name of the file that goes before all others.

    Raises:
        OSError: it can't be removed, or not whole.
    """
    if isinstance(place, Path):
        if first is not None:
            (place / first).unlink(missing_ok=True)
        shutil.rmtree(place)
        return
    with _saying(place, "can't be removed"):
        filesystem, path = place.opened()
        if first is not None and is_file(place / first):
            filesystem.delete_file((place / first).opened()[1])
        with contextlib.suppress(FileNotFoundError):
            filesystem.delete_dir(path)


def _info(place: StoredPath) -> pafs.FileInfo:
    with _saying(place, "can't be looked at"):
        filesystem, path = place.opened()
        info = filesystem.get_file_info(path)
    if info.type != _FILE:
        raise FileNotFoundError(2, "there is no such file", place.url)
    return info


@contextlib.contextmanager
def _saying(place: StoredPath, problem: str) -> Iterator[None]:
    """Make an OSError that names the place of whatever the package behind a URL raises."""
    try:
        yield
    except (StorageError, FileNotFoundError, MemoryError):
        raise
    except Exception as error:
        raise StorageError(place.url, f"{problem} ({brief(error)})", _REMEDY) from error
