"""E2: what does one slow worker cost each mode, in speed and in quality?"""

from typing import Any

from bench.runs import Experiment, Results, Row, Run, Scale
from experiments.figures import (
    against,
    auc,
    cases,
    dropped_percent,
    over,
    paired,
    rate,
    signed,
    staleness,
    table,
)
from experiments.settings import DLRM, batches, begun, going_on, slow
from scheduler.coordinator.modes.rules import Mode, ModeOptions
from scheduler.job.config import ClusterConfig

OPTIONS = ModeOptions()
SAMPLES = 200_000
BATCH_SIZE = 256
# What a batch takes, by W, by sleeping: long enough that the cores are not what limits W workers.
BATCH_SECONDS = {4: 0.05, 8: 0.1}
MODES: tuple[Mode, ...] = ("sync", "ssp", "backup", "async", "gba")
# How much faster than sync gba is, at the least, by the abstract of arXiv 2205.11048.
PAPER = 2.4
# Modes in which M decides who waits.
BY_GLOBAL_BATCH: tuple[Mode, ...] = ("sync", "backup", "gba")


def straggling(
    scale: Scale, *, workers: int, m: int, mode: Mode, straggler: float, seed: int
) -> Run:
    """Return the run of a mode where one worker is `straggler` times slower than the others."""
    return Run(
        "E2",
        {"W": workers, "M": m, "straggler": straggler, "mode": mode},
        seed,
        DLRM,
        (
            *going_on(scale, seed, SAMPLES),
            *batches(workers=workers, m=m, batch_size=BATCH_SIZE),
            *slow(workers=workers, batch_seconds=BATCH_SECONDS[workers], straggler=straggler),
            f"training.mode={mode}",
            "training.on_stale=drop",
        ),
    )


def plan(scale: Scale, results: Results) -> list[Run]:
    runs = []
    for seed in range(1, scale.seeds + 1):
        runs.append(begun(scale, seed))
        runs += [
            straggling(scale, workers=4, m=4, mode=mode, straggler=8, seed=seed) for mode in MODES
        ]
    runs += [
        straggling(scale, workers=4, m=4, mode=mode, straggler=straggler, seed=1)
        for straggler in (1, 4)
        for mode in MODES
    ]
    runs += [
        straggling(scale, workers=4, m=16, mode=mode, straggler=straggler, seed=1)
        for straggler in (1, 4, 8)
        for mode in BY_GLOBAL_BATCH
    ]
    runs += [
        straggling(scale, workers=8, m=8, mode=mode, straggler=straggler, seed=1)
        for straggler in (1, 4, 8)
        for mode in MODES
    ]
    return runs


def section(rows: list[Row]) -> list[str]:
    first = over([row for row in rows if row["experiment"] == "begun"], auc)
    head = ["W", "M", "straggler", "mode", "seeds", "samples/s", "of sync's", "test AUC",
            "to sync, paired", "stale data, mean (p99, max)", "dropped", "cores"]  # fmt: skip
    body, text = [], []
    measured = [row for row in rows if row["experiment"] == "E2"]
    gathered = sorted(cases(measured), key=lambda item: _order(item[0]))
    for setting in dict.fromkeys(_setting(case) for case, _ in gathered):
        modes = {case["mode"]: found for case, found in gathered if _setting(case) == setting}
        body += [
            _cells(setting, mode, found, modes.get("sync", [])) for mode, found in modes.items()
        ]
        text += _verdict(setting, modes)
    start = f"Test AUC at the start, after the first half: {first.text(4)}."
    return [*QUESTION, "", start, "", *table(head, body), "", *text, *_same_bits(measured)]


def _setting(case: dict[str, Any]) -> tuple[int, int, float]:
    return int(case["W"]), int(case["M"]), case["straggler"]


def _order(case: dict[str, Any]) -> tuple[int, int, float, int]:
    return (*_setting(case), MODES.index(case["mode"]))


def _cells(
    setting: tuple[int, int, float], mode: str, found: list[Row], sync: list[Row]
) -> list[str]:
    workers, m, straggler = setting
    speed = over(found, rate).mean / over(sync, rate).mean if sync else float("nan")
    late = [over(found, staleness("data", name)).mean for name in ("mean", "p99", "max")]
    return [
        str(workers), str(m), f"{straggler:g} ×" if straggler > 1 else "none", mode,
        str(len(found)), over(found, rate).text(0), f"{speed:.2f} ×", over(found, auc).text(4),
        paired(found, sync, auc).signed_text(4) if mode != "sync" and sync else "",
        f"{late[0]:.1f} ({late[1]:.0f}, {late[2]:.0f})",
        f"{over(found, dropped_percent).mean:.1f} %",
        over(found, lambda row: row["cores_used"]).text(1),
    ]  # fmt: skip


def _verdict(setting: tuple[int, int, float], modes: dict[str, list[Row]]) -> list[str]:
    """Say how gba compares with sync where one worker is slow."""
    workers, m, straggler = setting
    sync, gba = modes.get("sync", []), modes.get("gba", [])
    if straggler == 1 or not sync or not gba:
        return []
    speed = over(gba, rate).mean / over(sync, rate).mean
    spread = over(sync, auc).deviation
    differences = paired(gba, sync, auc)
    quality = (
        against("its AUC", differences, spread)
        if spread is not None and differences.values
        else f"its AUC differs from that of sync by {signed(differences.mean)} (one seed)"
    )
    where = f"W = {workers}, M = {m}, one worker {straggler:g} × slower"
    text = f"{where}: gba trains {speed:.2f} times the samples/s of sync"
    if m == workers:
        text += f" (the paper's abstract says at least {PAPER:g} where hardware is strained)"
    return [f"{text}; {quality}.", ""]


def _same_bits(rows: list[Row]) -> list[str]:
    """Say whether sync gave the same model whatever the straggler."""
    digests: dict[tuple[int, int, int], list[str]] = {}
    for row in rows:
        if row["case"]["mode"] == "sync":
            setting = (row["case"]["W"], row["case"]["M"], row["seed"])
            digests.setdefault(setting, []).append(row["model_digest"])
    several = [found for found in digests.values() if len(found) > 1]
    if not several:
        return []
    same = sum(len(set(found)) == 1 for found in several)
    return [
        f"`sync` was run with several stragglers in {len(several)} settings of W, M and seed. Its"
        f" models were the same to the last bit in {same} of them.",
        "",
    ]


QUESTION = [
    "One of W workers is 4 or 8 times slower than the others: how many samples a second does each"
    " mode train, and how good is the model after the same samples? DLRM that `sync` has trained on"
    f" the first half of the data goes on for {SAMPLES:,} samples of the second half, B ="
    f" {BATCH_SIZE}, with the learning rates of `sync` in every mode, and the defaults of"
    f" `staleness_bound` ({OPTIONS.staleness_bound}), `ssp_slack` ({OPTIONS.ssp_slack}),"
    f" `backup_batches` ({OPTIONS.backup_batches}) and `prefetch_batches`"
    f" ({ClusterConfig().prefetch_batches}). With `on_stale: drop`, so that it is seen what comes"
    " too late.",
    "",
    "Two cores can't compute for eight workers, so sleep stands in for compute: every worker sleeps"
    f" after each batch until it has taken {1000 * BATCH_SECONDS[4]:g} ms (W = 4) or"
    f" {1000 * BATCH_SECONDS[8]:g} ms (W = 8), within 10 %, and the straggler until it has taken 4"
    " or 8 times that. `cores` is what all processes of the job used while training: below the"
    " machine's, so the workers' times decide the speed, and not the cores. What sleeping can't"
    " show: contention for network and memory.",
]  # fmt: skip
E2 = Experiment(name="E2", title="One slow worker", plan=plan, section=section)
