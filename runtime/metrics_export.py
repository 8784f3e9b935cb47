"""Figures of a process as metrics with names and tags, for whoever collects them."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, Literal

PREFIX = "synchromesh_"


@dataclass(frozen=True, slots=True)
class Figure:
    """One figure at one time.

    Args:
        name: without the prefix; of Prometheus' alphabet.
        value: a counter's is the sum since its process began.
        role, index: whose figure it is: `worker` 3, `server` 0, `coordinator` 0.
        kind: a `counter` never falls, but for processes that begin anew.
        labels: further tags, the same names for every figure of this name.
    """

    name: str
    value: float
    role: str
    index: int
    kind: Literal["gauge", "counter"] = "gauge"
    labels: dict[str, str] = field(default_factory=dict)


class MetricsExport:
    """Sets gauges and raises counters; makes each metric at its first figure.

    Args:
        run: tag of all of them.
        make_gauge, make_counter: called with name and tag_keys, as `ray.util.metrics` has them.
    """

    def __init__(
        self, run: str, make_gauge: Callable[..., Any], make_counter: Callable[..., Any]
    ) -> None:
        self._run = run
        self._makers = {"gauge": make_gauge, "counter": make_counter}
        self._metrics: dict[str, Any] = {}
        self._sums: dict[tuple[str, ...], float] = {}

    def publish(self, figures: Iterable[Figure]) -> None:
        """Export the figures as they are now."""
        for figure in figures:
            tags = {"run": self._run, "role": figure.role, "index": str(figure.index)}
            tags |= figure.labels
            metric = self._metrics.get(figure.name)
            if metric is None:
                make = self._makers[figure.kind]
                metric = make(PREFIX + figure.name, tag_keys=tuple(tags))
                self._metrics[figure.name] = metric
            if figure.kind == "gauge":
                metric.set(figure.value, tags=tags)
            else:
                self._raise(metric, (figure.name, *tags.values()), figure.value, tags)

    def _raise(self, metric: Any, key: tuple[str, ...], value: float, tags: dict[str, str]) -> None:
        before = self._sums.get(key, 0.0)
        self._sums[key] = value
        # A sum that is below the one before is that of a new process.
        increase = value - before if value >= before else value
        if increase > 0:
            metric.inc(increase, tags=tags)
