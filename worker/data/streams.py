"""What a job needs of a source that samples keep arriving at: files, one after another.

A source that has no files of its own (a broker, a server that producers write to) puts what it
receives into files first, so that a row can be read again until a checkpoint has it.
"""

from dataclasses import dataclass
from typing import Any, Protocol

Position = dict[str, Any]
"""Where in a stream somebody is, as plain JSON: it is kept in checkpoints."""


@dataclass(frozen=True, slots=True)
class Arrival:
    """A file that has arrived.

    Args:
        path: or URL; it is complete, or at least as complete as it will be.
        at: when it came into the stream, as the source says it, seconds since 1970.
    """

    path: str
    at: float


@dataclass(frozen=True, slots=True)
class Lag:
    """What has arrived and was not taken yet.

    Args:
        files, num_bytes: that wait.
        oldest: when the first of them was found, seconds since 1970; None: nothing waits.
        too_late: files that came after others had long been taken that follow them; never taken.
        messages: of a broker, that wait.
        refused, lost: messages that could not be used, and that the broker had removed before they
            were taken, since the stream began.
    """

    files: int = 0
    num_bytes: int = 0
    oldest: float | None = None
    too_late: int = 0
    messages: int = 0
    refused: int = 0
    lost: int = 0


class Stream(Protocol):
    """A source of Parquet files that arrive one after another.

    It is used by one thread, and takes every file once as long as somebody goes on from the
    position that he has kept.
    """

    @property
    def folder(self) -> str:
        """Where samples come from, for people."""
        ...

    @property
    def position(self) -> Position:
        """What was taken until now."""
        ...

    def seek(self, position: Position) -> None:
        """Go on after what was taken at a position; raises ValueError where it is none."""
        ...

    def poll(self, *, most: int, now: float) -> list[Arrival]:
        """Take what has arrived, in order; never waits.

        Args:
            most: files at most.
            now: seconds since 1970.

        Raises:
            StorageError: the source can't be asked for now; nothing was taken.
        """
        ...

    @property
    def took_all(self) -> bool:
        """Whether the last poll has taken what was left of all that had arrived by then."""
        ...

    def lag(self) -> Lag:
        """Return what waits, as of the last poll."""
        ...

    def is_in_cut(self, position: Position, oldest: str | None) -> None:
        """Hear how far a checkpoint is that was just written; never waits.

        Args:
            position: of the stream there.
            oldest: the first file of which rows were taken by then and are not trained there; None:
                all that was taken before the position is.
        """
        ...

    def remove(self, path: str) -> None:
        """Let go of a file that no checkpoint needs any more, where the stream is to do that.

        Raises:
            OSError: it can't be done now.
        """
        ...

    def close(self) -> None:
        """Nothing is asked of it any more."""
        ...
