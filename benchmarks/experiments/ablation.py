"""E5: which parts of gba matter: the sparse mean, the weight of late batches, tokens."""

from dataclasses import replace

from bench.runs import Experiment, Results, Row, Run, Scale
from experiments.figures import auc, cases, dropped_percent, over, paired, signed, table
from experiments.lost_tokens import Setting, simulate
from experiments.settings import begun
from experiments.stragglers import straggling
from scheduler.coordinator.modes.rules import Mode

STRAGGLER = 8
LOST = (0, 1, 5)
SIMULATED = Setting(lost=0.0, reissue=True)

# What is changed of gba under the straggler, and of sync for the first comparison.
VARIANTS: dict[str, tuple[str, ...]] = {
    "as E2: global, cutoff, drop": (),
    "sparse_mean: contributors": ("training.sparse_mean=contributors",),
    "stale_weight: power 0.5": ("training.stale_weight={type: power, base: 0.5}",),
    "stale_weight: inverse": ("training.stale_weight={type: inverse}",),
    "on_stale: reissue": ("training.on_stale=reissue",),
}


def variant(scale: Scale, mode: Mode, name: str, straggler: float, seed: int) -> Run:
    """Return the run of a mode with one part changed."""
    run = straggling(scale, workers=4, m=4, mode=mode, straggler=straggler, seed=seed)
    return replace(
        run,
        experiment="E5",
        case={"mode": mode, "variant": name, "straggler": straggler},
        overrides=(*run.overrides, *VARIANTS[name]),
    )


def plan(scale: Scale, results: Results) -> list[Run]:
    steps, bound = SIMULATED.steps, SIMULATED.bound
    simulated = [
        Run("E5", {"lost": lost, "tokens": tokens, "steps": steps, "bound": bound}, 1)
        for lost in LOST
        for tokens in ("given out again", "lost")
        if lost or tokens != "lost"
    ]
    runs: list[Run] = []
    for seed in range(1, scale.seeds + 1):
        runs.append(begun(scale, seed))
        # The same bits with a straggler and without one, so it may be spared here.
        for name in list(VARIANTS)[:2]:
            runs.append(variant(scale, "sync", name, 1, seed))
        runs += [variant(scale, "gba", name, STRAGGLER, seed) for name in VARIANTS]
    return simulated + runs


def section(rows: list[Row]) -> list[str]:
    trained = [row for row in rows if "variant" in row["case"]]
    simulated = [row for row in rows if not row["job"]]
    return [
        *QUESTION, "", *_variants(trained), "", *TOKENS, "", *_tokens(simulated), "",
        *_tokens_verdict(simulated), "",
    ]  # fmt: skip


def _variants(rows: list[Row]) -> list[str]:
    head = ["mode", "straggler", "variant", "seeds", "test AUC", "to sync of the same mean, paired",
            "dropped", "re-issued"]  # fmt: skip
    gathered = cases(rows)
    body = []
    for case, found in gathered:
        contributors = "contributors" in case["variant"]
        base = next(
            (
                of_base
                for other, of_base in gathered
                if other["mode"] == "sync" and ("contributors" in other["variant"]) == contributors
            ),
            [],
        )
        difference = paired(found, base, auc) if case["mode"] != "sync" else None
        body.append(
            [
                case["mode"],
                f"{case['straggler']:g} ×" if case["straggler"] > 1 else "none",
                case["variant"],
                str(len(found)),
                over(found, auc).text(4),
                "" if difference is None else difference.signed_text(4),
                f"{over(found, dropped_percent).mean:.1f} %",
                f"{over(found, lambda row: row['reissued']).mean:.0f}",
            ]
        )
    return table(head, body)


def _tokens(rows: list[Row]) -> list[str]:
    head = ["tokens forgotten", "and then", "mean staleness, first quarter", "last quarter",
            "dropped, first quarter", "last quarter"]  # fmt: skip
    return table(
        head,
        [
            [
                f"{row['case']['lost']} %",
                row["case"]["tokens"] if row["case"]["lost"] else "",
                *(signed(value, 1) for value in row["mean_staleness"]),
                *(f"{value:.2f} %" for value in row["dropped_percent"]),
            ]
            for row in rows
        ],
    )


def _tokens_verdict(rows: list[Row]) -> list[str]:
    normal = next((row for row in rows if row["case"]["lost"] == 0), None)
    if normal is None:
        return []
    said = []
    for row in rows:
        if row["case"]["lost"] > 0:
            part = row["dropped_percent"][1] / normal["dropped_percent"][1]
            said.append(f"{part:.0%} with {row['case']['lost']} % {row['case']['tokens']}")
    return (
        [
            "Of what the filter drops in the last quarter with no token forgotten, it drops"
            f" {'; '.join(said)}."
        ]
        if said
        else []
    )


QUESTION = [
    "What do the parts of `gba` do to the model? Each is changed alone, under the worker that is"
    f" {STRAGGLER} × slower of E2 (W = 4, M = 4). `sparse_mean` changes what training computes, so"
    " it is compared with `sync` under the same choice.",
]
TOKENS = [
    "The ledger gives the tokens of lost workers out again. The paper says that losing one does no"
    " harm. On a virtual clock, with the real coordinator and ledger: W = M ="
    f" {SIMULATED.m}, P = {SIMULATED.prefetch}, one worker {SIMULATED.slower:g} × slower, a bound"
    f" of {SIMULATED.bound}, {SIMULATED.steps} steps; workers forget some of their tokens, and the"
    " ledger either gives them out again or, changed for this, lets them be lost.",
]
E5 = Experiment(name="E5", title="Ablation", plan=plan, section=section, simulate=simulate)
