"""Which copies of the shards a job has: a primary of each, and standbys."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Copies:
    """Primaries and standbys, by number.

    A shard's primary has the number of the shard, its standby one that is higher by the number of
    shards. Contributions and records go to every copy; who reads asks the primaries.

    Args:
        num_shards: how many shards there are.
        standbys: the shards that have a standby.

    Raises:
        ValueError: there is no such shard, or it is named twice.
    """

    num_shards: int
    standbys: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        wrong = [shard for shard in self.standbys if not 0 <= shard < self.num_shards]
        if wrong or len(set(self.standbys)) < len(self.standbys):
            raise ValueError(f"{self.num_shards} shards can't have standbys {self.standbys}")

    @property
    def primaries(self) -> range:
        """The numbers of the primaries."""
        return range(self.num_shards)

    @property
    def numbers(self) -> tuple[int, ...]:
        """The numbers of all copies, primaries first."""
        return (*self.primaries, *(self.standby_of(shard) for shard in self.standbys))

    def standby_of(self, shard: int) -> int:
        """Return the number of a shard's standby."""
        return self.num_shards + shard

    def shard_of(self, number: int) -> int:
        """Return which shard a copy is of."""
        return number % self.num_shards

    def is_standby(self, number: int) -> bool:
        return number >= self.num_shards

    def name_of(self, number: int) -> str:
        """Return how a person is told of a copy."""
        name = f"shard {self.shard_of(number)}"
        return f"the standby of {name}" if self.is_standby(number) else name
