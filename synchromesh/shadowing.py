"""Whether our packages are ours: a user's own worker.py would be imported in place of `worker`."""

import sys
from importlib.util import find_spec
from pathlib import Path

PACKAGES = ("embedding", "ps", "runtime", "scheduler", "serving", "worker")


class ShadowedError(ImportError):
    """A module of the user's is found in place of one of our packages."""


def refuse_shadows() -> None:
    """Find every package of ours without importing it.

    Raises:
        ShadowedError: another file or folder of that name comes first on `sys.path`.
    """
    home = Path(__file__).resolve().parents[1]
    for name in PACKAGES:
        found = _place_of(name)
        if found is not None and found != home / name:
            raise ShadowedError(
                f"{found} is found where Synchromesh needs its own package {name!r}, which lies in"
                f" {home}; rename it, or start from another folder"
            )


def _place_of(name: str) -> Path | None:
    """Return the folder of a package, or the file of a module, that an import would give."""
    spec = getattr(sys.modules.get(name), "__spec__", None) or find_spec(name)
    if spec is None or spec.origin is None:
        # Folders without __init__.py come last; ours is found behind them, if it is anywhere.
        return None
    origin = Path(spec.origin).resolve()
    return origin.parent if origin.name == "__init__.py" else origin
