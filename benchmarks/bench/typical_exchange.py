"""What is exchanged for a typical batch of a real job: the arrays of one of its steps."""

from pathlib import Path

from threadpoolctl import threadpool_limits

from bench.exchanges import Exchange
from bench.one_step import OneWorker
from bench.training_data import find_data
from bench.training_jobs import Case, job_of
from scheduler.driver.resolved import resolve


def typical_exchange(data: Path, batch: int, steps: int) -> Exchange:
    """Train so many batches of jobs/dlrm.yaml with one server; return the one with median keys.

    Raises:
        DataTooSmallError, OSError: as `find_data`.
    """
    specs = resolve(job_of(Case(1, 1, "async", batch), find_data(data, steps * batch)))
    found: list[Exchange] = []
    with OneWorker(specs) as worker, threadpool_limits(limits=1):
        for number in range(steps):
            pushed = worker.step(number)
            pulled = pushed.pulled
            found.append(
                Exchange(
                    batch=batch,
                    table_sizes=tuple(pulled.unique.sizes[0].tolist()),
                    keys=pulled.unique.keys,
                    counts=pulled.unique.counts,
                    admitted=pulled.admitted,
                    values=pulled.values,
                    gradients=pushed.gradients,
                    dense=pulled.dense,
                    dense_gradients=pushed.dense,
                )
            )
    return sorted(found, key=lambda exchange: exchange.keys.size)[steps // 2]
