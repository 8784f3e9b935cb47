"""Histograms of staleness: exact counts by step, so that percentiles need no samples."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Summary:
    """Of a histogram, in steps; all 0 where nothing was counted."""

    mean: float = 0.0
    p50: int = 0
    p99: int = 0
    max: int = 0


@dataclass(slots=True)
class Histogram:
    """Counts of whole numbers of steps."""

    counts: dict[int, int] = field(default_factory=dict)

    def add(self, value: int) -> None:
        self.counts[value] = self.counts.get(value, 0) + 1

    def add_all(self, values: Sequence[int]) -> None:
        """Count many, most of which are alike."""
        if len(values) == 1:
            return self.add(values[0])
        for value, count in Counter(values).items():
            self.counts[value] = self.counts.get(value, 0) + count

    def summary(self) -> Summary:
        total = sum(self.counts.values())
        if total == 0:
            return Summary()
        mean = sum(value * count for value, count in self.counts.items()) / total
        return Summary(
            mean=mean,
            p50=self._percentile(total, 0.50),
            p99=self._percentile(total, 0.99),
            max=max(self.counts),
        )

    def copy(self) -> "Histogram":
        return Histogram(dict(self.counts))

    def state(self) -> tuple[tuple[int, int], ...]:
        """Return (value, count) of each value."""
        return tuple(sorted(self.counts.items()))

    def _percentile(self, total: int, fraction: float) -> int:
        seen = 0
        for value in sorted(self.counts):
            seen += self.counts[value]
            if seen >= fraction * total:
                return value
        return max(self.counts)
