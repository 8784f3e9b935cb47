"""Where compiled kernels are kept, so that a stale one can't be loaded.

Numba ties a cached kernel to its own file only: a change in a file whose functions were inlined
would go unnoticed. So the folder's name is a digest of every file with kernels.
"""

import hashlib
import os
import shutil
from pathlib import Path

import numba

_PACKAGES = ("embedding", "ps", "worker")
_KEPT = 8


def use_own_cache() -> None:
    """Set Numba's cache folder, unless NUMBA_CACHE_DIR sets it."""
    if os.environ.get("NUMBA_CACHE_DIR"):
        return
    root = Path(__file__).resolve().parent.parent
    digest = hashlib.sha256()
    for path in sorted(p for name in _PACKAGES for p in (root / name).rglob("*.py")):
        source = path.read_bytes()
        if b"njit" in source:
            digest.update(path.relative_to(root).as_posix().encode())
            digest.update(source)
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    folder = home / "synchromesh" / "kernels" / digest.hexdigest()[:16]
    if not folder.exists():
        _forget_old(folder.parent)
    numba.config.CACHE_DIR = str(folder)


def _forget_old(parent: Path) -> None:
    """Remove the folders of all but the latest versions."""
    try:
        folders = sorted(parent.iterdir(), key=lambda path: path.stat().st_mtime)
    except OSError:
        return  # none yet, or another process is removing them
    for folder in folders[: -_KEPT + 1]:
        shutil.rmtree(folder, ignore_errors=True)
