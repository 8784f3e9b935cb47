"""Where compiled kernels are kept, so that a stale one can't be loaded and none is compiled twice.

Numba ties a cached kernel to its own file only: a change in a file whose functions were inlined
would go unnoticed. So the folder's name is a digest of every file with kernels, of its package and
of those that this one may import. Numba also ties it
to the path of its file, which is another one in every job that uploads its sources: so here our
files are known by their path inside the packages. See docs/performance.md, "Start-up".

Numba numbers the files of one function's kernels by its index, without a lock. Two processes that
compile it for other types at the same time take the same number, and one then loads the kernel that
the other compiled: silently, as it is not looked at again. So here each file has a name of its own.

The servers and workers of a node start at once and want the same kernels. One compiles a kernel,
the others wait for it and load it: else each of them would pay for all, on the same cores.
"""

import contextlib
import hashlib
import os
import secrets
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar

import numba
from filelock import FileLock, Timeout
from numba.core import dispatcher
from numba.core.caching import FunctionCache, IndexDataCacheFile

_ROOT = Path(__file__).resolve().parents[2]
_PACKAGES = ("embedding", "ps", "worker", "serving")  # each may import those before it
_KEPT = 32
_WAIT_SECONDS = 60.0  # for another process to compile: a dead or frozen one is not awaited
_told: list[Callable[[], None]] = []


def use_own_cache() -> None:
    """Set Numba's cache folder, unless NUMBA_CACHE_DIR sets it, and how files in it are named."""
    IndexDataCacheFile._data_name = _name_of_its_own
    dispatcher.FunctionCache = SharedCache  # type: ignore[attr-defined]
    if os.environ.get("NUMBA_CACHE_DIR"):
        return
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    versions = home / "synchromesh" / "kernels"
    for package, digest in _digests().items():
        folder = KernelLocator.folders[package] = versions / digest
        try:
            os.utime(folder)  # which of them are used is seen by that
        except OSError:
            _forget_old(versions)
    # Files that are not ours, as those of a custom model, are known by their whole path.
    numba.config.CACHE_DIR = str(folder)
    numba.config.CACHE_LOCATOR_CLASSES = f"{__name__}.KernelLocator,UserProvidedCacheLocator"


@contextlib.contextmanager
def when_compiling(tell: Callable[[], None]) -> Iterator[None]:
    """Have a function called once, before this process compiles a kernel meanwhile."""
    _told[:] = [tell]
    try:
        yield
    finally:
        _told.clear()


class SharedCache(FunctionCache):
    """The compiled forms of one function, of which one process at a time compiles another.

    Numba asks for a form, and if there is none compiles it and saves it; all in one thread.
    """

    def __init__(self, function: Any) -> None:
        super().__init__(function)
        name = f"{self._impl.filename_base}.lock"
        self._compiling = FileLock(
            Path(self.cache_path) / name, timeout=_WAIT_SECONDS, thread_local=False
        )

    def load_overload(self, sig: Any, target_context: Any) -> Any:
        """Return the form of a signature, or None: then the caller is the one who compiles it."""
        found = super().load_overload(sig, target_context)
        if found is not None:
            return found
        if _told:
            _told.pop()()
        try:
            self._compiling.acquire()
        except (Timeout, OSError, NotImplementedError):
            return None  # it is compiled twice then
        found = super().load_overload(sig, target_context)
        if found is not None:
            self._compiling.release(force=True)
        return found

    def save_overload(self, sig: Any, data: Any) -> None:
        """Keep what was compiled, and let others compile."""
        try:
            super().save_overload(sig, data)
        finally:
            self._compiling.release(force=True)


class KernelLocator:
    """Where Numba finds the compiled functions of one of our files, wherever that file lies.

    Numba makes one for each function, by `from_function`; the methods are those that it calls.
    """

    folders: ClassVar[dict[str, Path]] = {}  # of each package

    def __init__(self, file: Path, line: int) -> None:
        self._py_file = str(file)
        self._line = line
        place = file.parent.relative_to(_ROOT)
        self._folder = self.folders[place.parts[0]] / place

    @classmethod
    def from_function(cls, function: Any, file: str) -> "KernelLocator | None":
        """Return None where the file is not ours, or the folder can't be written."""
        path = Path(file).resolve()
        if not any(path.is_relative_to(_ROOT / name) for name in _PACKAGES):
            return None
        locator = cls(path, function.__code__.co_firstlineno)
        try:
            locator.ensure_cache_path()
        except OSError:
            return None
        return locator

    def ensure_cache_path(self) -> None:
        """Make the folder; raises OSError where nothing can be written to it."""
        self._folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=self._folder).close()

    def get_cache_path(self) -> str:
        return str(self._folder)

    def get_source_stamp(self) -> str:
        """Return what a compiled function is stale without: nothing, as the folder has it all."""
        return ""

    def get_disambiguator(self) -> str:
        """Return what tells functions of one name in a file apart."""
        return str(self._line)


def _name_of_its_own(index: IndexDataCacheFile, number: int) -> str:
    """Return a name for a compiled kernel that no other process takes, whatever the number."""
    return str(index._data_name_pattern.format(number=secrets.randbits(64)))


def _digests() -> dict[str, str]:
    """Return names for Numba's version and the files with kernels: a package's and those before."""
    digest = hashlib.sha256(numba.__version__.encode())
    names = {}
    for package in _PACKAGES:
        for path in sorted((_ROOT / package).rglob("*.py")):
            source = path.read_bytes()
            if b"numba" in source:  # kernels, and what is compiled into them
                digest.update(path.relative_to(_ROOT).as_posix().encode())
                digest.update(source)
        names[package] = digest.hexdigest()[:16]
    return names


def _forget_old(parent: Path) -> None:
    """Remove the folders of all versions but those that were used last."""
    try:
        folders = sorted(parent.iterdir(), key=lambda path: path.stat().st_mtime)
    except OSError:
        return  # none yet, or another process is removing them
    for folder in folders[: -_KEPT + 1]:
        shutil.rmtree(folder, ignore_errors=True)
