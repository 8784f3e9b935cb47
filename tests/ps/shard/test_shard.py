from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from embedding.spec.admission import CounterAdmission
from embedding.spec.initial_values import Constant
from embedding.spec.optimizers import Adagrad, Sgd
from embedding.spec.table import TableSpec
from ps.messages.exchange import Refusal
from ps.messages.pull_push import ANY_STEP, PullReply, PushReply
from ps.messages.records import Apply, ApplyReply, Entry

ALL = TableSpec(name="all", dim=2)
RARE = TableSpec(
    name="rare",
    dim=3,
    initializer=Constant(value=0.5),
    optimizer=Sgd(learning_rate=1.0),
    admission=CounterAdmission(min_count=3),
    default_value=-9.0,
)
TABLES = (ALL, RARE)


def trained(small_job: Any, **options: Any) -> Any:
    """A job after a step, with a batch in the buffer."""
    job = small_job(TABLES, **options)
    job.train(0, [1, 2, 2], [5, 5, 5, 6])
    job.push(1, [2, 3], [6])
    return job


# Fencing and refusals -----------------------------------------------------------------------------


def test_a_new_shard_refuses_everything_until_it_is_initialised(small_job: Any) -> None:
    job = small_job(TABLES, initialize=False)
    unique = job.unique([1], [2])
    messages = (
        job.pull(0, unique),
        job.contribution(0, unique),
        Apply(3, job.epoch, (job.record(0),)),
    )

    for message in messages:
        reply = job.send(0, message)
        assert isinstance(reply, Refusal)
        assert (reply.reason, reply.request_id) == ("fenced", message.request_id)
    assert job.shards[0].fenced
    job.shards[0].initialize(job.epoch, dense=np.zeros(3, np.float32))
    assert [type(job.send(0, message)) for message in messages] == [
        PullReply,
        PushReply,
        ApplyReply,
    ]


def test_parameters_of_another_size_leave_a_shard_fenced(small_job: Any) -> None:
    shard = small_job(TABLES, initialize=False).shards[0]

    with pytest.raises(ValueError, match=r"shape \(3,\), got \(4,\)"):
        shard.initialize(0, dense=np.zeros(4, np.float32))

    assert shard.fenced


@pytest.mark.parametrize("epoch", [2, 4, -1])
def test_messages_of_another_recovery_epoch_change_nothing(small_job: Any, epoch: int) -> None:
    job = trained(small_job)
    unique = job.unique([1], [2])
    before = job.state

    replies = [
        job.send(0, job.pull(0, unique, recovery_epoch=epoch)),
        job.send(0, job.contribution(0, unique, batch_id=2, recovery_epoch=epoch)),
        job.apply(0, job.record(1, 1), recovery_epoch=epoch),
    ]

    assert [reply.reason for reply in replies] == ["epoch"] * 3
    assert f"recovery epoch {epoch}, the job is in {job.epoch}" in replies[0].text
    assert job.state == before


def test_keys_sliced_by_another_routing_change_nothing(small_job: Any) -> None:
    job = trained(small_job)
    unique = job.unique([1], [2])
    before = job.state

    replies = [
        job.send(0, job.pull(0, unique, routing_version=1)),
        job.send(0, job.contribution(0, unique, batch_id=2, routing_version=1)),
    ]

    assert [reply.reason for reply in replies] == ["routing"] * 2
    assert job.state == before


def counts_of(n: int) -> np.ndarray:
    return np.ones(n, np.uint32)


MALFORMED: list[tuple[str, dict[str, Any]]] = [
    ("pull", {"table_sizes": (2, 1)}),
    ("pull", {"table_sizes": (2,)}),
    ("pull", {"table_sizes": ()}),
    ("pull", {"table_sizes": (2, 0, 0)}),
    ("pull", {"table_sizes": (3, -1)}),
    ("pull", {"keys": np.arange(3)}),
    ("pull", {"counts": counts_of(1)}),
    ("pull", {"counts": counts_of(3)}),
    ("contribution", {"table_sizes": (1, 2)}),
    ("contribution", {"table_sizes": (2, 2)}),
    ("contribution", {"table_sizes": (2,)}),
    ("contribution", {"keys": np.arange(1)}),
    ("contribution", {"counts": counts_of(0)}),
    ("contribution", {"counts": counts_of(1)}),
    ("contribution", {"admitted": np.ones(1, np.uint8)}),
    ("contribution", {"admitted": np.array([1, 0], np.uint8)}),
    ("contribution", {"gradients": np.zeros(4, np.float32)}),
    ("contribution", {"gradients": np.zeros(6, np.float32)}),
    ("contribution", {"dense": np.zeros(2, np.float32)}),
    ("contribution", {"dense": np.zeros(0, np.float32)}),
]


@pytest.mark.parametrize(("kind", "changes"), MALFORMED)
def test_arrays_that_do_not_fit_change_nothing(
    small_job: Any, kind: str, changes: dict[str, Any]
) -> None:
    job = trained(small_job)
    unique = job.unique([1], [2]) if kind == "contribution" else job.unique([1, 2], [])
    message = getattr(job, kind)(0, unique)
    before = job.state

    reply = job.send(0, replace(message, **changes))

    assert isinstance(reply, Refusal)
    assert reply.reason == "malformed"
    assert reply.text.startswith(f"shard 0 refused a {kind}: ")
    assert job.state == before


# Pulls --------------------------------------------------------------------------------------------


def test_pulls_change_nothing_and_repeat(small_job: Any) -> None:
    job = trained(small_job)
    unique = job.unique([1, 2, 2, 50, -7], [5, 6, 6, 70, 71, 71, 71])
    before = job.state

    for counts in (True, False):
        first, second = (job.send(0, job.pull(0, unique, counts=counts)) for _ in range(2))
        assert first.values.tobytes() == second.values.tobytes()
        assert first.admitted.tobytes() == second.admitted.tobytes()
        assert first.dense.tobytes() == second.dense.tobytes()

    assert job.state == before


def test_a_pull_reads_one_step_of_all_tables(small_job: Any) -> None:
    job = trained(small_job)
    unique = job.unique([2, 99], [5, 6])

    reply = job.send(0, job.pull(0, unique))

    a, b = reply.values[:4].reshape(2, 2), reply.values[4:].reshape(2, 3)
    exported = job.shards[0].tables[0].export()
    assert reply.step == 1
    assert a[0].tobytes() == exported.vectors[exported.keys == 2][0].tobytes()
    assert np.abs(a[1]).max() <= 0.01
    assert (b[0] != 0.5).all(), "trained"
    assert (b[1] == -9.0).all(), "seen once"
    assert reply.admitted.tolist() == [1, 1, 1, 0]
    assert reply.dense.tobytes() == job.shards[0].dense.vector.tobytes()


def test_parameters_are_only_sent_where_they_are_wanted(small_job: Any) -> None:
    job = small_job(TABLES)

    assert job.send(0, job.pull(0, job.unique([1], []), dense=False)).dense.size == 0


def test_parameters_are_not_sent_to_who_has_those_of_this_step(small_job: Any) -> None:
    job = small_job(TABLES)
    job.train(0, [1], [])

    def size(dense_step: int) -> int:
        pull = replace(
            job.pull(0, job.unique([1], [])), dense_step=dense_step, dense_epoch=job.epoch
        )
        return job.send(0, pull).dense.size

    assert [size(step) for step in (-1, 0, 1, 2)] == [job.spec.dense_size] * 2 + [0] + [
        job.spec.dense_size
    ]


@pytest.mark.parametrize("optimizer", [Sgd(), Adagrad()])
def test_a_reply_does_not_change_with_the_next_step(small_job: Any, optimizer: Any) -> None:
    """It may still be on its way."""
    job = small_job(TABLES, dense_optimizer=optimizer, dense_size=5000)
    job.train(0, [1], [])
    reply = job.send(0, job.pull(0, job.unique([1], [])))
    before = reply.values.tobytes(), reply.dense.tobytes()

    job.train(1, [1], [])

    assert (reply.values.tobytes(), reply.dense.tobytes()) == before


def test_a_pull_of_a_later_step_is_answered_at_that_step(small_job: Any) -> None:
    job, alone = small_job(TABLES), small_job(TABLES)
    unique = job.unique([1], [5])
    for batch_id in range(3):
        job.push(batch_id, [1], [5])

    shard = job.shards[0]
    for step, sender in ((2, "two"), (1, "one")):
        assert shard.handle(job.pull(0, unique, at_step=step), sender) == []
    assert shard.take_ready() == []
    for step, sender in ((1, "one"), (2, "two")):
        job.step(step - 1)
        alone.train(step - 1, [1], [5])
        ((to, pull),) = shard.take_ready()
        reply = job.send(0, pull)

        assert (to, reply.step) == (sender, step)
        assert reply.values.tobytes() == alone.send(0, alone.pull(0, unique)).values.tobytes()
    assert shard.num_parked == 0


def test_a_waiting_pull_that_is_not_answered_before_the_next_step_is_superseded(
    small_job: Any,
) -> None:
    job = small_job(TABLES)
    unique = job.unique([1], [5])
    for batch_id in range(2):
        job.push(batch_id, [1], [5])
    job.shards[0].handle(job.pull(0, unique, at_step=1, request_id=9), "worker")

    job.step(0)
    ((_, pull),) = job.shards[0].take_ready()
    job.step(1)

    reply = job.send(0, pull)
    assert isinstance(reply, Refusal)
    assert (reply.request_id, reply.reason) == (9, "superseded")


def test_a_waiting_pull_learns_of_a_new_recovery_epoch(small_job: Any) -> None:
    job = small_job(TABLES)
    shard = job.shards[0]
    shard.handle(job.pull(0, job.unique([1], []), at_step=9), "worker")

    shard.enter(job.epoch + 1, step=0)

    replies = [job.send(0, pull) for _, pull in shard.take_ready()]
    assert [reply.reason for reply in replies] == ["epoch"]


def test_no_more_pulls_may_wait_than_the_buffer_holds_contributions(small_job: Any) -> None:
    job = small_job(TABLES, max_contributions=2)
    pull = job.pull(0, job.unique([1], []), at_step=1)
    for _ in range(2):
        assert job.shards[0].handle(pull, "worker") == []

    reply = job.send(0, pull)

    assert isinstance(reply, Refusal)
    assert reply.reason == "full"
    assert job.shards[0].num_parked == 2


def test_the_size_of_a_reply_is_known_before_it_is_made(small_job: Any) -> None:
    job = small_job(TABLES, dense_size=5000)
    for dense in (True, False):
        pull = job.pull(0, job.unique([1, 2], [5]), dense=dense)
        reply = job.send(0, pull)

        nbytes = reply.values.nbytes + reply.dense.nbytes + reply.admitted.nbytes
        assert job.shards[0].reply_bytes(pull) == nbytes


def test_a_pull_of_any_step_may_wait_for_the_first_that_suits_it(small_job: Any) -> None:
    job = small_job(TABLES)
    unique = job.unique([1], [5])
    for batch_id in range(3):
        job.push(batch_id, [1], [5])
    pull = job.pull(0, unique, not_before=2)
    assert pull.at_step == ANY_STEP

    assert job.shards[0].handle(pull, "worker") == []
    job.send(0, Apply(7, job.epoch, (job.record(0, 0),)))
    assert job.shards[0].num_parked == 1
    assert job.shards[0].take_ready() == []
    job.step(1)
    assert job.shards[0].take_ready() == [("worker", pull)]

    assert job.send(0, pull).step == 2
    job.step(2)
    assert job.send(0, pull).step == 3  # a later one does as well


def test_a_parked_pull_of_a_peer_that_is_gone_is_forgotten(small_job: Any) -> None:
    job = small_job(TABLES)
    shard = job.shards[0]
    for sender in ("stays", "leaves", "leaves"):
        shard.handle(job.pull(0, job.unique([1], []), at_step=1), sender)

    shard.disconnect("leaves")
    job.step()

    assert [sender for sender, _ in shard.take_ready()] == ["stays"]


@pytest.mark.parametrize("at_step", [0, -2])
def test_a_pull_of_a_step_that_is_over_is_superseded(small_job: Any, at_step: int) -> None:
    job = trained(small_job)

    reply = job.send(0, job.pull(0, job.unique([1], []), at_step=at_step))

    assert isinstance(reply, Refusal)
    assert reply.reason == "superseded"
    assert ANY_STEP == -1


# Pushes -------------------------------------------------------------------------------------------


def test_a_push_changes_no_row_and_counts_once(small_job: Any) -> None:
    job, once = small_job(TABLES), small_job(TABLES)
    before = job.digest
    unique = job.unique([1, 2], [5])
    message = job.contribution(0, unique, batch_id=0)

    replies = [job.send(0, replace(message, request_id=i)) for i in range(3)]

    assert [type(reply) for reply in replies] == [PushReply] * 3
    assert [reply.request_id for reply in replies] == [0, 1, 2]
    assert job.digest == before
    assert (len(job.shards[0].buffer), job.shards[0].buffer.nbytes) == (1, message.nbytes)
    job.step(0)
    once.send(0, message)
    once.step(0)
    assert job.digest == once.digest


def test_the_first_push_of_an_attempt_is_the_one_that_counts(small_job: Any) -> None:
    job, once = small_job(TABLES), small_job(TABLES)
    for target in (job, once):
        target.send(0, target.contribution(0, target.unique([1], [5]), batch_id=0))

    job.send(0, job.contribution(0, job.unique([3, 4], []), batch_id=0))
    job.step(0)
    once.step(0)

    assert job.digest == once.digest


def test_attempts_are_held_side_by_side_and_go_with_the_batch(small_job: Any) -> None:
    job = small_job(TABLES)
    unique = job.unique([1], [5])
    for attempt in range(3):
        job.send(0, job.contribution(0, unique, batch_id=4, attempt=attempt))
    assert len(job.shards[0].buffer) == 3

    job.step(Entry(4, 1, 1.0))

    assert (len(job.shards[0].buffer), job.shards[0].buffer.nbytes) == (0, 0)
    for attempt in range(4):
        reply = job.send(0, job.contribution(0, unique, batch_id=4, attempt=attempt))
        assert (type(reply), reply.reason) == (Refusal, "superseded")
    assert job.shards[0].counts.contributions_superseded == 4


def test_only_the_discarded_attempt_is_superseded(small_job: Any) -> None:
    job = small_job(TABLES)
    unique = job.unique([1], [5])
    for attempt in range(2):
        job.send(0, job.contribution(0, unique, batch_id=4, attempt=attempt))

    job.step(discard=((4, 0), (9, 0)))

    assert len(job.shards[0].buffer) == 1
    reasons = [
        getattr(job.send(0, job.contribution(0, unique, batch_id=b, attempt=a)), "reason", "held")
        for b, a in ((4, 0), (4, 1), (4, 2), (9, 0), (9, 1))
    ]
    assert reasons == ["superseded", "held", "held", "superseded", "held"]


def test_with_an_attempt_the_earlier_ones_are_discarded(small_job: Any) -> None:
    job = small_job(TABLES)
    unique = job.unique([1], [5])
    for attempt in range(3):
        job.send(0, job.contribution(0, unique, batch_id=4, attempt=attempt))

    job.step(discard=((4, 1),))

    assert len(job.shards[0].buffer) == 1
    for attempt in range(2):
        reply = job.send(0, job.contribution(0, unique, batch_id=4, attempt=attempt))
        assert (type(reply), reply.reason) == (Refusal, "superseded")


def test_what_is_remembered_of_resolved_batches_does_not_grow_with_them(small_job: Any) -> None:
    job = small_job(TABLES)
    buffer = job.shards[0].buffer
    job.step(discard=((0, 0),))
    for batch_id in range(1, 500):
        job.step(discard=((batch_id, 2),))
        job.push(batch_id, [1], [5], attempt=3)
        job.step(Entry(batch_id, 3, 1.0))

    assert list(buffer._resolved) == [(1, 500)]
    assert buffer._wanted_from == {0: 1}
    unique = job.unique([1], [5])
    for identity in ((0, 0), (1, 3), (1, 4), (499, 9)):
        message = job.contribution(0, unique, batch_id=identity[0], attempt=identity[1])
        assert job.send(0, message).reason == "superseded"


def test_batches_below_the_low_water_mark_are_superseded(small_job: Any) -> None:
    job = small_job(TABLES)
    unique = job.unique([1], [5])
    for batch_id in (2, 3, 4):
        job.send(0, job.contribution(0, unique, batch_id=batch_id))

    job.step(4, low_water=3)
    job.step(low_water=1)  # never goes back

    assert len(job.shards[0].buffer) == 1, "batch 3"
    reasons = [
        getattr(job.send(0, job.contribution(0, unique, batch_id=b)), "reason", "held")
        for b in range(6)
    ]
    assert reasons == ["superseded"] * 3 + ["held", "superseded", "held"]


def test_a_full_buffer_refuses_and_keeps_what_it_has(small_job: Any) -> None:
    job = small_job(TABLES, max_contributions=2)
    unique = job.unique([1], [5])
    for batch_id in range(2):
        job.send(0, job.contribution(0, unique, batch_id=batch_id))
    before = job.state

    reply = job.send(0, job.contribution(0, unique, batch_id=2))
    again = job.send(0, job.contribution(0, unique, batch_id=1))

    assert reply.reason == "full"
    assert "holds 2 contributions" in reply.text
    assert isinstance(again, PushReply)
    assert job.state == before
    job.step(0)
    assert isinstance(job.send(0, job.contribution(0, unique, batch_id=2)), PushReply)


def test_the_buffer_is_limited_in_bytes(small_job: Any) -> None:
    job = small_job(TABLES)
    message = job.contribution(0, job.unique([1, 2], [5]))
    limit = message.nbytes + 1
    job = small_job(TABLES, max_buffer_bytes=limit)

    assert isinstance(job.send(0, message), PushReply)
    reply = job.send(0, replace(message, batch_id=1))

    assert reply.reason == "full"
    assert f"limits are 1024 and {limit}" in reply.text
