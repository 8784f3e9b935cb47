"""Dense parameters come with a pull, but for those that the client has already."""

import time
from collections.abc import Callable
from typing import Any

import numpy as np

from embedding.spec import TableSpec
from ps.client import Identity, Open, PsClient, PulledBatch
from ps.messages import ANY_STEP

Serve = Callable[..., Any]

TABLES = (TableSpec(name="a", dim=4), TableSpec(name="b", dim=1))


def answer(client: PsClient, *requests: Open) -> None:
    deadline = time.monotonic() + 20
    while not all(request.done for request in requests):
        assert time.monotonic() < deadline, "the requests were not answered"
        client.poll(0.5)


def pull(client: PsClient, unique: Any, at_step: int = ANY_STEP) -> PulledBatch:
    pulled = client.start_pull(unique, at_step=at_step)
    answer(client, pulled)
    return pulled


def push(client: PsClient, job: Any, pulled: PulledBatch) -> None:
    rng = np.random.default_rng(0)
    dense = rng.normal(size=job.spec.dense_size).astype(np.float32)
    gradients = job._gradients(pulled.unique, rng)
    answer(
        client, client.start_push(pulled, Identity(0, 0, 0, 4), gradients=gradients, dense=dense)
    )


def test_parameters_are_sent_again_only_by_shards_that_changed_theirs(
    small_job: Any, serve: Serve
) -> None:
    job = small_job(TABLES, num_shards=2, dense_size=50_000)
    served = serve(job)
    client, unique = served.client(), job.unique([1, 2], [3])
    received = [0]

    def pulled_dense() -> tuple[bytes, int]:
        found = pull(client, unique).dense.tobytes()
        received.append(client.bytes_received)
        return found, received[-1] - received[-2]

    first, all_bytes = pulled_dense()
    again, few_bytes = pulled_dense()
    push(client, job, pull(client, unique))
    received.append(client.bytes_received)
    answer(client, client.start_apply(0, [job.record(0, 0)]))
    received.append(client.bytes_received)
    one_changed, half_the_bytes = pulled_dense()

    assert again == first
    assert few_bytes < 2_000
    assert all_bytes > 200_000
    assert 90_000 < half_the_bytes < 120_000
    fresh = pull(served.client(), unique)
    assert one_changed == fresh.dense.tobytes() != first
    assert fresh.steps.tolist() == [1, 0]


def test_pulls_that_are_open_at_once_each_get_the_parameters_of_their_step(
    small_job: Any, serve: Serve
) -> None:
    job = small_job(TABLES, num_shards=2, dense_size=3000)
    client, unique = serve(job).client(), job.unique([1], [])
    push(client, job, pull(client, unique))
    late = client.start_pull(unique, at_step=1)
    now = pull(client, unique, at_step=0)
    before = now.dense.copy()
    answer(client, late, *(client.start_apply(s, [job.record(0, 0)]) for s in range(2)))

    expected = [shard.dense.vector for shard in job.shards]
    assert late.dense.tobytes() == np.concatenate(expected).tobytes()
    assert now.dense.tobytes() == before.tobytes() != late.dense.tobytes()
    assert pull(client, unique).dense.tobytes() == late.dense.tobytes()
