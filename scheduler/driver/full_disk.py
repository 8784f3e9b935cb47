"""A full disk is waited for: somebody makes room, or checkpoints that are not kept go."""

import errno
import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")

PAUSE_SECONDS = 1.0


def once_there_is_room(
    write: Callable[[], T],
    *,
    seconds: float,
    note: Callable[[str], None],
    meanwhile: Callable[[], object] = lambda: None,
) -> T:
    """Write something, again and again while there is no room for it; return what that returns.

    Args:
        seconds: after which what it raises is raised.
        note: tells a person, once.
        meanwhile: is called between two tries; may raise.
    """
    until, said = time.monotonic() + seconds, False
    while True:
        try:
            return write()
        except Exception as error:
            if not is_no_room(error) or time.monotonic() > until:
                raise
            if not said:
                note(f"{error}. The job waits until there is room")
            said = True
        meanwhile()
        time.sleep(PAUSE_SECONDS)


def is_no_room(error: BaseException | None) -> bool:
    """Whether an error says that a disk is full, or what caused it does."""
    while error is not None:
        cause = getattr(error, "cause", None)  # of what Ray wraps
        for each in (error, cause):
            if isinstance(each, OSError) and each.errno in (errno.ENOSPC, errno.EDQUOT):
                return True
        error = error.__cause__
    return False
