"""A shard whose gradient buffer is full: what it still takes, and who asks again."""

from typing import Any

from embedding.spec.table import TableSpec

TABLES = (TableSpec(name="a", dim=4), TableSpec(name="b", dim=1))


def push(job: Any, batch_id: int, attempt: int = 0) -> str:
    unique = job.unique([1], [5])
    message = job.contribution(0, unique, batch_id=batch_id, attempt=attempt)
    reply = job.send(0, message)
    return str(getattr(reply, "reason", "held"))


def test_the_batches_that_a_step_waits_for_have_room_beyond_the_limit(small_job: Any) -> None:
    job = small_job(TABLES, max_contributions=2, always_buffered=3)

    assert [push(job, batch_id) for batch_id in (7, 8)] == ["held", "held"]
    assert push(job, 9) == "held", "two are lower, a step has three"
    assert push(job, 10) == "full"
    assert [push(job, batch_id) for batch_id in (3, 2, 1)] == ["held"] * 3
    assert push(job, 4) == "full", "1, 2 and 3 are what comes next"
    assert push(job, 2, attempt=1) == "held", "another attempt at one of these"


def test_without_room_for_a_step_the_limit_is_the_limit(small_job: Any) -> None:
    job = small_job(TABLES, max_contributions=2)

    assert [push(job, batch_id) for batch_id in (7, 8, 1)] == ["held", "held", "full"]


def test_a_push_that_was_refused_is_sent_again_to_the_shards_that_refused_it_alone(
    small_job: Any, serve: Any
) -> None:
    job = small_job(TABLES, num_shards=2, max_contributions=1)
    client = serve(job).client()
    pulls = [job.pulled(client, job.unique([1], [2])) for _ in range(2)]
    job.wait_for(client, job.start_push(client, pulls[0], 0))
    job.shards[1].buffer.clear()  # only shard 0 is full

    second = job.start_push(client, pulls[1], 1)
    job.wait_for(client, second)
    assert {shard: refusal.reason for shard, refusal in second.refusals.items()} == {0: "full"}

    job.shards[0].buffer.clear()
    message = second.messages[0]
    sent = client.bytes_sent
    client.send_again(second)
    job.wait_for(client, second)

    assert not second.refusals
    assert client.bytes_sent - sent < 600, "one shard was asked"
    assert second.messages[0] is message
    assert [len(shard.buffer) for shard in job.shards] == [1, 1]


def test_the_limit_of_bytes_counts_like_that_of_contributions(small_job: Any) -> None:
    job = small_job(TABLES, always_buffered=1)
    assert push(job, 7) == "held"
    job.shards[0].buffer.max_bytes = job.shards[0].buffer.nbytes

    assert [push(job, batch_id) for batch_id in (8, 3)] == ["full", "held"]
