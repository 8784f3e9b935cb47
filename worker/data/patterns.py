"""Which files the paths, folders and patterns of a job name, and in which order.

docs/data.md, "Places". Files of a Delta, Iceberg or Hudi table are refused here: its folder also
holds files that are no longer part of it, and only the table's log says which.
"""

import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from urllib.parse import unquote

import pyarrow as pa
from pyarrow import fs as pafs

from runtime.storage import (
    ARROW_SCHEMES,
    NoSuchFileError,
    StorageError,
    brief,
    open_filesystem,
    split_url,
)

NULL_FOLDER = "__HIVE_DEFAULT_PARTITION__"
"""The value in a folder's name that stands for null."""

_NUMBER = re.compile("[0-9]+")
_DELTA, _ICEBERG, _HUDI = "_delta_log", "metadata", ".hoodie"
_MARKS = (_DELTA, _ICEBERG, _HUDI)
_NOT_FOUND = pafs.FileType.NotFound
_SUFFIX = ".parquet"


def expand(patterns: Sequence[str], plain: set[str] | None = None) -> list[str]:
    """Return the files that patterns name.

    A pattern is a file; a folder, which stands for its `*.parquet` or, where it has none, for those
    of its folders `key=value`; or a path with `*`, `?`, `[...]` and `**` (any number of folders).
    A name that exists is meant by it: `day[1]/a.parquet` is that file where there is one. In a URL
    `?` begins the options and is no wildcard. Wildcards match files, folders `NAME.parquet`, which
    stand for what is in them, and no name that begins with `.` or `_`.

    Args:
        patterns: in the order in which their files are wanted.
        plain: folders that are known not to be tables; is added to, so that each is asked once.

    Returns:
        Absolute paths and URLs that `open_filesystem` takes: those of each pattern in
        `natural_order`, in the order of the patterns; a file that two patterns name is there twice.

    Raises:
        NoSuchFileError: a pattern names no file.
        StorageError: a store can't be opened or listed, files are those of a table, or a link
            leads nowhere.
    """
    if isinstance(patterns, str):
        patterns = [patterns]
    plain = set() if plain is None else plain
    return [path for pattern in patterns for path in _files(pattern, plain)]


def natural_order(path: str) -> tuple[str, str]:
    """Return what paths are sorted by: as text, but each run of digits as one number.

    So `part.2` comes before `part.10`. Beside any other character a number stands where its digits
    would; paths that are equal but for leading zeros are sorted as text.
    """

    def number(run: re.Match[str]) -> str:
        # Begins like any digit; of two numbers the one with more digits is the larger one.
        digits = run[0].lstrip("0")
        return f"0{chr(len(digits))}{digits}"

    return _NUMBER.sub(number, path), path


def folder_values(path: str) -> dict[str, str | None]:
    """Return what the folders `key=value` of a file's path say, as Spark and Hive write them.

    Percent escapes are decoded, values stay text (`00` is not 0), `NULL_FOLDER` is None. Of two
    folders of one key the inner one counts.
    """
    values: dict[str, str | None] = {}
    for folder in split_url(path)[2].split("/")[:-1]:
        key, mark, value = folder.partition("=")
        if key and mark:
            values[_unescaped(key)] = None if value == NULL_FOLDER else _unescaped(value)
    return values


def _unescaped(text: str) -> str:
    try:
        return unquote(text, errors="strict")
    except UnicodeDecodeError:
        return text


@dataclass(frozen=True, slots=True)
class _Folder:
    """A folder: its path in a filesystem, and in the path or URL by which it was named."""

    filesystem: pafs.FileSystem
    inner: str
    path: str

    def entries(self) -> list[pafs.FileInfo]:
        found = self.filesystem.get_file_info(pafs.FileSelector(self.inner, allow_not_found=True))
        if isinstance(self.filesystem, pafs.LocalFileSystem) and os.path.isdir(self.inner):
            # Arrow leaves out links that lead nowhere: their rows would be missing without a word.
            names = set(os.listdir(self.inner)) - {entry.base_name for entry in found}
            left = [self.into(name).inner for name in sorted(names)]
            lost = [path for path in left if os.path.islink(path) and not os.path.exists(path)]
            found += [pafs.FileInfo(path, _NOT_FOUND) for path in lost]
        return found

    def into(self, name: str) -> "_Folder":
        return _Folder(self.filesystem, f"{self.inner.rstrip('/')}/{name}", self.path_of(name))

    def path_of(self, name: str) -> str:
        return f"{self.path.rstrip('/')}/{name}"

    def and_above(self) -> Iterator["_Folder"]:
        """This folder and those that it lies in, up to the root."""
        inner, path = self.inner.rstrip("/"), self.path.rstrip("/")
        while inner and not inner.endswith((":", "/")):
            yield _Folder(self.filesystem, inner, path)
            inner, path = inner.rpartition("/")[0], path.rpartition("/")[0]

    def table(self) -> str | None:
        """Which kind of table this is the folder of."""
        places = [self.into(mark).inner for mark in _MARKS]
        infos = self.filesystem.get_file_info(places)
        found = {m for m, info in zip(_MARKS, infos, strict=True) if _is_folder(info.type)}
        if _ICEBERG in found:
            names = [entry.base_name for entry in self.into(_ICEBERG).entries()]
            if not any(name.endswith(".metadata.json") for name in names):
                found.discard(_ICEBERG)
        return next((mark for mark in _MARKS if mark in found), None)


class _Search:
    """The search for the files of one pattern."""

    def __init__(self, pattern: str, plain: set[str]) -> None:
        self._pattern = pattern
        self._plain = plain
        self._scheme, authority, path, options = split_url(pattern)
        self._path = path if self._scheme else os.path.abspath(os.path.expanduser(path))
        self._prefix = f"{self._scheme}://{authority}" if self._scheme else ""
        self._suffix = f"?{options}" if options else ""
        self._perhaps_tables: list[_Folder] = []

    def files(self) -> list[str]:
        """Return the files in order; raises OSError and pa.ArrowException of the store."""
        segments = self._path.split("/")
        wild = next((i for i, s in enumerate(segments) if self._is_wild(s)), len(segments))
        base = self._folder(self._path)
        kind = base.filesystem.get_file_info(base.inner).type
        if kind == pafs.FileType.File:
            base, found = self._folder("/".join(segments[:-1])), iter([self._path])
        elif _is_folder(kind):
            found = self._parts(base)
        elif wild < len(segments):
            base = self._folder("/".join(segments[:wild]))
            found = self._matches(base, segments[wild:])
        else:
            problem = "there is no such file or folder"
            raise NoSuchFileError(self._pattern, problem, "Correct the path")
        paths = sorted(set(found), key=natural_order)
        if not paths:
            raise NoSuchFileError(self._pattern, "no file matches", self._remedy(base))
        self._refuse_tables(base, paths)
        return [self._written(path) for path in paths]

    def _is_wild(self, segment: str) -> bool:
        return any(c in segment for c in ("*[" if self._scheme else "*?["))

    def _written(self, path: str) -> str:
        """Write a path to open it; where a name has a `?`, another one says where options begin."""
        own = "?" in path and not self._suffix and self._scheme in ARROW_SCHEMES
        return f"{self._prefix}{path}{'?' if own else self._suffix}"

    def _folder(self, path: str) -> _Folder:
        filesystem, inner = open_filesystem(self._written(path or "/"))
        return _Folder(filesystem, inner, path)

    def _matches(self, folder: _Folder, segments: list[str]) -> Iterator[str]:
        """Files under a folder whose relative path matches, one segment for each level."""
        first, rest = segments[0], segments[1:]
        if first == "**" and not rest:
            first, rest, segments = "*", [], ["**", "*"]
        deep = segments[0] == "**"
        if deep and rest:
            yield from self._matches(folder, rest)
        entries = self._entries(folder)
        exact = any(entry.base_name == first for entry in entries)
        for entry in entries:
            name = entry.base_name
            if name[0] in "._" and first[0] != name[0]:
                continue
            is_folder = _is_folder(entry.type)
            if deep and is_folder:
                yield from self._matches(folder.into(name), segments)
            elif not (name == first if exact else fnmatchcase(name, first)):
                continue
            elif rest and is_folder:
                yield from self._matches(folder.into(name), rest)
            elif not rest:
                yield from self._named(folder, entry)

    def _named(self, folder: _Folder, entry: pafs.FileInfo) -> Iterator[str]:
        """A file, or the files of a folder `NAME.parquet`, as Spark writes in the place of one."""
        name = entry.base_name
        if _is_folder(entry.type):
            if name.endswith(_SUFFIX):
                yield from self._parts(folder.into(name))
        elif entry.type == pafs.FileType.File:
            yield folder.path_of(name)
        else:
            lost = entry.type == _NOT_FOUND
            what = "a link to what is not there" if lost else "neither a file nor a folder"
            problem = f"{self._written(folder.path_of(name))} is {what}"
            raise StorageError(self._pattern, problem, "Remove it, or put the file there")

    def _parts(self, folder: _Folder) -> Iterator[str]:
        """The `*.parquet` of a folder; where it has none, those of its folders `key=value`."""
        entries = [entry for entry in self._entries(folder) if entry.base_name[0] not in "._"]
        named = [entry for entry in entries if entry.base_name.endswith(_SUFFIX)]
        for entry in named:
            yield from self._named(folder, entry)
        for entry in () if named else entries:
            if _is_folder(entry.type) and "=" in entry.base_name[1:]:
                yield from self._parts(folder.into(entry.base_name))

    def _entries(self, folder: _Folder) -> list[pafs.FileInfo]:
        entries = folder.entries()
        if any(entry.base_name in _MARKS for entry in entries):
            self._perhaps_tables.append(folder)
        return entries

    def _remedy(self, base: _Folder) -> str:
        entries = [entry for entry in base.entries() if entry.base_name[0] not in "._"]
        if base.path == self._path and any(_is_folder(entry.type) for entry in entries):
            deep = self._written(base.path_of("**/*.parquet"))
            return f"Its files may lie in the folders below it: write {deep}"
        if base.path == self._path and entries:
            other = self._written(base.path_of(entries[0].base_name))
            return (
                f"Of a folder only *.parquet are read, and it has {other}: name files with another"
                " ending by a pattern"
            )
        return "Correct the pattern or make the files"

    def _refuse_tables(self, base: _Folder, paths: list[str]) -> None:
        suspects = [*base.and_above()]
        for folder in self._perhaps_tables:
            inside = f"{folder.path.rstrip('/')}/"
            if any(path.startswith(inside) for path in paths):
                suspects.append(folder)
        if isinstance(base.filesystem, pafs.LocalFileSystem):
            for path in _linked_folders(paths):
                suspects += _Folder(base.filesystem, path, path).and_above()
        for folder in suspects:
            written = self._written(folder.path)
            if written in self._plain:
                continue
            try:
                table = folder.table()
            except Exception:  # no right to look there, or whatever the package of a URL raises
                table = None
            if table is None:
                self._plain.add(written)
                continue
            kind, remedy = {
                _DELTA: ("Delta", f"Write delta://{written} to read the table"),
                _ICEBERG: ("Iceberg", f"Write iceberg://{written} to read the table"),
                _HUDI: (
                    "Hudi",
                    "Hudi tables can't be read: write a snapshot of the table as plain Parquet"
                    " files, such as with Spark, and name their folder",
                ),
            }[table]
            problem = (
                f"{written} is a table ({kind}), and not all files in its folder are part of it"
            )
            raise StorageError(self._pattern, problem, remedy)


def _files(pattern: str, plain: set[str]) -> list[str]:
    try:
        return _Search(pattern, plain).files()
    except StorageError:
        raise
    except (OSError, pa.ArrowException) as error:
        remedy = "Check the address and the rights to it"
        raise StorageError(pattern, f"it can't be listed ({brief(error)})", remedy) from error


def _linked_folders(paths: list[str]) -> set[str]:
    """Where files really lie that are found through symbolic links."""
    folders = {os.path.dirname(path) for path in paths}
    real = {os.path.realpath(folder) for folder in folders}
    real |= {os.path.dirname(os.path.realpath(path)) for path in paths if os.path.islink(path)}
    return real - folders


def _is_folder(kind: pafs.FileType) -> bool:
    return bool(kind == pafs.FileType.Directory)
