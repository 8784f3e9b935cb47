"""E8: is gba from nothing as good as sync, and as fast as it was?"""

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path

import threadpoolctl

from bench.runs import Experiment, Results, Row, Run, Scale
from bench.virtual_job import VirtualJob
from experiments import speeds
from experiments.figures import Spread, interval, signed, table
from experiments.settings import DLRM, batches
from scheduler import JobConfig
from scheduler.driver.resolved import resolve
from worker.step.preparing import Prepared

SEEDS = 5
STRAGGLERS = (1, 4)
# (W, M); of real data sets, which are small, those where steps have as few batches as can be.
SHORT, LONG = ((4, 4), (8, 8)), ((4, 16), (8, 32))
# What gba may lose on average.
MOST_LOST = 0.001


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """A model on a data set, with so many samples in a global batch.

    Args:
        short: only where steps have as few batches as can be.
    """

    name: str
    job: str
    data: Path
    samples: int
    global_batch: int
    short: bool = False
    overrides: tuple[str, ...] = ()


def tasks(scale: Scale) -> list[Task]:
    """Return the tasks; of real data sets those that were given."""
    most, of_real = scale.samples(163_840), 16_384 if scale.quick else 80_000
    deepfm, data = "jobs/gba/deepfm.yaml", scale.data
    found = [
        Task(name="DLRM", job=DLRM, data=data, samples=most, global_batch=1024),
        Task(name="DeepFM", job=deepfm, data=data, samples=most, global_batch=1024),
    ]
    real = {"criteo": DLRM, "movielens": "jobs/movielens.yaml"}
    for name, path in scale.real.items():
        found.append(
            Task(
                name=f"{name}, real", job=real[name], data=path, samples=of_real,
                global_batch=512, short=True,
            )
        )  # fmt: skip
    return found


def plan(scale: Scale, results: Results) -> list[Run]:
    seeds = range(1, (scale.seeds if scale.quick else SEEDS) + 1)
    runs = []
    for shapes in (SHORT, LONG):
        for seed in seeds:
            for task in tasks(scale):
                if shapes is SHORT or not task.short:
                    for workers, m in shapes:
                        runs += runs_of("E8", task, workers, m, seed, STRAGGLERS)
    return [*speeds.runs(), *runs]


def runs_of(
    experiment: str, task: Task, workers: int, m: int, seed: int, stragglers: Sequence[int]
) -> list[Run]:
    """Return the runs of a setting: one in sync, whose model is the same whoever is slow."""
    return [_run(experiment, task, workers, m, 1, "sync", seed)] + [
        _run(experiment, task, workers, m, slower, "gba", seed) for slower in stragglers
    ]


def _run(
    experiment: str, task: Task, workers: int, m: int, slower: int, mode: str, seed: int
) -> Run:
    paths = (
        f"data.train={task.data.resolve()}/train/*.parquet",
        f"data.eval={task.data.resolve()}/test/*.parquet",
        f"training.max_samples={task.samples}",
    )
    shape = batches(workers=workers, m=m, batch_size=task.global_batch // m)
    return Run(
        experiment,
        {
            "task": task.name, "W": workers, "M": m, "straggler": slower, "mode": mode,
            "job": task.job,
            "overrides": [
                *paths, *shape, *task.overrides, "cluster.servers=1", f"training.mode={mode}",
            ],
        },
        seed,
    )  # fmt: skip


def simulate(run: Run) -> Row:
    """Train a job on the virtual clock, or see how fast one is."""
    case = run.case
    if "speed of" in case:
        return speeds.simulate(run)
    began = time.monotonic()
    config = JobConfig.from_yaml(case["job"], [*case["overrides"], f"seed={run.seed}"])
    prepared = _prepared(case["task"], case["M"], run.seed)
    with threadpoolctl.threadpool_limits(1):
        job = VirtualJob(
            resolve(config), slower=case["straggler"], seed=run.seed, prepared=prepared
        )
        trained = job.run()
    return {**asdict(trained), "wall_seconds": time.monotonic() - began}


@cache
def _prepared(task: str, m: int, seed: int) -> dict[int, Prepared]:
    """Batches that were prepared; those of one data set at a time are kept."""
    _prepared.cache_clear()
    return {}


def section(rows: list[Row]) -> list[str]:
    return [*QUESTION, "", *lines(rows), *speeds.lines(rows)]


def lines(rows: list[Row]) -> list[str]:
    """Return a table of gba beside sync, and how many settings lose too much."""
    head = ["task", "W", "M", "straggler", "seeds", "AUC of sync", "AUC of gba",
            "gba to sync, 95 %", "parameters stale, mean (max)", "dropped",
            "trained again"]  # fmt: skip
    body, lost, dropped = [], [], 0
    trained = [row for row in rows if "task" in row["case"]]
    for key in dict.fromkeys(_key(row) for row in trained):
        task, workers, m, slower = key
        gba, sync = _by_seed(trained, key, "gba"), _by_seed(trained, (*key[:3], 1), "sync")
        seeds = sorted(gba.keys() & sync.keys())
        if not seeds:
            continue
        difference = Spread(tuple(gba[s]["auc"] - sync[s]["auc"] for s in seeds))
        lost.append((difference.mean, key))
        dropped += sum(gba[s]["dropped"] for s in seeds)
        stale = [gba[s]["parameter_staleness"] for s in seeds]
        body.append(
            [
                task, str(workers), str(m), f"{slower} ×" if slower > 1 else "none",
                str(len(seeds)),
                f"{Spread(tuple(sync[s]['auc'] for s in seeds)).mean:.4f}",
                f"{Spread(tuple(gba[s]['auc'] for s in seeds)).mean:.4f}",
                interval(difference),
                f"{sum(mean for mean, _ in stale) / len(stale):.1f}"
                f" ({max(most for _, most in stale):.0f})",
                str(sum(gba[s]["dropped"] for s in seeds)),
                f"{sum(gba[s]['reissued'] for s in seeds) / len(seeds):.0f}",
            ]
        )  # fmt: skip
    return [*table(head, body), "", *_verdict(lost, dropped)]


def _key(row: Row) -> tuple[str, int, int, int]:
    case = row["case"]
    return case["task"], case["W"], case["M"], case["straggler"]


def _by_seed(rows: list[Row], key: tuple[str, int, int, int], mode: str) -> dict[int, Row]:
    return {row["seed"]: row for row in rows if _key(row) == key and row["case"]["mode"] == mode}


def _verdict(lost: list[tuple[float, tuple[str, int, int, int]]], dropped: int) -> list[str]:
    if not lost:
        return []
    worst, (task, workers, m, slower) = min(lost)
    below = sum(difference <= -MOST_LOST for difference, _ in lost)
    few = f"{below} of them with a mean loss" if below else "none with a mean loss"
    return [
        f"{len(lost)} settings: {few} of {MOST_LOST:g} of AUC or more. The worst mean is"
        f" {signed(worst)} ({task}, W = {workers}, M = {m},"
        f" {f'one worker {slower} × slower' if slower > 1 else 'even workers'}). {dropped} samples"
        " were dropped.",
        "",
    ]


QUESTION = [
    "Whole jobs from nothing, with the defaults of `gba`: the first 20 steps in `sync`, and "
    "dense parameters read a step ahead. The coordinator, workers' sessions, servers' shards "
    "and what workers compute are the real ones, in one process and on a virtual clock "
    "(`benchmarks/bench/virtual_job.py`): batches take 50 ms, log-normal with a deviation of 15"
    " %, and the first worker 4 times as long where there is a straggler. So what is stale is "
    "what the protocol makes of that, speed does not depend on the machine, and every figure "
    "can be repeated to the last digit. A global batch has 1,024 samples, 512 of real data: 160"
    " steps of generated rows, 117 of Criteo, 156 of MovieLens. Seeds decide initial values, the"
    " order of the samples, and times; differences are paired, with half of their 95 % interval."
    " `sync` trains the same model to the last bit whoever is slow. No sample may be dropped.",
]
E8 = Experiment(
    name="E8", title="From nothing, as good as sync", plan=plan, section=section, simulate=simulate
)
