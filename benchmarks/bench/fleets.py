"""The coordinator under simulated fleets: its time per report, where it saturates, what helps.

`CASES` are what is simulated, `measure` simulates one, and `section` writes what came of them.
"""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any

from simulation.fleet import Fleet, FleetSpec

Row = dict[str, Any]

BATCH_SECONDS = 0.05
# CPU of receiving a report from a socket and sending its grant, with a thread for each worker.
CALL_SECONDS = 0.00008
SIZES = (16, 64, 256, 1024, 4096)
MODES = ("sync", "gba", "async")
BATCHES_AT_LEAST = 2_000


def _case(mode: str, workers: int, call: float = 0.0, report: float = 0.0) -> dict[str, Any]:
    # Enough for two pauses: one that goes on, and one until what was asked for is there.
    depth = 2 + 2 * math.ceil(report / BATCH_SECONDS)
    return {
        "mode": mode,
        "workers": workers,
        "depth": depth,
        "report_seconds": report,
        "call_seconds": call,
    }


ALONE = [_case(mode, workers) for workers in SIZES for mode in MODES]
CALLED = [_case("gba", workers, CALL_SECONDS) for workers in (64, 128, 256, 512, 1024)]
SELDOM = [
    *(_case(mode, 1024, CALL_SECONDS, r) for mode in ("gba", "sync") for r in (0.1, 0.25, 0.5)),
]
CASES = [*ALONE, *CALLED, *SELDOM]


def measure(case: dict[str, Any]) -> Row:
    """Simulate a fleet with M = W and return its figures; CPU seconds are of this machine."""
    began = time.perf_counter()
    fleet = Fleet(FleetSpec(group_size=case["workers"], batch_seconds=BATCH_SECONDS, **case))
    # What all hold at first was given out at once; they settle once that is through.
    fleet.train(case["workers"] * max(2, case["depth"]))
    fleet.train(max(BATCHES_AT_LEAST, case["workers"] * max(2, case["depth"])))
    costs, seconds = fleet.costs, fleet.now - fleet.costs.began
    reports = sorted(costs.reports)
    return {
        "case": case,
        "us_per_report": 1e6 * sum(reports) / len(reports),
        "us_per_report_p50": 1e6 * reports[len(reports) // 2],
        "us_per_report_p99": 1e6 * reports[len(reports) * 99 // 100],
        "us_per_batch": 1e6 * costs.cpu / costs.batches,
        "batches_per_report": costs.batches / len(reports),
        "batches_per_second": costs.batches / seconds,
        "batches_per_second_without_waiting": fleet.batches_at_full_rate,
        "steps_per_second": costs.steps / seconds,
        "busy": costs.busy / seconds,
        "data_staleness": asdict(fleet.coordinator.data_staleness.summary()),
        "parameter_staleness": asdict(fleet.coordinator.parameter_staleness.summary()),
        "wall_seconds": time.perf_counter() - began,
    }


def run(cases: Sequence[dict[str, Any]] = CASES) -> list[Row]:
    """Simulate fleets, one after the other."""
    return [measure(case) for case in cases]


def limit(row: Row) -> float:
    """Batches per second at which the coordinator's time is used up, calls included."""
    call = 1e6 * row["case"]["call_seconds"] / row["batches_per_report"]
    return float(1e6 / (row["us_per_batch"] + call))


def section(rows: Sequence[Row]) -> list[str]:
    """Return the lines of a page: three tables and what to read in them."""
    alone = [row for row in rows if row["case"] in ALONE]
    called = [row for row in rows if row["case"] in CALLED]
    seldom = [row for row in rows if row["case"] in SELDOM]
    return [
        *QUESTION, "",
        *_table([WORKERS, MODE, *COSTS, *RATES], alone), "",
        *CALLS, "",
        *_table([WORKERS, LIMIT, *RATES], called), "",
        *REPORTS, "",
        *_table([WORKERS, MODE, REPORT, PER_REPORT, COSTS[2], LIMIT, *RATES], seldom), "",
        *_verdict(alone, called, seldom),
    ]  # fmt: skip


def _verdict(alone: Sequence[Row], called: Sequence[Row], seldom: Sequence[Row]) -> list[str]:
    """Say what one coordinator serves, and what a larger fleet would take."""
    gba = [row for row in alone if row["case"]["mode"] == "gba"]
    if not (gba and called and seldom):
        return []
    state_machine, calls = max(map(limit, gba)), max(map(limit, called))
    wanted = SIZES[-1] / BATCH_SECONDS
    least = min(row["us_per_batch"] for row in seldom)
    return [
        f"One coordinator serves up to {calls:,.0f} batches/s with a report for each, that is"
        f" {calls * BATCH_SECONDS:,.0f} workers with batches of {1000 * BATCH_SECONDS:g} ms, and"
        f" {state_machine:,.0f} without what sockets cost. {SIZES[-1]:,} workers of this kind make"
        f" {wanted:,.0f}. Carrying several ends in a report takes that cost away, but what is"
        f" left, {least:.0f} µs a batch and more, is {wanted * least / 1e6:.1f} cores of a process"
        " that has one; and it costs staleness, and in `sync` time, as ends wait for their report."
        " So such a fleet needs larger batches (a worker of many cores is one worker), or relays,"
        " which gather the reports of their workers for a few milliseconds, so that messages and"
        " what is done once for each are shared by many batches: [what they bring]"
        "(performance.md#what-the-coordinator-serves).",
        "",
    ]


Column = tuple[str, Callable[[Row], str]]


def _table(columns: Sequence[Column], rows: Sequence[Row]) -> list[str]:
    lines = ["| " + " | ".join(name for name, _ in columns) + " |", "|---" * len(columns) + "|"]
    return lines + ["| " + " | ".join(text(row) for _, text in columns) + " |" for row in rows]


def _late(row: Row, kind: str) -> str:
    summary = row[f"{kind}_staleness"]
    return f"{summary['mean']:.1f} ({summary['p99']:.0f}, {summary['max']:.0f})"


WORKERS: Column = ("workers = M", lambda row: f"{row['case']['workers']:,}")
MODE: Column = ("mode", lambda row: str(row["case"]["mode"]))
REPORT: Column = ("s between reports", lambda row: f"{row['case']['report_seconds']:g}")
PER_REPORT: Column = ("batches per report", lambda row: f"{row['batches_per_report']:.1f}")
LIMIT: Column = ("batches/s it could serve", lambda row: f"{limit(row):,.0f}")
COSTS: list[Column] = [
    ("µs per report", lambda row: f"{row['us_per_report']:.0f}"),
    ("p50, p99", lambda row: f"{row['us_per_report_p50']:.0f}, {row['us_per_report_p99']:.0f}"),
    ("µs per batch", lambda row: f"{row['us_per_batch']:.0f}"),
]
RATES: list[Column] = [
    ("batches/s", lambda row: f"{row['batches_per_second']:,.0f}"),
    ("of", lambda row: f"{row['batches_per_second_without_waiting']:,.0f}"),
    ("steps/s", lambda row: f"{row['steps_per_second']:,.1f}"),
    ("busy", lambda row: f"{row['busy']:.0%}"),
    ("data stale, mean (p99, max)", lambda row: _late(row, "data")),
    ("parameters stale", lambda row: _late(row, "parameter")),
]
QUESTION = [
    "The real coordinator and workers' real sessions on a virtual clock. Batches take 50 ms,"
    " log-normal with a deviation of 15 %; one worker of a hundred, one at least, is 4 × slower."
    " There is no staleness bound, so that all staleness is seen. The coordinator serves one report"
    " after the other, and each takes it the CPU time that it really takes, on this machine. `of`"
    " is what workers would do that never wait; where it is `busy` for 100 %, it is saturated."
    " First the state machine alone:",
]
CALLS = [
    f"With {1e6 * CALL_SECONDS:g} µs of CPU more for every report, which its way from a socket and"
    " back took with a thread for each worker, and a report for every batch, as workers do it:",
]
REPORTS = [
    "Were workers to leave some time between two reports, and to hold batches for twice as long,"
    " a report would carry several. In `sync` every step waits for the next report of the slowest:",
]
