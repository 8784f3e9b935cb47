"""The door of the command: before anything else of ours is imported, what is found must be ours."""

import os
import sys
from collections.abc import Sequence

from synchromesh.shadowing import ShadowedError, refuse_shadows


def enter(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return its exit code.

    The current folder comes first on `sys.path`, as with `python -m`: a job's own model is found
    there, by Ray's processes too, and so is what would stand in place of our packages.
    """
    folder = os.getcwd()
    if not sys.flags.safe_path and sys.path[:1] not in ([""], [folder]):
        sys.path.insert(0, folder)
    try:
        refuse_shadows()
    except ShadowedError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    from synchromesh.commands.main import main

    return main(arguments)


def script() -> None:
    """What an installation puts on PATH."""
    sys.exit(enter())
