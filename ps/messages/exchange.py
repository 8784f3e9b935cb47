"""All that may be said to a shard or a publisher: requests, replies, refusals, hints."""

from dataclasses import dataclass
from typing import Literal

from ps.messages.following import AwaitNewest, FetchPiece, Newest, Piece
from ps.messages.pull_push import Contribution, Prefetch, Pull, PullReply, PushReply
from ps.messages.records import Apply, ApplyReply, DenseNorm, DenseNormReply, Freeze, FreezeReply

RefusalReason = Literal[
    "fenced",  # the shard is not initialised
    "unheard",  # the shard has not heard its coordinator for too long: it may, later on
    "dead",  # the shard failed in the middle of a step
    "epoch",  # the message is of another recovery epoch
    "routing",  # keys were sliced by another routing table
    "superseded",  # the batch was applied, discarded, or is below the low-water mark
    "step",  # a record or a pull is ahead of or behind what the shard can answer
    "missing",  # a contribution is named that the shard does not hold
    "full",  # the gradient buffer is at its limit
    "malformed",  # sizes or values do not fit the job
    "gone",  # a checkpoint, or a file of it, that is not there or can't be read
]


@dataclass(slots=True)
class Refusal:
    """A message had no effect. `reason` is for programs, `text` for people."""

    request_id: int
    reason: RefusalReason
    text: str


Request = Pull | Contribution | Apply | DenseNorm | Freeze
Reply = PullReply | PushReply | ApplyReply | DenseNormReply | FreezeReply | Refusal
Following = AwaitNewest | Newest | FetchPiece | Piece
Message = Request | Reply | Prefetch | Following
