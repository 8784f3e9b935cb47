"""Overrides of job files that experiments share, and the run that several of them start from."""

from bench.runs import Run, Scale
from scheduler import JobConfig

DLRM = "jobs/gba/dlrm.yaml"
_FILES = {"all": "*", "first half": "part-0000[0-3]", "second half": "part-0000[4-7]"}


def generated(scale: Scale, samples: int, part: str = "all") -> tuple[str, ...]:
    """Read a part of the generated data set's 8 files, and train so many of its samples."""
    return (
        f"data.train={scale.data}/train/{_FILES[part]}.parquet",
        f"data.eval={scale.data}/test/*.parquet",
        f"training.max_samples={scale.samples(samples)}",
    )


def batches(*, workers: int, m: int, batch_size: int) -> tuple[str, ...]:
    """Have so many workers, with M local batches of B samples in a global batch."""
    return (
        f"cluster.workers={workers}",
        f"data.batch_size={batch_size}",
        f"training.global_batch={m * batch_size}",
    )


def learning_rate_times(job: str, factor: float) -> tuple[str, ...]:
    """Multiply the learning rates of tables and dense parameters."""
    if factor == 1:
        return ()
    config = JobConfig.from_yaml(job)
    return (
        f"embedding.optimizer.learning_rate={config.embedding.optimizer.learning_rate * factor}",
        f"model.optimizer.learning_rate={config.model.optimizer.learning_rate * factor}",
    )


def slow(
    *,
    workers: int,
    batch_seconds: float,
    straggler: float,
    between: tuple[float, float] | None = None,
) -> tuple[str, ...]:
    """Let sleep stand in for compute, and the first worker be a straggler.

    Args:
        batch_seconds: what every batch takes on every worker, within 10 %.
        straggler: so many times as long the first worker takes; 1: it is like the others.
        between: from when to when it does, in seconds; None: all the time.
    """
    entries = [
        f"{{kind: slow, index: {list(range(workers))}, least_seconds: {batch_seconds},"
        " jitter: 0.1}"
    ]
    if straggler > 1:
        times = "" if between is None else ", from_seconds: {}, to_seconds: {}".format(*between)
        entries.append(f"{{kind: slow, index: 0, factor: {straggler}{times}}}")
    return ("run.allow_faults=true", f"cluster.inject=[{', '.join(entries)}]")


def begun(scale: Scale, seed: int) -> Run:
    """Return the run that experiments on a job in full swing start from.

    It trains DLRM in sync mode on the first half of the data.
    """
    return Run(
        "begun",
        {"task": "DLRM, first half", "mode": "sync"},
        seed,
        DLRM,
        (
            *generated(scale, scale.rows, "first half"),
            *batches(workers=4, m=4, batch_size=256),
            "training.mode=sync",
        ),
        keep_checkpoint=True,
    )


def going_on(scale: Scale, seed: int, samples: int) -> tuple[str, ...]:
    """Start from `begun` with the same seed and train samples of the second half."""
    return (
        *generated(scale, samples, "second half"),
        f"run.init_from={begun(scale, seed).directory(scale.out)}",
    )
