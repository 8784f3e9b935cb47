"""What a ledger counts, and what goes on from one to the next."""

from dataclasses import dataclass, field, fields, replace

from runtime.intervals import check_intervals


@dataclass(slots=True)
class Samples:
    """Where the samples of resolved batches went."""

    applied: int = 0
    dropped: int = 0
    skipped: int = 0
    skipped_by_reason: dict[str, int] = field(default_factory=dict)

    @property
    def total(self) -> int:
        return self.applied + self.dropped + self.skipped

    def copy(self) -> "Samples":
        return replace(self, skipped_by_reason=dict(self.skipped_by_reason))


@dataclass(slots=True)
class Tallies:
    """How many batches went through each transition."""

    leased: int = 0
    done: int = 0
    applied: int = 0
    dropped: int = 0
    skipped: int = 0
    reissued: int = 0
    superseded: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class LedgerState:
    """What goes on from one ledger to the next: what has become of the batches that are resolved.

    Args:
        low_water: every batch id below it is resolved.
        resolved: (first, last + 1) of the resolved batches above it.
        limit: no batch is given out from this id on; None: the plan's.
        samples, batches: the counts.
    """

    low_water: int = 0
    resolved: tuple[tuple[int, int], ...] = ()
    limit: int | None = None
    samples: Samples = field(default_factory=Samples)
    batches: Tallies = field(default_factory=Tallies)

    def __post_init__(self) -> None:
        """Raise ValueError where it is the state of no ledger."""
        check_intervals(self.resolved, above=self.low_water)
        if self.limit is not None and self.limit < self.end:
            raise ValueError(f"batches below {self.end} are resolved, the limit is {self.limit}")
        samples, tallies = self.samples, self.batches
        counts = [samples.applied, samples.dropped, *samples.skipped_by_reason.values()]
        counts += [getattr(tallies, each.name) for each in fields(tallies)]
        if min(self.low_water, *counts) < 0:
            raise ValueError("a count is negative")
        if sum(samples.skipped_by_reason.values()) != samples.skipped:
            raise ValueError(f"{samples.skipped} samples are skipped, by reason others")
        ended = tallies.applied + tallies.dropped + tallies.skipped
        if ended != self.num_resolved:
            raise ValueError(f"{self.num_resolved} batches are resolved, {ended} counted")

    @property
    def num_resolved(self) -> int:
        return self.low_water + sum(stop - first for first, stop in self.resolved)

    @property
    def end(self) -> int:
        """The first batch id that is above all resolved ones."""
        return self.resolved[-1][1] if self.resolved else self.low_water
