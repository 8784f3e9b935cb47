"""E3: what does it cost to change the mode, and does the policy change it at the right moments?"""

from collections.abc import Callable
from itertools import pairwise
from statistics import median
from typing import Any

from bench.runs import Experiment, Results, Row, Run, Scale
from experiments.figures import auc, cases, over, paired, rate, table
from experiments.settings import DLRM, batches, begun, going_on, slow

SAMPLES = 400_000
BATCH_SIZE, WORKERS, M = 256, 4, 4
GLOBAL_BATCHES = SAMPLES // (BATCH_SIZE * M)
EVALUATIONS = 5
SEEDS = 2
# Parts of the training after which the mode changes, to gba and back in turn.
PLANS: dict[str, tuple[float, ...]] = {
    "sync": (),
    "gba from 20 % to 40 %": (0.2, 0.4),
    "gba from 60 % to 80 %": (0.6, 0.8),
    "every 10 %": tuple(i / 10 for i in range(1, 10)),
}
# A straggler that comes and goes, in seconds since the workers were set up.
BATCH_SECONDS, STRAGGLER = 0.05, 8
COMES, GOES = 25, 65
POLICY = "{window_seconds: 2, windows: 2, min_dwell_seconds: 6}"
MODES = ("sync", "gba", "auto")


def planned(scale: Scale, name: str, seed: int) -> Run:
    """Return the run that goes to gba and back at planned moments."""
    clock = max(1, scale.samples(SAMPLES) // (BATCH_SIZE * M))
    modes = ("gba", "sync")
    shifts = [
        f"{{at: {max(i + 1, round(part * clock))}, mode: {modes[i % 2]}}}"
        for i, part in enumerate(PLANS[name])
    ]
    return Run(
        "E3",
        {"kind": "planned", "shifts": name},
        seed,
        DLRM,
        (
            *going_on(scale, seed, SAMPLES),
            *batches(workers=WORKERS, m=M, batch_size=BATCH_SIZE),
            "training.mode=sync",
            f"training.shifts=[{', '.join(shifts)}]",
            f"training.eval_every_steps={max(1, clock // EVALUATIONS)}",
        ),
    )


def straggling(scale: Scale, mode: str) -> Run:
    """Return the run of a mode with a straggler that comes and goes."""
    return Run(
        "E3",
        {"kind": "straggler", "mode": mode},
        1,
        DLRM,
        (
            *going_on(scale, 1, 3 * SAMPLES),
            *batches(workers=WORKERS, m=M, batch_size=BATCH_SIZE),
            *slow(
                workers=WORKERS, batch_seconds=BATCH_SECONDS, straggler=STRAGGLER,
                between=(COMES, GOES),
            ),
            f"training.mode={mode}",
            f"training.auto={POLICY}",
            "run.progress_every_seconds=1",
        ),
    )  # fmt: skip


def plan(scale: Scale, results: Results) -> list[Run]:
    others = range(2, min(scale.seeds, SEEDS) + 1)
    return [
        begun(scale, 1),
        *(straggling(scale, mode) for mode in MODES),
        *_planned(scale, 1),
        *(run for seed in others for run in [begun(scale, seed), *_planned(scale, seed)]),
    ]


def _planned(scale: Scale, seed: int) -> list[Run]:
    return [planned(scale, name, seed) for name in PLANS]


# Planned shifts -----------------------------------------------------------------------------------


def _trajectories(rows: list[Row]) -> list[str]:
    gathered = cases(rows)
    base = next((found for case, found in gathered if case["shifts"] == "sync"), [])
    marks = [f"{i / EVALUATIONS:.0%}" for i in range(1, EVALUATIONS)]
    head = ["gba", "seeds", *(f"AUC at {mark}" for mark in marks), "test AUC", "to sync, paired",
            "re-issued", "s to the next step, mean (max)"]  # fmt: skip
    body = [
        [
            case["shifts"] if case["shifts"] != "sync" else "never",
            str(len(found)),
            *(over(found, _auc_at(i)).text(4) for i in range(EVALUATIONS - 1)),
            over(found, auc).text(4),
            paired(found, base, auc).signed_text(4) if found is not base else "",
            over(found, lambda row: sum(s["reissued_batches"] for s in _shifts(row))).text(0),
            _cost(found),
        ]
        for case, found in gathered
    ]
    return table(head, body)


def _auc_at(number: int) -> Callable[[Row], float | None]:
    def at(row: Row) -> float | None:
        during = row["evaluations"]
        return float(during[number]["auc"]) if number < len(during) else None

    return at


def _shifts(row: Row) -> list[dict[str, Any]]:
    return [entry for entry in row["mode_history"] if "reissued_batches" in entry]


def _cost(rows: list[Row]) -> str:
    costs = [
        shift["seconds_to_next_step"]
        for row in rows
        for shift in _shifts(row)
        if shift["seconds_to_next_step"] is not None
    ]
    return f"{sum(costs) / len(costs):.2f} ({max(costs):.2f})" if costs else ""


# The policy ---------------------------------------------------------------------------------------


def _policy(rows: list[Row]) -> list[str]:
    by_mode = {row["case"]["mode"]: row for row in rows}
    head = ["mode", "seconds", "samples/s", "test AUC", "shifts", "in gba"]
    body = [
        [
            mode, f"{row['train_seconds']:.1f}", f"{rate(row):,.0f}", f"{auc(row):.4f}",
            str(len(_shifts(row))), f"{_part_in(row, 'gba'):.0%}",
        ]
        for mode, row in by_mode.items()
    ]  # fmt: skip
    lines = [*table(head, body), ""]
    if set(by_mode) == set(MODES):
        lines += _against_oracle(by_mode)
    for shift in _shifts(by_mode["auto"]) if "auto" in by_mode else []:
        lines += [_story(shift)]
    return [*lines, ""]


def _story(shift: dict[str, Any]) -> str:
    sync, gba = (shift[f"predicted_{mode}_samples_per_second"] for mode in ("sync", "gba"))
    return (
        f"* step {shift['from_step']}: to {shift['mode']}, predicted {sync:,.0f} samples/s in sync"
        f" and {gba:,.0f} in gba, realised until the next shift"
        f" {shift['samples_per_second'] or 0.0:,.0f}."
    )


def _part_in(row: Row, mode: str) -> float:
    seconds = sum(entry["seconds"] for entry in row["mode_history"] if entry["mode"] == mode)
    return seconds / row["train_seconds"] if row["train_seconds"] else 0.0


def _against_oracle(by_mode: dict[str, Row]) -> list[str]:
    window = straggler_window(by_mode["auto"]["intervals"])
    if window is None:
        return ["The straggler was not seen in the run of `auto`.", ""]
    seconds = oracle_seconds(
        by_mode["sync"]["intervals"], by_mode["gba"]["intervals"], window,
        samples=by_mode["auto"]["samples_trained"],
    )  # fmt: skip
    took, stayed = (by_mode[mode]["train_seconds"] for mode in ("auto", "sync"))
    return [
        f"In the run of `auto` the straggler was there from second {window[0]:.0f} to"
        f" {window[1]:.0f} of the training. An oracle that goes to gba and back at exactly these"
        " moments, at the rates that the uninterrupted runs had in them, needs"
        f" {seconds:.1f} s; `auto` took {took:.1f} s ({took - seconds:+.1f} s), staying in sync"
        f" {stayed:.1f} s ({stayed - seconds:+.1f} s).",
        "",
    ]


def straggler_window(intervals: list[Row]) -> tuple[float, float] | None:
    """Return from when to when worker 0 took three times as long as the others, in seconds."""
    seen = []
    for interval in intervals:
        times = interval["batch_seconds"]
        others = [seconds for number, seconds in times.items() if number != "0" and seconds]
        own = times.get("0")
        if own is not None and others and own > 3 * median(others):
            seen.append(interval["seconds"])
    return (seen[0], seen[-1]) if seen else None


def oracle_seconds(
    sync: list[Row], gba: list[Row], window: tuple[float, float], *, samples: int
) -> float:
    """Return how long so many samples take in sync outside the window and in gba inside."""
    begin, end = window
    before, inside = _rate_between(sync, 0.0, begin), _rate_between(gba, begin, end)
    after = _rate_without(sync, begin, end)
    left = samples - before * begin
    if left <= inside * (end - begin):
        return begin + left / inside
    return end + (left - inside * (end - begin)) / after


def _rate_between(intervals: list[Row], begin: float, end: float) -> float:
    inside = [i for i in intervals if begin <= i["seconds"] <= end]
    if len(inside) < 2:
        return float("nan")
    first, last = inside[0], inside[-1]
    return float((last["samples"] - first["samples"]) / (last["seconds"] - first["seconds"]))


def _rate_without(intervals: list[Row], begin: float, end: float) -> float:
    pairs = [
        (after["samples"] - before["samples"], after["seconds"] - before["seconds"])
        for before, after in pairwise(intervals)
        if after["seconds"] < begin or before["seconds"] > end
    ]
    return float(sum(samples for samples, _ in pairs) / sum(seconds for _, seconds in pairs))


def section(rows: list[Row]) -> list[str]:
    of_kind = {
        kind: [row for row in rows if row["case"].get("kind") == kind]
        for kind in ("planned", "straggler")
    }
    lines = [*QUESTION, ""]
    if of_kind["planned"]:
        lines += [*PLANNED, "", *_trajectories(of_kind["planned"]), ""]
    if of_kind["straggler"]:
        lines += [*STRAGGLING, "", *_policy(of_kind["straggler"])]
    return lines


QUESTION = [
    "Does a change of the mode harm the model, what does it cost, and does `auto` change it at the"
    " right moments? DLRM that `sync` has trained on the first half of the data goes on with the"
    f" second half, W = {WORKERS}, M = {M}, B = {BATCH_SIZE}."
]
PLANNED = [
    f"From `sync` to `gba` and back at planned moments of {SAMPLES:,} samples, without stragglers"
    " (`training.shifts`). `re-issued` counts the batches that shifts had to give out anew."
]
STRAGGLING = [
    f"{3 * SAMPLES:,} samples; a batch takes {1000 * BATCH_SECONDS:.0f} ms (sleep stands in for"
    f" compute, as in E2), and one of the workers takes {STRAGGLER} times that for"
    f" {GOES - COMES} s. `auto` has `training.auto: {POLICY}`, as the job is short."
]
E3 = Experiment(name="E3", title="Changing the mode", plan=plan, section=section)
