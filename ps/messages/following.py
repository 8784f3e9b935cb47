"""What a follower of a job says and hears: which checkpoint is the newest, and pieces of files.

A follower asks for one thing after another, so nothing is kept for one that is slow or away.
"""

from dataclasses import dataclass

from ps.messages.pull_push import Bytes

# Of a file in one answer.
MAX_PIECE_BYTES = 1 << 20


@dataclass(slots=True)
class AwaitNewest:
    """Tell the name of the newest checkpoint, as soon as it is another one than `known`.

    Args:
        known: the name that the follower has; empty: none.
    """

    request_id: int
    known: str


@dataclass(slots=True)
class Newest:
    """The newest checkpoint, the one that is known where no other came for a while.

    Args:
        name: of its folder; empty: there is none yet.
    """

    request_id: int
    name: str


@dataclass(slots=True)
class FetchPiece:
    """Read a piece of a file of a checkpoint.

    Args:
        checkpoint: name of its folder.
        path: of the file in it, with `/`.
        offset: from which byte on.
    """

    request_id: int
    checkpoint: str
    path: str
    offset: int


@dataclass(slots=True)
class Piece:
    """A piece of a file.

    Args:
        size: bytes of the whole file.
        data: uint8[at most MAX_PIECE_BYTES], shorter only at the end of the file.
    """

    request_id: int
    size: int
    data: Bytes
