"""What a job needs of a source that samples keep arriving at: files, one after another.

A source that has no files of its own (a broker, a server that producers write to) puts what it
receives into files first, so that a row can be read again until a checkpoint has it.
"""

from dataclasses import dataclass
from typing import Any, Protocol

Position = dict[str, Any]
"""Where in a stream somebody is, as plain JSON: it is kept in checkpoints."""


@dataclass(frozen=True, slots=True)
class Lag:
    """What has arrived and was not taken yet.

    Args:
        files, num_bytes: that wait.
        oldest: when the first of them was found, seconds since 1970; None: nothing waits.
        too_late: files that came after others had long been taken that follow them; never taken.
    """

    files: int = 0
    num_bytes: int = 0
    oldest: float | None = None
    too_late: int = 0


class Stream(Protocol):
    """A source of Parquet files that arrive one after another.

    It is used by one thread, and takes every file once as long as somebody goes on from the
    position that he has kept.
    """

    @property
    def position(self) -> Position:
        """What was taken until now."""
        ...

    def seek(self, position: Position) -> None:
        """Go on after what was taken at a position; raises ValueError where it is none."""
        ...

    def poll(self, *, most: int, now: float) -> list[str]:
        """Take what has arrived, in order; never waits.

        Args:
            most: files at most.
            now: seconds since 1970.

        Returns:
            Paths or URLs of files that are complete, or at least as complete as they will be.

        Raises:
            StorageError: the source can't be asked for now; nothing was taken.
        """
        ...

    def lag(self) -> Lag:
        """Return what waits, as of the last poll."""
        ...

    def close(self) -> None:
        """Nothing is asked of it any more."""
        ...
