"""What Prometheus is told of a server."""

import time
from collections.abc import Callable, Iterator

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    generate_latest,
)
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

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
        self._requests = Counter(
            "synchromesh_serving_requests", "Requests by status", ["status"], registry=registry
        )
        self._by_status: dict[int, Counter] = {}
        self._seconds = Histogram(
            "synchromesh_serving_request_seconds",
            "From a request's head to its answer, of predictions",
            registry=registry,
            buckets=_SECONDS,
        )
        self._rows = Histogram(
            "synchromesh_serving_request_samples",
            "Samples of a request",
            registry=registry,
            buckets=_ROWS,
        )
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
        by_status = self._by_status.get(status)
        if by_status is None:
            by_status = self._by_status[status] = self._requests.labels(str(status))
        by_status.inc()
        if rows:
            self._seconds.observe(seconds)
            self._rows.observe(rows)

    def page(self) -> bytes:
        """Return all figures as Prometheus reads them."""
        return bytes(generate_latest(self._registry))


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
