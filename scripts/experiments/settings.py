"""Overrides of job files that experiments share."""

from experiments.runs import Scale
from scheduler import JobConfig


def generated(scale: Scale, samples: int) -> tuple[str, ...]:
    """Read the generated data set, and train so many of its samples."""
    return (
        f"data.train={scale.data}/train/*.parquet",
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


def slow(*, workers: int, every: float, straggler: float) -> tuple[str, ...]:
    """Let sleep stand in for compute: all workers `every` times slower, and the first one more.

    Factors of several entries multiply.
    """
    entries = [f"{{kind: slow, index: {list(range(workers))}, factor: {every}}}"]
    if straggler > 1:
        entries.append(f"{{kind: slow, index: 0, factor: {straggler}}}")
    return ("run.allow_faults=true", f"cluster.inject=[{', '.join(entries)}]")
