"""E1: does gba reach what sync reaches, with sync's settings and without stragglers?"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from bench.runs import Experiment, Results, Row, Run, Scale
from experiments.figures import against, auc, cases, dropped_percent, over, paired, staleness, table
from experiments.settings import DLRM, batches, begun, generated, going_on, learning_rate_times
from scheduler.coordinator.modes.rules import Mode

WORKERS = 4
# What the learning rates of async are multiplied by, on one seed; the best is async's own.
TRIED = (1.0, 0.25, 0.5, 2.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """A model on a data set.

    Args:
        name: as the page has it.
        job: path of its job file.
        m, batch_size: M and B.
        overrides: of the job file.
        goes_on: samples that are trained after `sync` has trained the first half; None: the job
            starts from nothing.
        modes: that are compared.
        tunes: whether async is tried with learning rates of its own.
    """

    name: str
    job: str
    m: int = 4
    batch_size: int
    overrides: tuple[str, ...] = ()
    goes_on: Callable[[int], tuple[str, ...]] | None = None
    modes: tuple[Mode, ...] = ("sync", "gba", "async")
    tunes: bool = True

    def run(self, mode: Mode, seed: int, factor: float = 1.0) -> Run:
        """Return the run of a mode with learning rates times `factor`."""
        return Run(
            "E1",
            {"task": self.name, "mode": mode, "learning rate": f"× {factor:g}"},
            seed,
            self.job,
            (
                *self.overrides,
                *(self.goes_on(seed) if self.goes_on is not None else ()),
                *batches(workers=WORKERS, m=self.m, batch_size=self.batch_size),
                *learning_rate_times(self.job, factor),
                f"training.mode={mode}",
            ),
        )


def tasks(scale: Scale) -> list[Task]:
    """Return the tasks; of real data sets those that were given."""
    everything = generated(scale, 2_000_000)
    found = [
        Task(name="DLRM", job=DLRM, batch_size=512, overrides=everything),
        Task(
            name="DLRM, begun by sync",
            job=DLRM,
            batch_size=256,
            goes_on=lambda seed: going_on(scale, seed, 1_000_000),
            tunes=False,
        ),
        Task(
            name="DeepFM",
            job="jobs/gba/deepfm.yaml",
            batch_size=512,
            overrides=generated(scale, 1_000_000),
        ),
    ]
    for name, directory in scale.real.items():
        paths = (f"data.train={directory}/train/*.parquet", f"data.eval={directory}/test/*.parquet")
        quick = ("training.max_samples=16384",) if scale.quick else ()
        job = f"jobs/{name}.yaml"
        found.append(Task(name=f"{name}, real", job=job, batch_size=128, overrides=paths + quick))
    found.append(
        Task(name="DLRM, M = 16", job=DLRM, m=16, batch_size=128, overrides=everything, tunes=False)
    )
    return found


def plan(scale: Scale, results: Results) -> list[Run]:
    runs: list[Run] = []
    seeds = range(1, scale.seeds + 1)
    for task in tasks(scale):
        if task.goes_on is not None:
            runs += [begun(scale, seed) for seed in seeds]
        runs += [task.run(mode, seed) for seed in seeds for mode in task.modes]
        if task.tunes:
            runs += _tuned(task, seeds, results)
    return runs


def _tuned(task: Task, seeds: Iterable[int], results: Results) -> list[Run]:
    """Try async with other learning rates on seed 1, then the best of them on all seeds."""
    tried = [task.run("async", 1, factor) for factor in TRIED]
    found = results.rows(tried)
    if len(found) < len(tried):
        return tried[1:]
    best = TRIED[max(range(len(tried)), key=lambda i: auc(found[i]))]
    return tried[1:] + [task.run("async", seed, best) for seed in seeds if best != 1 and seed > 1]


def section(rows: list[Row]) -> list[str]:
    head = ["task", "mode", "learning rate", "seeds", "test AUC", "to sync, paired", "log loss",
            "stale parameters, mean (p99)", "data, p99", "dropped"]  # fmt: skip
    body, text = [], []
    gathered = cases(row for row in rows if row["experiment"] == "E1")
    for task in dict.fromkeys(case["task"] for case, _ in gathered):
        of_task = [(case, found) for case, found in gathered if case["task"] == task]
        sync = next((found for case, found in of_task if case["mode"] == "sync"), [])
        for case, found in of_task:
            difference = paired(found, sync, auc) if case["mode"] != "sync" else None
            body.append(
                [
                    task, case["mode"], case["learning rate"], str(len(found)),
                    over(found, auc).text(4),
                    difference.signed_text(4) if difference is not None else "",
                    over(found, lambda row: row["logloss"]).text(4),
                    f"{over(found, staleness('parameter', 'mean')).text(1)}"
                    f" ({over(found, staleness('parameter', 'p99')).mean:.0f})",
                    f"{over(found, staleness('data', 'p99')).mean:.0f}",
                    f"{over(found, dropped_percent).mean:.1f} %",
                ]
            )  # fmt: skip
        text += _verdict(task, sync, of_task)
    return [*QUESTION, "", *table(head, body), "", *text]


def _verdict(
    task: str, sync: list[Row], of_task: list[tuple[dict[str, str], list[Row]]]
) -> list[str]:
    spread = over(sync, auc).deviation
    if spread is None:
        return [f"{task}: too few seeds yet for a verdict.", ""]
    said = []
    for case, found in of_task:
        whole = len(found) == len(sync)
        if case["mode"] != "sync" and whole:
            name = f"{case['mode']} (learning rate {case['learning rate']})"
            said.append(against(name, paired(found, sync, auc), spread))
    return [f"{task}: {'; '.join(said)}.", ""] if said else []


QUESTION = [
    f"Without stragglers, with {WORKERS} workers: does `gba` reach the AUC of `sync` with the"
    " learning rates of `sync`? Does `async` with the same ones, or with its own? M = 4 where"
    " nothing else is said. `begun by sync` starts from a checkpoint of `sync` after the first"
    " million samples and trains the second million; the other tasks start from nothing.",
    "",
    "`async` was tried with the learning rates times"
    f" {', '.join(f'{factor:g}' for factor in sorted(TRIED))} on seed 1; the one with the best test"
    " AUC was run on all seeds. Seeds decide initial values and the order of the samples."
    " Speed is E2's: here four workers share the machine's cores.",
]
E1 = Experiment(name="E1", title="Parity without stragglers", plan=plan, section=section)
