"""Files anywhere: local paths, and URLs of every store that pyarrow or fsspec can open.

Credentials belong into the environment, not into URLs: these are stored with a run and shown in
messages.
"""

import os
from functools import lru_cache
from typing import Any
from urllib.parse import quote

import fsspec
import pyarrow as pa
from pyarrow import fs as pafs

ARROW_SCHEMES = frozenset({"file", "s3", "gs", "gcs", "hdfs", "viewfs", "abfs", "abfss"})
"""Schemes that pyarrow opens itself; every other one is fsspec's."""

_ALIASES = {"s3a": "s3", "s3n": "s3"}  # how Spark and Hadoop write them
_URL_CHARACTERS = "%/:@!$&'()*+,;=~"


class StorageError(OSError):
    """A path or URL that can't be opened or listed."""

    def __init__(self, url: str, problem: str, remedy: str) -> None:
        super().__init__(f"{url or repr('')}: {problem}. {remedy}")
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
    `ARROW_SCHEMES` are pyarrow's, with its options after the last `?`
    (`s3://bucket/x?region=eu-west-1` saves the look-up of the region), `s3a://` and `s3n://` are
    `s3://`; others (`memory://`, `oss://`, ...) are fsspec's. The path of a URL is taken as it
    stands: `%2F` in it is a name's three characters.

    Raises:
        StorageError: nothing installed opens the URL, or the store refuses.
    """
    scheme, authority, path, options = split_url(url_or_path)
    if not scheme:
        return pafs.LocalFileSystem(), os.path.abspath(os.path.expanduser(path))
    try:
        if scheme in ARROW_SCHEMES:
            filesystem, root = _arrow_root(scheme, authority, options)
            return filesystem, f"{root.rstrip('/')}/{path.strip('/')}".rstrip("/") or "/"
        filesystem, path = fsspec.core.url_to_fs(url_or_path)
        filesystem.invalidate_cache()  # fsspec keeps listings, and new files would not be seen
        return pafs.PyFileSystem(pafs.FSSpecHandler(filesystem)), path
    except (OSError, ValueError, ImportError, pa.ArrowException) as error:
        remedy = "Correct the URL, or install the package that opens it"
        raise StorageError(
            url_or_path, f"the store can't be opened ({brief(error)})", remedy
        ) from error


def is_known_scheme(scheme: str) -> bool:
    """Whether some package opens URLs of a scheme, be it installed or not."""
    known = {*ARROW_SCHEMES, *fsspec.registry, *fsspec.available_protocols()}
    return _ALIASES.get(scheme, scheme) in known


def brief(error: BaseException) -> str:
    """Return the first line of what a library says."""
    return (str(error).splitlines() or [type(error).__name__])[0]


def split_url(url: str) -> tuple[str, str, str, str]:
    """Return scheme, authority, path and options of a URL; a local path is all path.

    The options are what follows the last `?`.
    """
    scheme, separator, rest = url.partition("://")
    if not separator:
        return "", "", url, ""
    scheme = _ALIASES.get(scheme, scheme)
    before, mark, options = rest.rpartition("?")
    authority, slash, path = (before if mark else rest).partition("/")
    return scheme, authority, slash + path, options if mark else ""


def join_url(folder: str, name: str) -> str:
    """Write the path or URL of a file by its path from a folder on.

    Where the name has a `?` and the folder no options, a `?` at the end says that these are none.
    """
    scheme, authority, path, options = split_url(folder)
    whole = f"{path.rstrip('/')}/{name}"
    if not scheme:
        return whole
    mark = options or ("?" in whole and scheme in ARROW_SCHEMES)
    return f"{scheme}://{authority}{whole}" + (f"?{options}" if mark else "")


@lru_cache(maxsize=64)
def _arrow_root(scheme: str, authority: str, options: str) -> tuple[pafs.FileSystem, str]:
    """The client of one bucket or server: making one can take network calls, so they are kept."""
    url = f"{scheme}://{authority}/" + (f"?{options}" if options else "")
    return pafs.FileSystem.from_uri(quote(url, safe=_URL_CHARACTERS + "?"))


def lie_in_one_another(one: str, other: str) -> bool:
    """Return whether one of two folders, paths or URLs, is the other one or lies in it.

    They are compared as they are written.
    """
    one, other = f"{one.rstrip('/')}/", f"{other.rstrip('/')}/"
    return one.startswith(other) or other.startswith(one)
