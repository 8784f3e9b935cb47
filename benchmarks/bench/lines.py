"""Timing, and the lines that a benchmark prints: one JSON object for each figure."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from statistics import median
from typing import Any

from runtime.strict_json import json_text

MEGA, GIGA = 1e6, 1e9


@dataclass(slots=True)
class Times:
    """Seconds that the repeats of one run took: by the wall, and of this thread's CPU."""

    wall: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)

    def add(self, run: Callable[[], object]) -> None:
        """Run once and note how long it took."""
        cpu, wall = time.thread_time(), time.perf_counter()
        run()
        self.wall.append(time.perf_counter() - wall)
        self.cpu.append(time.thread_time() - cpu)

    @property
    def cpu_share(self) -> float:
        """CPU time over wall time of the median run; below 1 other processes took the core."""
        return median(c / w for c, w in zip(self.cpu, self.wall, strict=True))


def alternate(repeats: int, *runs: Callable[[], object]) -> tuple[Times, ...]:
    """Time runs in turns, so that all of them meet the same state of the machine.

    Each runs once before, so that compiling and first touches are not counted.
    """
    for run in runs:
        run()
    times = tuple(Times() for _ in runs)
    for _ in range(repeats):
        for one, run in zip(times, runs, strict=True):
            one.add(run)
    return times


def emit(name: str, value: float | None, unit: str, **fields: Any) -> None:
    """Print one line; floats are cut to four digits that mean something."""
    line = {"name": name, "value": value, "unit": unit, **fields}
    print(json_text({key: _short(entry) for key, entry in line.items()}), flush=True)


def _short(entry: Any) -> Any:
    if isinstance(entry, dict):
        return {key: _short(value) for key, value in entry.items()}
    return float(f"{entry:.4g}") if isinstance(entry, float) else entry


def emit_rate(
    name: str,
    work: float,
    times: Times,
    unit: str,
    *,
    limit: Times | None = None,
    limit_name: str | None = None,
    target: float | None = None,
    **fields: Any,
) -> None:
    """Print a rate: work over the median time, beside what the limit does in its time.

    Args:
        work: what one repeat does, in units: million keys, gigabytes.
        limit: times of the same work done at the machine's limit.
        limit_name: name of the line that says what the limit is.
        target: what the ratio should reach, without a limit the value.
    """
    value = work / median(times.wall)
    bound = None if limit is None else work / median(limit.wall)
    emit(
        name,
        value,
        unit,
        limit=bound,
        ratio=None if bound is None else value / bound,
        target=target,
        repeats=len(times.wall),
        min=work / max(times.wall),
        max=work / min(times.wall),
        limit_name=limit_name,
        cpu_share=times.cpu_share,
        cpu_ratio=None if limit is None else median(limit.cpu) / median(times.cpu),
        **fields,
    )
