"""What has happened in a job, told once: who asks again says what it has been told already."""

import sys
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Told:
    """How many things of each kind somebody has been told of, by one coordinator.

    Another one, of another recovery epoch, tells all that it knows.
    """

    evaluations: int = 0
    shifts: int = 0
    cuts: int = 0
    give_up: int = 0
    warnings: int = 0
    silent_shards: int = 0
    windows: int = 0
    server_orders: int = 0
    recovery_epoch: int | None = None

    @property
    def whole_shifts(self) -> int:
        """Those that need not be told again; the last one's next step may have come since."""
        return max(0, self.shifts - 1)

    def known_in(self, recovery_epoch: int) -> "Told":
        """Return what of it counts for the coordinator of an epoch."""
        return self if self.recovery_epoch in (None, recovery_epoch) else NOTHING


NOTHING = Told()
# Of who wants to know how things are now, and nothing of before.
EVERYTHING = Told(*[sys.maxsize] * 8)
