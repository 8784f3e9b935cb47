"""A folder, here or in a store, into which somebody writes Parquet files one after another.

Files are taken in the natural order of their paths, each as soon as it is complete: a Parquet file
ends with its footer, so one that has none is still being written, or damaged if it does not change
for a while. Names that begin with `.` or `_` are none yet. A file may come late, after others that
follow it: up to `late_seconds` after the first of them was taken; then it is too late, as what was
taken is remembered for so long only.

Folders that lie before all that is remembered are not listed again, and a local folder that has not
changed is not either. So a writer of many files puts them into dated folders.
"""

import os
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import pyarrow as pa
from pyarrow import fs as pafs

from runtime.storage import StorageError, brief, join_url, open_filesystem, split_url
from worker.data.patterns import natural_order
from worker.data.streams import Arrival, Lag, Position

MOST_REMEMBERED = 10_000
_SUFFIX = ".parquet"
_MAGIC = b"PAR1"
_MAGICS = (_MAGIC, b"PARE")
# A folder's time of change may be so coarse that a later change has the same.
_COARSE_NS = 2_000_000_000
_ALLOW = "Allow the job to remove files there, or leave out data.stream.trained_files"
# Of the time, what listing may take at most.
_LISTING_SHARE = 10


@dataclass(slots=True)
class _Waiting:
    """A file that was found and is not taken.

    Args:
        found: when it was first seen.
        changed: when its size was another one, the last time.
        written: as its store said it then; None: it does not.
        size: in bytes, when it was last looked at.
    """

    found: float
    changed: float
    written: float | None = None
    size: int = -1


@dataclass(slots=True)
class _Listed:
    """A folder as it was listed: its time of change, when that was, and what it held.

    Of files of a store it has the time at which they were written.
    """

    changed_ns: int
    at_ns: int
    files: dict[str, float | None]
    folders: tuple[str, ...]


class DirectoryStream:
    """Takes the Parquet files of a folder and those below it.

    Args:
        folder: path or URL.
        late_seconds: for how long a file may come after one that follows it.
        settle_seconds: a file without a footer that has not changed for so long is damaged.
        after: files up to this path, from the folder on, are not taken.
        removes: whether `remove` does so; else files stay where they are.
        archive: folder of the same store, to which they are moved instead.

    Raises:
        StorageError: nothing installed opens it.
    """

    def __init__(
        self,
        folder: str,
        *,
        late_seconds: float = 60.0,
        settle_seconds: float = 10.0,
        after: str | None = None,
        removes: bool = False,
        archive: str | None = None,
    ) -> None:
        self.folder = folder
        self._removes = removes
        self._archive = None if archive is None else open_filesystem(archive)[1]
        self._filesystem, self._root = open_filesystem(folder)
        self._local = isinstance(self._filesystem, pafs.LocalFileSystem)
        self._late_seconds = late_seconds
        self._settle_seconds = settle_seconds
        self._after = after
        self._taken: dict[str, float] = {}  # those after `after`, in the order of their time
        self._waiting: dict[str, _Waiting] = {}
        self._order: list[tuple[tuple[str, str], str]] = []  # of those that wait
        self._listed: dict[str, _Listed] = {}
        self._has_looked = False
        self._num_too_late = 0
        self._next_listing = 0.0
        self._took_all = False

    @property
    def took_all(self) -> bool:
        return self._took_all

    @property
    def position(self) -> Position:
        return {
            "after": self._after,
            "taken": [[name, at] for name, at in self._taken.items()],
            "too_late": self._num_too_late,
        }

    def seek(self, position: Position) -> None:
        try:
            after, taken = position["after"], position["taken"]
            if not (after is None or isinstance(after, str)):
                raise ValueError(f"it is after {after!r}")
            self._taken = {str(name): float(at) for name, at in taken}
            self._num_too_late = int(position["too_late"])
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"this is no position in a folder of files: {error}") from error
        self._after = after
        self._has_looked = False
        self.close()

    def skip_what_is_there(self) -> str | None:
        """Take nothing of what has arrived until now; return the newest of it.

        Raises:
            StorageError: the folder can't be listed.
        """
        names = [name for name, _ in self._new_files()]
        names += [] if self._after is None else [self._after]
        self._after = max(names, key=natural_order, default=None)
        self._listed.clear()
        return None if self._after is None else join_url(self.folder, self._after)

    def poll(self, *, most: int, now: float) -> list[Arrival]:
        looks = time.monotonic() >= self._next_listing
        if looks:
            began = time.monotonic()
            self._look(now)
            took = time.monotonic() - began
            self._next_listing = time.monotonic() + (_LISTING_SHARE - 1) * took
        # Of very many that wait only those are looked at that come next.
        taken: list[tuple[str, _Waiting]] = []
        waiting_on: list[tuple[tuple[str, str], str]] = []
        looked_at = 0
        for place, name in self._order:
            if len(taken) == most:
                break
            looked_at += 1
            if self._is_ready(name, now):
                taken.append((name, self._waiting.pop(name)))
                self._taken[name] = now
            elif name in self._waiting:
                waiting_on.append((place, name))
        self._order[:looked_at] = waiting_on
        self._took_all = looks and len(taken) < most
        self._forget(now)
        return [Arrival(join_url(self.folder, n), self._written(n, f)) for n, f in taken]

    def lag(self) -> Lag:
        waiting = self._waiting.values()
        return Lag(
            files=len(waiting),
            num_bytes=sum(max(0, file.size) for file in waiting),
            oldest=min((file.found for file in waiting), default=None),
            too_late=self._num_too_late,
        )

    def is_in_cut(self, position: Position, oldest: str | None) -> None:
        """Nobody else keeps how far it is."""

    def remove(self, path: str) -> None:
        if not self._removes:
            return
        folder = split_url(self.folder)[2].rstrip("/")
        name = split_url(path)[2].removeprefix(f"{folder}/")
        try:
            if self._archive is None:
                self._filesystem.delete_file(self._inner(name))
            else:
                place = f"{self._archive.rstrip('/')}/{name}"
                self._filesystem.create_dir(place.rpartition("/")[0], recursive=True)
                self._filesystem.move(self._inner(name), place)
        except FileNotFoundError:
            return  # somebody was faster
        except pa.ArrowException as error:
            raise StorageError(path, f"it can't be removed ({brief(error)})", _ALLOW) from error

    def close(self) -> None:
        self._waiting.clear()
        self._order.clear()
        self._listed.clear()

    def _look(self, now: float) -> None:
        """Find what is new; what came while nobody looked is not told from what was taken then."""
        after = None if self._after is None else natural_order(self._after)
        found = []
        for name, written in self._new_files():
            if name in self._waiting or name in self._taken:
                continue
            place = natural_order(name)
            if after is not None and place <= after:
                self._num_too_late += self._has_looked
                continue
            self._waiting[name] = _Waiting(found=now, changed=now, written=written)
            found.append((place, name))
        if found:
            self._order = sorted(self._order + found)
        self._has_looked = True

    def _forget(self, now: float) -> None:
        """Remember no longer what was taken long ago: what comes before it is too late then."""
        first = self._order[0][0] if self._order else None
        for name, at in list(self._taken.items()):
            if now - at <= self._late_seconds and len(self._taken) <= MOST_REMEMBERED:
                break
            if first is not None and natural_order(name) > first:
                break  # that one was seen, and is not taken yet
            del self._taken[name]
            self._after = max(self._after or name, name, key=natural_order)

    def _is_ready(self, name: str, now: float) -> bool:
        """Whether a file has its end, or has not changed for so long that it never will."""
        file = self._waiting.get(name)
        if file is None:
            return False
        try:
            with self._filesystem.open_input_file(self._inner(name)) as source:
                size = source.size()
                tail = source.read_at(min(size, 4), max(0, size - 4))
        except FileNotFoundError:
            del self._waiting[name]
            return False
        except (OSError, pa.ArrowException):
            size, tail = file.size, b""
        if size != file.size:
            file.size, file.changed = size, now
        return tail in _MAGICS or now - file.changed >= self._settle_seconds

    def _written(self, name: str, file: _Waiting) -> float:
        """Return when a file was written that is complete."""
        written = file.written
        if self._local:
            try:
                written = os.stat(self._inner(name)).st_mtime
            except OSError:
                written = None  # whoever reads it finds that it is gone
        return file.found if written is None else written

    def _inner(self, name: str) -> str:
        return f"{self._root.rstrip('/')}/{name}"

    # Listing ----------------------------------------------------------------------------------

    def _new_files(self) -> Iterator[tuple[str, float | None]]:
        """Yield the files that were not there when their folder was listed before."""
        folders, seen = [""], set()
        while folders:
            folder = folders.pop()
            seen.add(folder)
            before = self._listed.get(folder)
            now = self._list(folder, before)
            self._listed[folder] = now
            if now is not before:
                old = before.files if before is not None else {}
                yield from ((name, at) for name, at in now.files.items() if name not in old)
            folders += [name for name in now.folders if not self._is_over(name)]
        for folder in self._listed.keys() - seen:
            del self._listed[folder]

    def _is_over(self, folder: str) -> bool:
        """Whether all that a folder can hold comes before what is remembered."""
        if self._after is None or self._after.startswith(f"{folder}/"):
            return False
        last = f"{folder}/\U0010ffff"
        waits = any(name.startswith(f"{folder}/") for name in self._waiting)
        return natural_order(last) < natural_order(self._after) and not waits

    def _list(self, folder: str, before: _Listed | None) -> _Listed:
        try:
            return self._list_local(folder, before) if self._local else self._list_store(folder)
        except FileNotFoundError:
            if folder:
                return _Listed(0, 0, {}, ())  # removed meanwhile
            raise StorageError(
                self.folder, "the folder of the stream is not there", "Make it, or correct the path"
            ) from None
        except (OSError, pa.ArrowException) as error:
            raise StorageError(
                self.folder, f"it can't be listed ({brief(error)})", "Try again later"
            ) from error

    def _list_local(self, folder: str, before: _Listed | None) -> _Listed:
        path = os.path.join(self._root, folder)
        changed_ns, at_ns = os.stat(path).st_mtime_ns, time.time_ns()
        if (
            before is not None
            and before.changed_ns == changed_ns
            and before.at_ns - changed_ns > _COARSE_NS
        ):
            return before
        with os.scandir(path) as entries:
            found = [(entry.name, entry.is_dir(), None) for entry in entries]
        return _listed(folder, found, changed_ns=changed_ns, at_ns=at_ns)

    def _list_store(self, folder: str) -> _Listed:
        inner = self._inner(folder).rstrip("/") or "/"
        entries = self._filesystem.get_file_info(pafs.FileSelector(inner))
        return _listed(
            folder,
            [(e.base_name, e.type == pafs.FileType.Directory, _time_of(e)) for e in entries],
        )


def _time_of(entry: pafs.FileInfo) -> float | None:
    return None if entry.mtime is None else entry.mtime.timestamp()


def _listed(
    folder: str,
    entries: Iterable[tuple[str, bool, float | None]],
    *,
    changed_ns: int = 0,
    at_ns: int = 0,
) -> _Listed:
    """Keep of a folder's entries (name, whether it is a folder, time) what may be samples."""
    files: dict[str, float | None] = {}
    folders: list[str] = []
    for name, is_folder, at in entries:
        path = f"{folder}/{name}" if folder else name
        if name[:1] in "._":
            continue
        if is_folder:
            folders.append(path)
        elif name.endswith(_SUFFIX):
            files[path] = at
    return _Listed(changed_ns, at_ns, files, tuple(folders))
