"""E4: how many steps may a batch come late?"""

from dataclasses import replace

from bench.runs import Experiment, Results, Row, Run, Scale
from experiments.figures import auc, dropped_percent, over, rate, signed, staleness, table
from experiments.settings import begun
from experiments.stragglers import straggling
from scheduler.coordinator.modes.rules import ModeOptions
from scheduler.job.config import ClusterConfig

WORKERS, M = 4, 4
PREFETCH = ClusterConfig().prefetch_batches
BOUNDS = (0, 1, 2, 4, 6, 9, 14, 25)
STRAGGLERS = (4, 8)
DEFAULT = ModeOptions().staleness_bound


def expected_staleness(straggler: float) -> float:
    """Return (P + 1) (r - 1) W / M of docs/modes.md for a worker so many times slower than others.

    r is against the average of all workers, of which it is one.
    """
    r = (straggler * (WORKERS - 1) + 1) / WORKERS
    return (PREFETCH + 1) * (r - 1) * WORKERS / M


def bounded(scale: Scale, straggler: float, bound: int) -> Run:
    """Return the run of gba with a staleness bound, where one worker is slow."""
    run = straggling(scale, workers=WORKERS, m=M, mode="gba", straggler=straggler, seed=1)
    return replace(
        run,
        experiment="E4",
        case={"straggler": straggler, "bound": bound},
        overrides=(*run.overrides, f"training.staleness_bound={bound}"),
    )


def plan(scale: Scale, results: Results) -> list[Run]:
    # Straggling or not, sync gives the same bits; so one run of E2 is what all are compared with.
    base = straggling(scale, workers=WORKERS, m=M, mode="sync", straggler=1, seed=1)
    return [
        begun(scale, 1),
        base,
        *(bounded(scale, s, bound) for s in STRAGGLERS for bound in BOUNDS),
    ]


def section(rows: list[Row]) -> list[str]:
    base = next((row for row in rows if row["experiment"] == "E2"), None)
    bounded_rows = [row for row in rows if "bound" in row["case"]]
    head = ["straggler", "bound", "test AUC", "to sync", "dropped", "samples/s trained",
            "samples/s given out", "stale data, mean (p99, max)"]  # fmt: skip
    body = [
        [
            f"{row['case']['straggler']:g} ×",
            str(row["case"]["bound"]),
            f"{auc(row):.4f}",
            signed(auc(row) - auc(base)) if base is not None else "",
            f"{dropped_percent(row):.1f} %",
            f"{rate(row):,.0f}",
            f"{row['samples'] / row['train_seconds']:,.0f}",
            f"{staleness('data', 'mean')(row):.1f} ({staleness('data', 'p99')(row):.0f},"
            f" {staleness('data', 'max')(row):.0f})",
        ]
        for row in bounded_rows
    ]
    text = [line for s in STRAGGLERS for line in _verdict(s, bounded_rows)]
    return [*QUESTION, "", *table(head, body), "", *text]


def _verdict(straggler: float, rows: list[Row]) -> list[str]:
    of_it = [row for row in rows if row["case"]["straggler"] == straggler]
    if not of_it:
        return []
    expected = expected_staleness(straggler)
    seen = over(of_it, staleness("data", "max"))
    kept = [row["case"]["bound"] for row in of_it if dropped_percent(row) < 0.5]
    text = (
        f"{straggler:g} × slower than the others: by the rule of docs/modes.md the slow worker's"
        f" batches come {expected:.1f} steps late; the latest of each run were"
        f" {min(seen.values):.0f} to {max(seen.values):.0f}."
    )
    if kept:
        text += f" The smallest bound that dropped less than 0.5 % was {min(kept)}."
    else:
        text += " Every bound dropped 0.5 % or more."
    best = max(of_it, key=auc)
    worst = min(of_it, key=auc)
    text += (
        f" AUC was best with a bound of {best['case']['bound']} ({auc(best):.4f}) and worst with"
        f" {worst['case']['bound']} ({auc(worst):.4f})"
    )
    default = [row for row in of_it if row["case"]["bound"] == DEFAULT]
    if default:
        text += (
            f"; the default of {DEFAULT} gave {auc(default[0]):.4f} and dropped"
            f" {dropped_percent(default[0]):.1f} %"
        )
    return [f"{text}.", ""]


QUESTION = [
    f"`gba` with W = {WORKERS}, M = {M} and one slow worker as in E2, with staleness bounds from 0"
    f" to {max(BOUNDS)}, one seed: which bound is good, and does the rule of"
    " [docs/modes.md](modes.md#the-staleness-bound) tell? AUC is compared with `sync` on the same"
    " seed. One seed: differences of the size of E2's spread over seeds mean nothing.",
]
E4 = Experiment(name="E4", title="The staleness bound", plan=plan, section=section)
