"""E9: what five seeds of E8 left open, and models in torch."""

from importlib.util import find_spec

from bench.runs import Experiment, Results, Row, Run, Scale
from experiments.beginning import SEEDS, SHORT, STRAGGLERS, Task, lines, runs_of, simulate, tasks

# The setting of E8 whose mean is the worst.
OPEN, OPEN_SHAPE = "DLRM", (8, 8)
MOST_SEEDS = 15


def plan(scale: Scale, results: Results) -> list[Run]:
    few = 1 if scale.quick else None
    runs = []
    for seed in range(1, (few or SEEDS) + 1):
        for task in _in_torch(scale):
            for workers, m in SHORT:
                runs += runs_of("E9", task, workers, m, seed, STRAGGLERS)
    for task in (task for task in tasks(scale) if task.name == OPEN):
        for seed in range(1, (few or MOST_SEEDS) + 1):
            runs += runs_of("E9", task, *OPEN_SHAPE, seed, (1,))
    return runs


def _in_torch(scale: Scale) -> list[Task]:
    """Return tasks with models in torch, where it is installed."""
    if find_spec("torch") is None:
        return []
    samples = scale.samples(163_840)
    dcn = ("model.type=torch", "model.class=worker.models.torch.dcn:DcnV2")
    jobs = {"DCN v2": ("jobs/gba/deepfm.yaml", dcn), "layers, Adam": ("jobs/torch.yaml", ())}
    return [
        Task(
            name=f"torch: {name}", job=job, data=scale.data, samples=samples, global_batch=1024,
            overrides=overrides,
        )
        for name, (job, overrides) in jobs.items()
    ]  # fmt: skip


def section(rows: list[Row]) -> list[str]:
    return [*QUESTION, "", *lines(rows)]


QUESTION = [
    f"As E8. The setting whose mean was the worst there, with {MOST_SEEDS} seeds instead of"
    f" {SEEDS}, of which {SEEDS} are the same; and models in torch: DCN v2 in place of DeepFM, with"
    " Adagrad, and the layers of `jobs/torch.yaml` with Adam.",
]
E9 = Experiment(
    name="E9", title="From nothing: more seeds, and models in torch", plan=plan, section=section,
    simulate=simulate,
)  # fmt: skip
