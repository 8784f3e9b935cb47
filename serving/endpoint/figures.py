"""What Prometheus is told of a server."""

import threading
import time
from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from itertools import accumulate

from prometheus_client import CollectorRegistry, Gauge, generate_latest
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)

from serving.rows.paging import RowCacheFigures
from serving.versions import Version

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_SECONDS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0)
_ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 4096, 16384)


class Figures:
    """Counts and times of one server.

    Args:
        version: returns the version that is served.
        refused: returns how many newer checkpoints could not be used.
        row_cache: returns where vectors were that were asked for; None: all are mapped.
    """

    def __init__(
        self,
        version: Callable[[], Version],
        refused: Callable[[], int],
        row_cache: Callable[[], RowCacheFigures | None] = lambda: None,
    ) -> None:
        registry = self._registry = CollectorRegistry()
        self._requests = _Requests()
        registry.register(self._requests)
        gauge = self._gauge
        gauge("synchromesh_serving_step", "Global step of the served version").set_function(
            lambda: version().step
        )
        gauge(
            "synchromesh_serving_age_seconds", "Since the job was at the served step"
        ).set_function(lambda: version().age(time.time()))
        gauge(
            "synchromesh_serving_refused_checkpoints", "Newer checkpoints that can't be used"
        ).set_function(refused)
        registry.register(_RowCache(row_cache))
        self.outstanding = gauge("synchromesh_serving_outstanding", "Requests that are computed")

    def _gauge(self, name: str, text: str) -> Gauge:
        return Gauge(name, text, registry=self._registry)

    def count(self, status: int, *, seconds: float, rows: int) -> None:
        """Count one request; of predictions with their samples."""
        self._requests.count(status, seconds, rows)

    def page(self) -> bytes:
        """Return all figures as Prometheus reads them."""
        return bytes(generate_latest(self._registry))


class _Counted:
    """How many values there were up to each of some bounds, and what all add up to."""

    def __init__(self, bounds: Sequence[float]) -> None:
        self._bounds = bounds
        self._counts = [0] * (len(bounds) + 1)
        self._sum = 0.0

    def add(self, value: float) -> None:
        self._counts[bisect_left(self._bounds, value)] += 1
        self._sum += value

    def family(self, name: str, text: str) -> HistogramMetricFamily:
        names = [*(str(float(bound)) for bound in self._bounds), "+Inf"]
        buckets = list(zip(names, accumulate(self._counts), strict=True))
        return HistogramMetricFamily(name, text, buckets=buckets, sum_value=self._sum)


class _Requests:
    """Counts of requests; Prometheus' own counters take four times as long for each."""

    def __init__(self) -> None:
        self._lock = threading.Lock()  # streams of Arrow Flight have threads of their own
        self._by_status: dict[int, int] = {}
        self._seconds, self._rows = _Counted(_SECONDS), _Counted(_ROWS)

    def count(self, status: int, seconds: float, rows: int) -> None:
        with self._lock:
            self._by_status[status] = self._by_status.get(status, 0) + 1
            if rows:
                self._seconds.add(seconds)
                self._rows.add(rows)

    def collect(self) -> Iterator[Metric]:
        name = "synchromesh_serving_request"
        with self._lock:
            requests = CounterMetricFamily(f"{name}s", "Requests by status", labels=["status"])
            for status, count in self._by_status.items():
                requests.add_metric([str(status)], count)
            text = "From a request's head to its answer, of predictions"
            seconds = self._seconds.family(f"{name}_seconds", text)
            samples = self._rows.family(f"{name}_samples", "Samples of a request")
        yield from (requests, seconds, samples)


class _RowCache:
    """What Prometheus is told of vectors that are not all in memory; else nothing."""

    def __init__(self, figures: Callable[[], RowCacheFigures | None]) -> None:
        self._figures = figures

    def collect(self) -> Iterator[Metric]:
        figures = self._figures()
        if figures is None:
            return
        name = "synchromesh_serving_row"
        yield CounterMetricFamily(f"{name}_hits", "Rows that were in memory", figures.hits)
        yield CounterMetricFamily(f"{name}_reads", "Rows read from the disk", figures.reads)
        yield GaugeMetricFamily(
            f"{name}_memory_bytes", "Of rows in memory, at most", figures.memory_bytes
        )
