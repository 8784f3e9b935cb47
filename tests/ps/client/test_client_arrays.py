"""Arrays of pulls and pushes are used again once they are released, and not before."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from embedding.spec.table import TableSpec
from embedding.table.admission import CounterAdmission
from ps.client.client import PulledBatch

Serve = Callable[..., Any]

TABLES = (
    TableSpec(name="a", dim=4),
    TableSpec(name="b", dim=2, admission=CounterAdmission(min_count=3)),
)


pytestmark = pytest.mark.usefixtures("spoiled_arrays")


def arrays(pulled: PulledBatch) -> tuple[np.ndarray, ...]:
    return pulled.values, pulled.admitted, pulled.dense


def test_a_released_pull_leaves_its_arrays_to_the_next(small_job: Any, serve: Serve) -> None:
    job = small_job(TABLES, num_shards=2, dense_size=100)
    client, unique = serve(job).client(), job.unique([1, 2], [3, 4, 4])
    released, kept = job.pulled(client, unique), job.pulled(client, unique)
    client.release(released)

    again = job.pulled(client, unique)

    for one, two, other in zip(arrays(again), arrays(released), arrays(kept), strict=True):
        assert np.shares_memory(one, two)
        assert one is again.dense or not np.shares_memory(one, other)


@pytest.mark.parametrize("seed", range(3))
def test_pulls_in_flight_keep_what_they_brought(small_job: Any, serve: Serve, seed: int) -> None:
    job = small_job(TABLES, num_shards=2, dense_size=1000)
    served = serve(job)
    client, rng = served.client(), np.random.default_rng(seed)
    in_flight: list[tuple[PulledBatch, Any, list[bytes]]] = []
    for batch_id in range(40):
        keys = [rng.integers(0, 200, rng.integers(1, 300)) for _ in TABLES]
        pulled = job.pulled(client, job.unique(*keys))
        expected = job.pulled(served.client(), pulled.unique)
        assert [a.tobytes() for a in arrays(pulled)] == [a.tobytes() for a in arrays(expected)]
        pushed = job.start_push(client, pulled, batch_id)
        if rng.random() < 0.3:
            served.break_connections(int(rng.integers(2)))
        job.wait_for(client, pushed)
        for shard in np.flatnonzero(rng.random(2) < 0.6).tolist():
            record = job.record(job.shards[shard].step, batch_id)
            job.wait_for(client, client.start_apply(shard, [record]))
        in_flight.append((pulled, pushed, [array.tobytes() for array in arrays(pulled)]))
        while len(in_flight) > rng.integers(1, 4):
            pulled, pushed, before = in_flight.pop(int(rng.integers(len(in_flight))))
            assert [array.tobytes() for array in arrays(pulled)] == before
            client.release(pushed)
            client.release(pulled)
