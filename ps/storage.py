"""Files anywhere: local paths, and URLs of every store that pyarrow or fsspec can open.

Credentials belong into the environment, not into URLs: these are stored with a run and shown in
messages.
"""

import os
from collections.abc import Iterator, Sequence
from fnmatch import fnmatchcase
from functools import lru_cache
from typing import Any
from urllib.parse import quote, unquote

import fsspec
import pyarrow as pa
from pyarrow import fs as pafs

ARROW_SCHEMES = frozenset({"file", "s3", "gs", "gcs", "hdfs", "viewfs", "abfs", "abfss"})
"""Schemes that pyarrow opens itself; every other one is fsspec's."""

_WILDCARDS = "*?["
_URL_CHARACTERS = "%/:@!$&'()*+,;=~"


class StorageError(OSError):
    """A path or URL that can't be opened or listed."""

    def __init__(self, url: str, problem: str, remedy: str) -> None:
        super().__init__(f"{url}: {problem}. {remedy}")
        self.url = url
        self.problem = problem
        self.remedy = remedy

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.url, self.problem, self.remedy)


class NoSuchFileError(StorageError, FileNotFoundError):
    """A path that doesn't exist or a pattern that matches no file."""


def open_filesystem(url_or_path: str) -> tuple[pafs.FileSystem, str]:
    """Return the filesystem of a path or URL, and the path in it.

    Without `scheme://` it is a local path, `~` expanded, relative to the working directory. URLs of
    `ARROW_SCHEMES` are pyarrow's, with its options after `?` (`s3://bucket/x?region=eu-west-1`
    saves the look-up of the region); others (`memory://`, `oss://`, ...) are fsspec's.

    Raises:
        StorageError: nothing installed opens the URL, or the store refuses.
    """
    scheme, authority, path, options = _split(url_or_path)
    if not scheme:
        return pafs.LocalFileSystem(), os.path.abspath(os.path.expanduser(path))
    try:
        if scheme in ARROW_SCHEMES:
            filesystem, root = _arrow_root(scheme, authority, options)
            return filesystem, f"{root.rstrip('/')}/{unquote(path.strip('/'))}".rstrip("/") or "/"
        filesystem, path = fsspec.core.url_to_fs(url_or_path)
        filesystem.invalidate_cache()  # fsspec keeps listings, and new files would not be seen
        return pafs.PyFileSystem(pafs.FSSpecHandler(filesystem)), path
    except (OSError, ValueError, ImportError, pa.ArrowException) as error:
        remedy = "Correct the URL, or install the package that opens it"
        raise StorageError(
            url_or_path, f"the store can't be opened ({_brief(error)})", remedy
        ) from error


def expand(patterns: Sequence[str]) -> list[str]:
    """Return the files that patterns name.

    A pattern is a file; a directory, which stands for its `*.parquet`; or a path with `*`, `?`,
    `[...]` and `**` (any number of directories). In a URL `?` begins the options and is no
    wildcard. Wildcards match files only, and no name that begins with `.` or `_`.

    Returns:
        Absolute paths and URLs that `open_filesystem` takes: those of each pattern sorted, in the
        order of the patterns; a file that two patterns name is there twice.

    Raises:
        NoSuchFileError: a pattern names no file.
        StorageError: a store can't be opened or listed.
    """
    if isinstance(patterns, str):
        patterns = [patterns]
    return [path for pattern in patterns for path in _expand(pattern)]


def _expand(pattern: str) -> list[str]:
    scheme, authority, path, options = _split(pattern)
    if not scheme:
        path = os.path.abspath(os.path.expanduser(path))
    prefix = f"{scheme}://{authority}" if scheme else ""
    suffix = f"?{options}" if options else ""
    segments = path.split("/")
    fixed = next((i for i, s in enumerate(segments) if _is_wild(s, scheme)), len(segments))
    directory, wild = "/".join(segments[:fixed]), segments[fixed:]
    try:
        filesystem, base = open_filesystem(f"{prefix}{directory or '/'}{suffix}")
        if not wild:
            kind = filesystem.get_file_info(base).type
            if kind == pafs.FileType.File:
                return [f"{prefix}{path}{suffix}"]
            if kind == pafs.FileType.NotFound:
                raise NoSuchFileError(
                    pattern, "there is no such file or directory", "Correct the path"
                )
            directory, wild = directory.rstrip("/"), ["*.parquet"]
        names = sorted(set(_matches(filesystem, base, wild)))
    except StorageError:
        raise
    except (OSError, pa.ArrowException) as error:
        remedy = "Check the address and the rights to it"
        raise StorageError(pattern, f"it can't be listed ({_brief(error)})", remedy) from error
    if not names:
        raise NoSuchFileError(pattern, "no file matches", "Correct the pattern or make the files")
    quoted = scheme in ARROW_SCHEMES
    return [f"{prefix}{directory}/{quote(n) if quoted else n}{suffix}" for n in names]


def _matches(filesystem: pafs.FileSystem, directory: str, segments: list[str]) -> Iterator[str]:
    """Files under a directory whose relative path matches, one segment for each level."""
    first, rest = segments[0], segments[1:]
    if first == "**" and not rest:
        first, rest, segments = "*", [], ["**", "*"]
    deep = segments[0] == "**"
    if deep and rest:
        yield from _matches(filesystem, directory, rest)
    for info in filesystem.get_file_info(pafs.FileSelector(directory, allow_not_found=True)):
        name = info.base_name
        if name[0] in "._" and first[0] != name[0]:
            continue
        is_directory = info.type == pafs.FileType.Directory
        if deep and is_directory:
            below = _matches(filesystem, info.path, segments)
        elif not fnmatchcase(name, first):
            continue
        elif rest and is_directory:
            below = _matches(filesystem, info.path, rest)
        else:
            if not rest and not is_directory:
                yield name
            continue
        yield from (f"{name}/{path}" for path in below)


def _brief(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


def _is_wild(segment: str, scheme: str) -> bool:
    return any(c in segment for c in (_WILDCARDS.replace("?", "") if scheme else _WILDCARDS))


def _split(url: str) -> tuple[str, str, str, str]:
    """Scheme, authority, path and options of a URL; a local path is all path."""
    scheme, separator, rest = url.partition("://")
    if not separator:
        return "", "", url, ""
    rest, _, options = rest.partition("?")
    authority, slash, path = rest.partition("/")
    return scheme, authority, slash + path, options


@lru_cache(maxsize=64)
def _arrow_root(scheme: str, authority: str, options: str) -> tuple[pafs.FileSystem, str]:
    """The client of one bucket or server: making one can take network calls, so they are kept."""
    url = f"{scheme}://{authority}/" + (f"?{options}" if options else "")
    return pafs.FileSystem.from_uri(quote(url, safe=_URL_CHARACTERS + "?"))
