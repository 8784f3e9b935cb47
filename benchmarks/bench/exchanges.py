"""What a worker and a shard exchange for one batch, as arrays and as messages."""

from dataclasses import dataclass, replace
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from ps.messages.exchange import Message
from ps.messages.pull_push import ANY_STEP, Contribution, Pull, PullReply
from ps.messages.wire import array_names

AnyMessage = TypeVar("AnyMessage", bound=Message)


@dataclass(frozen=True, slots=True)
class Exchange:
    """The arrays of a pull, its reply and a push, all tables of one shard one after another.

    Args:
        batch: samples.
        table_sizes: keys of each table.
        keys, counts, admitted: int64[n], uint32[n], uint8[n].
        values, gradients: float32[n x dim], the pulled vectors and what is pushed for them.
        dense, dense_gradients: float32, of all dense parameters.
    """

    batch: int
    table_sizes: tuple[int, ...]
    keys: npt.NDArray[np.int64]
    counts: npt.NDArray[np.uint32]
    admitted: npt.NDArray[np.uint8]
    values: npt.NDArray[np.float32]
    gradients: npt.NDArray[np.float32]
    dense: npt.NDArray[np.float32]
    dense_gradients: npt.NDArray[np.float32]

    def pull(self) -> Pull:
        """Return the request for its rows and the dense parameters."""
        return Pull(1, 0, 0, ANY_STEP, self.table_sizes, self.keys, self.counts, dense=True)

    def reply(self) -> PullReply:
        """Return the answer to the pull."""
        return PullReply(1, 0, self.values, self.dense, self.admitted)

    def contribution(self) -> Contribution:
        """Return what is pushed."""
        return Contribution(
            request_id=1,
            recovery_epoch=0,
            mode_epoch=0,
            routing_version=0,
            batch_id=0,
            attempt=0,
            samples=self.batch,
            pull_step=0,
            table_sizes=self.table_sizes,
            keys=self.keys,
            counts=self.counts,
            gradients=self.gradients,
            dense=self.dense_gradients,
            admitted=self.admitted,
        )

    @property
    def bytes_of_messages(self) -> tuple[int, int, int]:
        """Bytes of the arrays of the pull, of its reply and of the push."""
        messages = (self.pull(), self.reply(), self.contribution())
        pull, reply, push = (array_bytes(message) for message in messages)
        return pull, reply, push

    def resized(self, *, keys: int | None, dense: int | None) -> "Exchange":
        """Return one of other sizes, whose contents are cut off or repeated; None keeps a size."""
        n = self.keys.size if keys is None else keys
        dim = self.values.size // max(1, self.keys.size)
        num_dense = self.dense.size if dense is None else dense
        return replace(
            self,
            table_sizes=self.table_sizes if keys is None else (n,),
            keys=np.resize(self.keys, n),
            counts=np.resize(self.counts, n),
            admitted=np.resize(self.admitted, n),
            values=np.resize(self.values, n * dim),
            gradients=np.resize(self.gradients, n * dim),
            dense=np.resize(self.dense, num_dense),
            dense_gradients=np.resize(self.dense_gradients, num_dense),
        )


_NO_KEYS, _NO_COUNTS = np.empty(0, np.int64), np.empty(0, np.uint32)
_NO_ROWS, _NO_BITS = np.empty(0, np.float32), np.empty(0, np.uint8)
EMPTY_PULL = Pull(0, 0, 0, ANY_STEP, (), _NO_KEYS, _NO_COUNTS, dense=False)
EMPTY_REPLY = PullReply(0, 0, _NO_ROWS, _NO_ROWS, _NO_BITS)


def array_bytes(message: Message) -> int:
    """Return the bytes of a message's arrays."""
    return sum(getattr(message, name).nbytes for name in array_names(type(message)))


def produce(source: Message, target: Message) -> None:
    """Copy all arrays of a message: what stands for gathering rows or computing gradients."""
    for name in array_names(type(source)):
        np.copyto(getattr(target, name), getattr(source, name))


def blank(message: AnyMessage) -> AnyMessage:
    """Return a message of the same sizes with arrays of its own."""
    names = array_names(type(message))
    return replace(message, **{name: np.zeros_like(getattr(message, name)) for name in names})


def read(message: Message) -> int:
    """Read a byte of every cache line of a message's arrays; return the sum.

    Who receives pays here for bytes that are still in the other core's cache.
    """
    return read_arrays(*(getattr(message, name) for name in array_names(type(message))))


def read_arrays(*arrays: npt.NDArray[Any]) -> int:
    """As `read`, of arrays."""
    return sum(int(array.view(np.uint8)[::64].sum()) for array in arrays)
