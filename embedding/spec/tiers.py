"""Where the values of a table's rows are, where memory is not to hold all of them."""

from dataclasses import dataclass
from numbers import Integral
from typing import Literal, get_args

from embedding.spec.ranges import require, require_one_of

Policy = Literal["frequency", "recency"]

MIN_MEMORY_BYTES = 1 << 16


@dataclass(frozen=True, slots=True, kw_only=True)
class Tiers:
    """Vectors and slots beyond so many bytes of memory are in a file.

    It says where a row is, never what it holds: a table has the same bits with it and without.

    Args:
        memory_bytes: of vectors and slots in memory, on each server, with the buffers that it takes
            to read and write the others.
        path: a folder on a fast disk, on each server's node, that is there. The file in it has no
            name, so it is gone when its process ends, however that ends.
        policy: which rows leave memory first: those that were updated the fewest times lately, or
            the longest ago.
        prefetch: whether rows are read from the file as soon as it is known that they will be
            pulled.
    """

    memory_bytes: int
    path: str
    policy: Policy = "frequency"
    prefetch: bool = True

    def __post_init__(self) -> None:
        require(
            isinstance(self.memory_bytes, Integral),
            f"memory_bytes must be a whole number of bytes, got {self.memory_bytes!r}",
        )
        require(
            self.memory_bytes >= MIN_MEMORY_BYTES,
            f"memory_bytes must be >= {MIN_MEMORY_BYTES}, got {self.memory_bytes}",
        )
        require(bool(self.path), "path must name a folder, got ''")
        require_one_of("policy", self.policy, get_args(Policy))
