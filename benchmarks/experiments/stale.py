"""E7: which difference between gba and sync costs a job that begins with nothing?"""

import argparse
import time
from functools import cache
from pathlib import Path
from typing import Any

import threadpoolctl
from stale_gradients import Replays

from bench.runs import Experiment, Results, Row, Run, Scale
from bench.stale_cases import CASES, Case
from bench.stale_replay import Replayed
from experiments.figures import Spread, interval, table
from experiments.settings import DLRM

# Steps of four batches, on each data set.
STEPS = 160
BATCH_SIZES = {"generated": 256, "criteo, real": 128}
SEEDS = 5


def plan(scale: Scale, results: Results) -> list[Run]:
    data = {"generated": scale.data}
    if "criteo" in scale.real:
        data["criteo, real"] = scale.real["criteo"]
    steps = 12 if scale.quick else STEPS
    return [
        Run("E7", {"data": name, "case": case.name, "steps": steps, "directory": str(path)}, seed)
        for seed in range(1, (scale.seeds if scale.quick else SEEDS) + 1)
        for name, path in data.items()
        for case in CASES
    ]


def simulate(run: Run) -> Row:
    """Replay a case."""
    began = time.monotonic()
    case = next(case for case in CASES if case.name == run.case["case"])
    replays = _replays(run.case["data"], run.case["directory"], run.case["steps"], run.seed)
    with threadpoolctl.threadpool_limits(1):
        found: Replayed = replays.of(case)
    return {
        "auc": found.auc,
        "dense_squares": found.dense_squares,
        "wall_seconds": time.monotonic() - began,
    }


@cache
def _replays(name: str, directory: str, steps: int, seed: int) -> Replays:
    _replays.cache_clear()  # batches of one seed at a time
    options = {"job": DLRM, "batch": BATCH_SIZES[name], "m": 4, "steps": steps, "overrides": []}
    return Replays(argparse.Namespace(**options), Path(directory), seed)


def section(rows: list[Row]) -> list[str]:
    head = ["one thing is other than in `sync`", "seeds"]
    names = list(dict.fromkeys(row["case"]["data"] for row in rows))
    for name in names:
        head += [f"{name}: AUC", "to its base, 95 %", "sum of squares"]
    body = []
    for case in CASES:
        counts = [len(_by_seed(rows, name, case.name)) for name in names]
        cells = [_title(case), ", ".join(map(str, counts))]
        for name in names:
            found, base = (_by_seed(rows, name, each) for each in (case.name, case.base))
            seeds = sorted(found.keys() & base.keys())
            auc = Spread(tuple(found[seed]["auc"] for seed in seeds))
            lost = Spread(tuple(found[seed]["auc"] - base[seed]["auc"] for seed in seeds))
            squares = Spread(tuple(found[seed]["dense_squares"] for seed in seeds))
            cells += [
                f"{auc.mean:.4f}" if seeds else "",
                interval(lost) if case.name != case.base else "",
                f"{squares.mean:.2g}" if seeds else "",
            ]
        body.append(cells)
    return [*QUESTION, "", *table(head, body), "", *STORY, ""]


def _by_seed(rows: list[Row], data: str, case: str) -> dict[int, Any]:
    return {
        row["seed"]: row
        for row in rows
        if row["case"]["data"] == data and row["case"]["case"] == case
    }


def _title(case: Case) -> str:
    return case.name if case.base == "sync" else f"{case.name}, against `{case.base}`"


QUESTION = [
    "E1 was measured when `gba` did nothing of what "
    "[docs/modes.md](modes.md#a-job-that-begins-with-nothing) says of a job from nothing, and "
    "DLRM with M = W ended .0025 of AUC below `sync`, though a job in full swing lost nothing. "
    "It was believed that the late samples cost it, or what is dropped; then that staleness has"
    " to be waited out in `sync`, until steps are short, which took longer than most jobs last."
    " So what `gba` does otherwise than `sync` was done alone, one thing at a time, in one "
    "process in which staleness is an input (`benchmarks/stale_gradients.py`): DLRM, M = 4, at "
    f"most {STEPS} steps from nothing, B = {BATCH_SIZES['generated']} on generated rows and "
    f"{BATCH_SIZES['criteo, real']} on 60,000 real ones of Criteo, which makes 112 steps. "
    "Differences are paired by seed, with half of their 95 % interval (Student's t); those "
    "without the sign of an interval's worth of difference mean nothing. `Sum of squares` is "
    "Adagrad's, the mean over dense parameters at the end.",
]
STORY = [
    "`One step` means that all batches read what the step before theirs read. `Read ahead`: the"
    " i-th batch of a step reads dense parameters as the server expects them after the step that"
    " is under way, by the mean of the i + 1 batches of it that are there. `Warm`: dense parameters"
    " begin with the sums of squares that `sync` ends with.",
    "",
    "What is not the cause: the order of the sums, which worker's batches meet in a step, "
    "which samples do, servers that are read at different steps, and rows that are a step "
    "old. A quarter of the batches may be late. What is: dense parameters of the step before,"
    " for all batches. The sums of squares grow with it, but they are the cure and not the "
    "illness: held at what `sync` has, stale gradients do far more harm, as steps of that "
    "length are not stable with them. A start at 0.1 hides the difference only as hardly "
    "anything is learned, and one with sums that are as large as they become does not help. "
    "Real rows of Criteo are too few to tell most of it: seeds alone make their test AUC "
    "differ by more.",
    "",
    "So `gba` now does both of the last line: the first 20 steps are those of `sync`, as their"
    " gradients are the largest and stay in the sums of squares for good, and then dense parameters"
    " are read ahead, which takes the delay out of what is not stable with it.",
]
E7 = Experiment(
    name="E7", title="What stale gradients cost at the beginning", plan=plan, section=section,
    simulate=simulate,
)  # fmt: skip
