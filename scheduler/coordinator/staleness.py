"""Histograms of staleness: exact counts by step, so that percentiles need no samples."""

from dataclasses import dataclass, field


@dataclass(slots=True)
class Histogram:
    """Counts of whole numbers of steps."""

    counts: dict[int, int] = field(default_factory=dict)

    def add(self, value: int) -> None:
        self.counts[value] = self.counts.get(value, 0) + 1

    def summary(self) -> dict[str, float]:
        """Return mean, p50, p99 and max, in steps; all 0 where nothing was counted."""
        total = sum(self.counts.values())
        if total == 0:
            return {"mean": 0.0, "p50": 0, "p99": 0, "max": 0}
        mean = sum(value * count for value, count in self.counts.items()) / total
        return {
            "mean": mean,
            "p50": self._percentile(total, 0.50),
            "p99": self._percentile(total, 0.99),
            "max": max(self.counts),
        }

    def _percentile(self, total: int, fraction: float) -> int:
        seen = 0
        for value in sorted(self.counts):
            seen += self.counts[value]
            if seen >= fraction * total:
                return value
        return max(self.counts)
