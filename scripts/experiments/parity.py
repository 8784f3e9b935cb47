"""E1: does gba reach what sync reaches, with sync's settings and without stragglers?"""

from dataclasses import dataclass

from experiments.figures import against, auc, cases, over, paired, rate, staleness, table
from experiments.runs import Experiment, Results, Row, Run, Scale
from experiments.settings import batches, generated, learning_rate_times

WORKERS = 4
# What the learning rates of async are multiplied by, on one seed; the best is async's own.
TRIED = (1.0, 0.25, 0.5, 2.0)


@dataclass(frozen=True, slots=True)
class Task:
    """A model on a data set.

    Args:
        name: as the page has it.
        job: path of its job file.
        batch_size: B.
        overrides: of the job file.
    """

    name: str
    job: str
    batch_size: int
    overrides: tuple[str, ...]

    def run(self, mode: str, seed: int, factor: float, note: str = "") -> Run:
        """Return the run of a mode with learning rates times `factor`."""
        return Run(
            "E1",
            {"task": self.name, "mode": mode + note, "learning rate": f"× {factor:g}"},
            seed,
            self.job,
            (
                *self.overrides,
                *batches(workers=WORKERS, m=WORKERS, batch_size=self.batch_size),
                *learning_rate_times(self.job, factor),
                f"training.mode={mode}",
            ),
        )


def tasks(scale: Scale) -> list[Task]:
    """Return the tasks, real data sets last and only those that were given."""
    found = [
        Task("DLRM, generated", "jobs/gba/dlrm.yaml", 512, generated(scale, 2_000_000)),
        Task("DeepFM, generated", "jobs/gba/deepfm.yaml", 512, generated(scale, 1_000_000)),
    ]
    for name, directory in scale.real.items():
        paths = (f"data.train={directory}/train/*.parquet", f"data.eval={directory}/test/*.parquet")
        quick = ("training.max_samples=16384",) if scale.quick else ()
        found.append(Task(f"{name}, real", f"jobs/{name}.yaml", 128, paths + quick))
    return found


def plan(scale: Scale, results: Results) -> list[Run]:
    runs: list[Run] = []
    for task in tasks(scale):
        seeds = range(1, scale.seeds + 1)
        runs += [task.run(mode, seed, 1.0) for seed in seeds for mode in ("sync", "gba", "async")]
        tried = [task.run("async", 1, factor) for factor in TRIED]
        runs += tried[1:]
        found = results.rows(tried)
        if len(found) == len(tried):
            best = TRIED[max(range(len(tried)), key=lambda i: auc(found[i]))]
            runs += [task.run("async", seed, best) for seed in seeds if best != 1.0 and seed > 1]
    return runs


def section(rows: list[Row]) -> list[str]:
    head = ["task", "mode", "learning rate", "seeds", "test AUC", "to sync, paired", "log loss",
            "samples/s", "stale parameters, mean (p99)", "data, p99", "dropped"]  # fmt: skip
    body, text = [], []
    gathered = cases(rows)
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
                    over(found, rate).text(0),
                    f"{over(found, staleness('parameter', 'mean')).text(1)}"
                    f" ({over(found, staleness('parameter', 'p99')).mean:.0f})",
                    f"{over(found, staleness('data', 'p99')).mean:.0f}",
                    f"{sum(row['samples_dropped'] for row in found)}",
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
    return [f"{task}: {'; '.join(said)}.", ""]


QUESTION = [
    "Without stragglers, with 4 workers and M = 4: does `gba` reach the AUC of `sync` with the"
    " learning rates of `sync`? Does `async` with the same ones, or with its own?",
    "`async` was tried with the learning rates times"
    f" {', '.join(f'{factor:g}' for factor in sorted(TRIED))} on seed 1; the one with the best test"
    " AUC was run on all seeds. Seeds decide initial values and the order of the samples.",
]
E1 = Experiment(name="E1", title="Parity without stragglers", plan=plan, section=section)
