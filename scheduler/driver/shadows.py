"""Whether Ray's processes would find our packages where this one does."""

import sys
from importlib.machinery import PathFinder
from pathlib import Path

from scheduler.errors import StartError

PACKAGES = ("embedding", "ps", "runtime", "scheduler", "serving", "worker")


def refuse_shadows_of_actors(folder: Path) -> None:
    """Raise StartError where a module of a folder would be imported in place of a package of ours.

    Ray puts the current folder first on the path of its processes. On that of this process it
    need not be: `python jobs/mine.py` has the script's folder there.
    """
    for name in PACKAGES:
        found = PathFinder.find_spec(name, [str(folder)])
        ours = sys.modules.get(name)
        if found is None or found.origin is None or ours is None or ours.__file__ is None:
            continue
        origin, home = Path(found.origin).resolve(), Path(ours.__file__).resolve()
        if origin != home:
            place = origin.parent if origin.name == "__init__.py" else origin
            raise StartError(
                f"{place} would be found by Ray's processes where Synchromesh needs its own"
                f" package {name!r}, which lies in {home.parents[1]}; rename it, or start from"
                " another folder"
            )
