"""Dense parameters come with a pull, but for those that the client has already."""

from collections.abc import Callable
from typing import Any

import numpy as np

from embedding.spec.table import TableSpec
from ps.messages.pull_push import ANY_STEP
from ps.messages.records import Totals

Serve = Callable[..., Any]

TABLES = (TableSpec(name="a", dim=4), TableSpec(name="b", dim=1))


def test_parameters_are_sent_again_only_by_shards_that_changed_theirs(
    small_job: Any, serve: Serve
) -> None:
    job = small_job(TABLES, num_shards=2, dense_size=50_000)
    served = serve(job)
    client, unique = served.client(), job.unique([1, 2], [3])
    received = [0]

    def pulled_dense() -> tuple[bytes, int]:
        found = job.pulled(client, unique).dense.tobytes()
        received.append(client.bytes_received)
        return found, received[-1] - received[-2]

    first, all_bytes = pulled_dense()
    again, few_bytes = pulled_dense()
    job.wait_for(client, job.start_push(client, job.pulled(client, unique), 0))
    received.append(client.bytes_received)
    job.wait_for(client, client.start_apply(0, [job.record(0, 0)]))
    received.append(client.bytes_received)
    one_changed, half_the_bytes = pulled_dense()

    assert again == first
    assert few_bytes < 2_000
    assert all_bytes > 200_000
    assert 90_000 < half_the_bytes < 120_000
    fresh = job.pulled(served.client(), unique)
    assert one_changed == fresh.dense.tobytes() != first
    assert fresh.steps.tolist() == [1, 0]


def test_pulls_that_are_open_at_once_each_get_the_parameters_of_their_step(
    small_job: Any, serve: Serve
) -> None:
    job = small_job(TABLES, num_shards=2, dense_size=3000)
    client, unique = serve(job).client(), job.unique([1], [])
    job.wait_for(client, job.start_push(client, job.pulled(client, unique), 0))
    late = client.start_pull(unique, at_step=1)
    now = job.pulled(client, unique, at_step=0)
    before = now.dense.copy()
    job.wait_for(client, late, *(client.start_apply(s, [job.record(0, 0)]) for s in range(2)))

    expected = [shard.dense.vector for shard in job.shards]
    assert late.dense.tobytes() == np.concatenate(expected).tobytes()
    assert now.dense.tobytes() == before.tobytes() != late.dense.tobytes()
    assert job.pulled(client, unique).dense.tobytes() == late.dense.tobytes()


def test_parameters_of_no_step_are_not_taken_for_those_of_the_step(
    small_job: Any, serve: Serve
) -> None:
    job = small_job(TABLES, num_shards=2, dense_size=3000)
    client, unique = serve(job).client(), job.unique([1, 2], [3])
    for batch_id in (0, 1):
        job.wait_for(client, job.start_push(client, job.pulled(client, unique), batch_id))
    record = job.record(0, 0, 1, totals=Totals(mode="gba"))
    job.wait_for(client, *(client.start_apply(shard, [record]) for shard in range(2)))

    def pulled(for_step: int) -> bytes:
        pull = client.start_pull(unique, at_step=ANY_STEP, for_step=for_step)
        job.wait_for(client, pull)
        assert pull.steps.tolist() == [1, 1]
        found: bytes = pull.dense.tobytes()
        return found

    now = pulled(1)
    job.wait_for(client, job.start_push(client, job.pulled(client, unique), 2))
    ahead = pulled(2)

    assert ahead != now
    assert pulled(2) == ahead
    assert pulled(1) == now
    job.wait_for(client, job.start_push(client, job.pulled(client, unique), 3))
    assert pulled(2) not in (ahead, now)
