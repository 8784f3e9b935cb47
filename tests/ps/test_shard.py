from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from embedding.mixing import buckets_of
from embedding.spec import Adagrad, AdamAsync, Constant, CounterAdmission, Sgd, TableSpec
from ps.messages import (
    ANY_STEP,
    Apply,
    ApplyReply,
    Entry,
    PullReply,
    PushReply,
    Refusal,
)
from ps.spec import bucket_range

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


def state_of(job: Any) -> Any:
    """Everything that a message could change."""
    return job.digest, [
        (
            shard.step,
            shard.recovery_epoch,
            list(shard.log),
            shard.num_parked,
            len(shard.buffer),
            shard.buffer.nbytes,
            shard.buffer.low_water,
            [(len(table), table.num_unadmitted) for table in shard.tables],
        )
        for shard in job.shards
    ]


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
    before = state_of(job)

    replies = [
        job.send(0, job.pull(0, unique, recovery_epoch=epoch)),
        job.send(0, job.contribution(0, unique, batch_id=2, recovery_epoch=epoch)),
        job.apply(0, job.record(1, 1), recovery_epoch=epoch),
    ]

    assert [reply.reason for reply in replies] == ["epoch"] * 3
    assert f"recovery epoch {epoch}, the job is in {job.epoch}" in replies[0].text
    assert state_of(job) == before


def test_keys_sliced_by_another_routing_change_nothing(small_job: Any) -> None:
    job = trained(small_job)
    unique = job.unique([1], [2])
    before = state_of(job)

    replies = [
        job.send(0, job.pull(0, unique, routing_version=1)),
        job.send(0, job.contribution(0, unique, batch_id=2, routing_version=1)),
    ]

    assert [reply.reason for reply in replies] == ["routing"] * 2
    assert state_of(job) == before


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
    before = state_of(job)

    reply = job.send(0, replace(message, **changes))

    assert isinstance(reply, Refusal)
    assert reply.reason == "malformed"
    assert reply.text.startswith(f"shard 0 refused a {kind}: ")
    assert state_of(job) == before


# Pulls --------------------------------------------------------------------------------------------


def test_pulls_change_nothing_and_repeat(small_job: Any) -> None:
    job = trained(small_job)
    unique = job.unique([1, 2, 2, 50, -7], [5, 6, 6, 70, 71, 71, 71])
    before = state_of(job)

    for counts in (True, False):
        first, second = (job.send(0, job.pull(0, unique, counts=counts)) for _ in range(2))
        assert first.values.tobytes() == second.values.tobytes()
        assert first.admitted.tobytes() == second.admitted.tobytes()
        assert first.dense.tobytes() == second.dense.tobytes()

    assert state_of(job) == before


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

    for step, sender in ((2, "two"), (1, "one")):
        pull = job.pull(0, unique, at_step=step, request_id=step)
        assert job.shards[0].handle(pull, sender) == []
    records = [job.record(step, step) for step in range(3)]
    out = job.shards[0].handle(Apply(7, job.epoch, tuple(records)), "coordinator")

    assert [(o.to, o.reply.request_id, o.reply.step) for o in out] == [
        ("one", 1, 1),
        ("two", 2, 2),
        ("coordinator", 7, 3),
    ]
    alone.train(0, [1], [5])
    assert out[0].reply.values.tobytes() == alone.send(0, alone.pull(0, unique)).values.tobytes()
    assert job.shards[0].num_parked == 0


def test_a_parked_pull_of_a_peer_that_is_gone_is_forgotten(small_job: Any) -> None:
    job = small_job(TABLES)
    shard = job.shards[0]
    for sender in ("stays", "leaves", "leaves"):
        shard.handle(job.pull(0, job.unique([1], []), at_step=1), sender)

    shard.disconnect("leaves")
    out = shard.handle(Apply(7, job.epoch, (job.record(0),)), "coordinator")

    assert [o.to for o in out] == ["stays", "coordinator"]


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
    before = state_of(job)

    reply = job.send(0, job.contribution(0, unique, batch_id=2))
    again = job.send(0, job.contribution(0, unique, batch_id=1))

    assert reply.reason == "full"
    assert "holds 2 contributions" in reply.text
    assert isinstance(again, PushReply)
    assert state_of(job) == before
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


# Records ------------------------------------------------------------------------------------------


def refused(job: Any, *records: Any) -> Refusal:
    """The refusal of records that change nothing."""
    before = state_of(job)
    reply = job.apply(0, *records)
    assert isinstance(reply, Refusal), reply
    assert state_of(job) == before
    return reply


def test_a_record_ahead_of_its_turn_changes_nothing(small_job: Any) -> None:
    job = trained(small_job)

    assert refused(job, job.record(2, 1)).reason == "step"


@pytest.mark.parametrize("entry", [Entry(7, 0, 1.0), Entry(1, 1, 1.0), Entry(0, 0, 1.0)])
@pytest.mark.parametrize("weight", [1.0, 0.0])
def test_a_record_that_names_what_is_not_held_changes_nothing(
    small_job: Any, entry: Entry, weight: float
) -> None:
    job = trained(small_job)

    reply = refused(job, job.record(1, 1, replace(entry, weight=weight)))

    assert reply.reason == "missing"
    assert f"({entry.batch_id}, {entry.attempt})" in reply.text


@pytest.mark.parametrize("scalars", [(), ((0.1,),), ((0.1,), (0.1,), (0.1,))])
def test_a_record_without_the_scalars_of_every_optimizer_changes_nothing(
    small_job: Any, scalars: Any
) -> None:
    job = trained(small_job)

    assert refused(job, job.record(1, 1, scalars=scalars)).reason == "malformed"


@pytest.mark.xfail(strict=True, reason="the shard does not look into records that far yet")
@pytest.mark.parametrize(
    "changes",
    [
        {"scalars": ((0.1, 0.2), (1.0,))},
        {"scalars": ((), (1.0,))},
        {"scalars": ((0.1,), (1.0, 0.5))},
        {"evict": ((2, 1),)},
        {"evict": ((-1, 1),)},
        {"entries": (Entry(1, 0, 1.0), Entry(1, 0, 1.0))},
        {"entries": (Entry(1, 0, 1.0), Entry(1, 0, 0.0))},
        {"entries": (Entry(1, 0, float("nan")),)},
        {"entries": (Entry(1, 0, float("inf")),)},
        {"entries": (Entry(1, 0, -1.0),)},
        {"divisor": -4},
    ],
    ids=str,
)
def test_a_record_that_can_not_be_right_changes_nothing(
    small_job: Any, changes: dict[str, Any]
) -> None:
    job = trained(small_job)

    assert refused(job, job.record(1, 1, **changes)).reason == "malformed"


def test_records_sent_again_are_acknowledged_without_effect(small_job: Any) -> None:
    job = trained(small_job)
    job.step(1)
    before = state_of(job)

    old = [job.record(0, 0), job.record(1, 1), job.record(1, Entry(77, 0, 1.0))]
    replies = [job.apply(0, *old), job.apply(0, old[1]), job.apply(0)]

    assert replies == [ApplyReply(3, 2)] * 3
    assert state_of(job) == before


def test_a_list_of_old_and_new_records_applies_the_new_ones(small_job: Any) -> None:
    job, other = trained(small_job), trained(small_job)
    other.step(1)
    other.step()

    reply = job.apply(0, *(job.record(step, *batches) for step, *batches in ((0, 0), (1, 1), (2,))))

    assert reply == ApplyReply(3, 3)
    assert job.digest == other.digest
    assert [record.step for record in job.shards[0].log] == [0, 1, 2]


def test_a_list_is_applied_up_to_the_record_that_is_refused(small_job: Any) -> None:
    job, other = trained(small_job), trained(small_job)
    other.step(1)
    job.shards[0].handle(job.pull(0, job.unique([1], []), at_step=2), "waits")

    records = (job.record(1, 1), job.record(2, Entry(9, 0, 1.0)), job.record(3))
    out = job.shards[0].handle(Apply(3, job.epoch, records), "coordinator")

    assert [(o.to, type(o.reply)) for o in out] == [("waits", PullReply), ("coordinator", Refusal)]
    assert out[1].reply.reason == "missing"
    assert job.shards[0].step == 2
    assert job.digest == other.digest


@pytest.mark.parametrize("changes", [{}, {"divisor": 0}, {"divisor": 100}])
def test_entries_of_weight_zero_change_no_row_counter_or_parameter(
    small_job: Any, changes: dict[str, int]
) -> None:
    job = trained(small_job)
    before = job.digest
    shard = job.shards[0]

    job.step(Entry(1, 0, 0.0), **changes)

    assert job.digest == before
    assert (shard.step, len(shard.buffer)) == (2, 0)
    assert shard.tables[0].version(np.array([2, 3])).tolist() == [0, -1]
    assert shard.tables[1].frequency(np.array([6])).tolist() == [1]
    late = job.send(0, job.contribution(0, job.unique([2], []), batch_id=1, attempt=5))
    assert late.reason == "superseded", "it was resolved"


def test_weight_zero_beside_others_only_counts_in_the_divisor(small_job: Any) -> None:
    with_zero, without = trained(small_job), trained(small_job)
    for job in (with_zero, without):
        job.push(2, [1, 2], [5])

    with_zero.step(Entry(1, 0, 0.0), 2, divisor=8)
    without.step(2, divisor=8)

    assert with_zero.digest == without.digest


def test_a_step_without_entries_only_advances(small_job: Any) -> None:
    job = trained(small_job)
    before = job.digest

    job.step()

    assert (job.digest, job.shards[0].step) == (before, 2)
    assert len(job.shards[0].buffer) == 1


def test_sums_are_divided_once_by_the_divisor(small_job: Any) -> None:
    """SGD with a learning rate of 1 subtracts the mean gradient."""
    job = small_job([replace(RARE, admission=None)])
    unique = job.unique([5])
    for batch_id, value in enumerate((1.0, 2.0)):
        gradients = np.full(3, value, np.float32)
        job.send(0, job.contribution(0, unique, batch_id=batch_id, gradients=gradients))

    job.step(Entry(0, 0, 1.0), Entry(1, 0, 0.5), divisor=8)

    assert job.send(0, job.pull(0, unique)).values.tolist() == [0.5 - 2.0 / 8] * 3


def test_the_order_of_a_record_is_the_order_of_the_sum(small_job: Any) -> None:
    digests = set()
    for pushed, named in (((0, 1, 2), (0, 1, 2)), ((2, 0, 1), (0, 1, 2)), ((0, 1, 2), (0, 2, 1))):
        job = small_job([replace(RARE, admission=None)])
        for batch_id in pushed:
            values = np.full(3, (1e8, 3.0, -1e8)[batch_id], np.float32)
            message = job.contribution(0, job.unique([5]), batch_id=batch_id, gradients=values)
            job.send(0, message)
        job.step(*named)
        digests.add((named, job.digest))

    assert len(digests) == 2, "arrival does not matter, the record's order does"


# Admission ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("seen", "count", "bit"), [(0, 2, 0), (0, 3, 1), (1, 2, 1), (2, 1, 1)])
def test_a_key_is_admitted_when_this_batch_brings_it_to_the_minimum(
    small_job: Any, seen: int, count: int, bit: int
) -> None:
    job = small_job(TABLES)
    if seen:
        job.train(0, [], [5] * seen)
    unique = job.unique([], [5] * count)

    reply = job.send(0, job.pull(0, unique))

    assert reply.admitted.tolist() == [bit]
    assert reply.values.tolist() == [[-9.0, 0.5][bit]] * 3
    evaluated = job.send(0, job.pull(0, unique, counts=False))
    assert evaluated.admitted.tolist() == [0], "evaluation counts as 0"


def test_a_row_is_created_only_when_a_gradient_arrives(small_job: Any) -> None:
    job = small_job(TABLES)
    rare = job.shards[0].tables[1]
    key = np.array([5])

    job.push(0, [], [5, 5])
    job.push(1, [], [5, 5])
    job.step(0, 1)
    assert (len(rare), rare.num_unadmitted, rare.frequency(key).tolist()) == (0, 1, [4])

    job.train(2, [], [5])
    assert (len(rare), rare.num_unadmitted, rare.frequency(key).tolist()) == (1, 0, [5])


def test_a_gradient_makes_a_row_whatever_its_frequency(small_job: Any) -> None:
    """It was admitted at its pull, though the batch that counted it then has weight 0."""
    job = small_job(TABLES)
    unique = job.unique([], [5])
    admitted = np.ones(1, np.uint8)
    job.send(0, job.contribution(0, unique, batch_id=0, admitted=admitted))

    job.step(0)

    assert len(job.shards[0].tables[1]) == 1


# Eviction -----------------------------------------------------------------------------------------


def evicted_job(small_job: Any) -> Any:
    """Keys 1 and 2 have rows; key 1 is evicted by record 2, at step 3 now."""
    job = small_job(TABLES)
    job.train(0, [1, 2], [5])
    job.train(1, [2], [])
    job.step(evict=((0, 1), (1, 1)))
    assert len(job.shards[0].tables[0]) == 1
    assert job.shards[0].counts.evicted == 2
    return job


@pytest.mark.parametrize("pull_step", [0, 1, 2])
def test_a_gradient_pulled_before_the_eviction_does_not_return_the_row(
    small_job: Any, pull_step: int
) -> None:
    job = evicted_job(small_job)
    table = job.shards[0].tables[0]

    job.send(0, job.contribution(0, job.unique([1, 2], []), batch_id=7, pull_step=pull_step))
    job.step(7)

    assert table.frequency(np.array([1, 2])).tolist() == [0, 3]
    assert table.version(np.array([1, 2])).tolist() == [-1, 3]
    assert job.shards[0].counts.gradients_of_evicted_keys == 1


def test_a_gradient_pulled_after_the_eviction_starts_a_new_row(small_job: Any) -> None:
    job, fresh = evicted_job(small_job), small_job(TABLES)
    message = job.contribution(0, job.unique([1], []), batch_id=7, pull_step=3)

    job.send(0, message)
    job.step(7)
    for _ in range(3):
        fresh.step()
    fresh.send(0, message)
    fresh.step(7)

    assert job.shards[0].counts.gradients_of_evicted_keys == 0
    found, expected = (each.send(0, each.pull(0, job.unique([1], []))) for each in (job, fresh))
    assert found.values.tobytes() == expected.values.tobytes()


def test_a_row_that_came_back_is_safe_from_late_gradients_too(small_job: Any) -> None:
    job = evicted_job(small_job)
    job.train(7, [1], [])
    before = job.send(0, job.pull(0, job.unique([1], []))).values.tobytes()

    job.send(0, job.contribution(0, job.unique([1], []), batch_id=8, pull_step=1))
    job.step(8)

    assert job.send(0, job.pull(0, job.unique([1], []))).values.tobytes() == before
    assert job.shards[0].counts.gradients_of_evicted_keys == 1


def test_evicted_keys_are_forgotten_when_no_late_gradient_can_come(small_job: Any) -> None:
    job = evicted_job(small_job)
    job.step(oldest_pull_step=2)
    assert [len(each) for each in job.shards[0]._evicted] == [1, 1], "record 2 evicted them"

    job.step(oldest_pull_step=3)

    assert [len(each) for each in job.shards[0]._evicted] == [0, 0]
    job.send(0, job.contribution(0, job.unique([1], []), batch_id=7, pull_step=1))
    job.step(7)
    assert job.shards[0].tables[0].frequency(np.array([1])).tolist() == [1]


def test_a_row_changed_in_the_evicting_step_stays(small_job: Any) -> None:
    job = small_job(TABLES)
    job.train(0, [1, 2], [])

    job.push(1, [1], [])
    job.step(1, evict=((0, 1),))

    assert job.shards[0].tables[0].frequency(np.array([1, 2])).tolist() == [2, 0]


def test_counters_are_evicted_like_rows(small_job: Any) -> None:
    job = small_job(TABLES)
    job.train(0, [], [5, 6])
    job.train(1, [], [6])

    job.step(evict=((1, 1),))

    assert job.shards[0].tables[1].frequency(np.array([5, 6])).tolist() == [0, 2]


# Any number of shards -----------------------------------------------------------------------------

a_key = st.integers(0, 25) | st.sampled_from([2**63 - 1, -(2**63)])
a_weight = st.sampled_from([1.0, 1.0, 0.5, 0.0])
a_batch = st.tuples(st.lists(a_key, max_size=8), st.lists(a_key, max_size=8), a_weight)
a_step = st.tuples(st.lists(a_batch, max_size=3), st.integers(0, 4), st.integers(0, 4))
VARIED = (
    ALL,
    replace(RARE, optimizer=AdamAsync()),
    TableSpec(name="third", dim=1, optimizer=AdamAsync(apply_sparse_rmsprop=True)),
)


def run(small_job: Any, num_shards: int, steps: list[Any]) -> tuple[str, list[int]]:
    """Train; batches of a step were pulled up to 4 steps before, rows are evicted by age."""
    job = small_job(VARIED, num_shards=num_shards, dense_size=2100)
    batch_id = 0
    for step, (batches, lag, age) in enumerate(steps):
        entries = []
        for a, b, weight in batches:
            job.push(batch_id, a, b, b[:2], pull_step=max(0, step - lag))
            entries.append(Entry(batch_id, 0, weight))
            batch_id += 1
        evict = tuple((t, step - age) for t in range(3)) if age and step > age else ()
        job.step(*entries, evict=evict, low_water=batch_id, oldest_pull_step=max(0, step - 4))
    totals = [
        sum(getattr(shard.counts, name) for shard in job.shards)
        for name in ("gradients_of_evicted_keys", "evicted")
    ]
    return job.digest, totals


@given(st.lists(a_step, min_size=1, max_size=7))
@settings(max_examples=25, deadline=None)
def test_any_number_of_shards_trains_the_same_model(small_job: Any, steps: list[Any]) -> None:
    expected = run(small_job, 1, steps)

    for num_shards in (2, 3, 7):
        assert run(small_job, num_shards, steps) == expected


def test_a_long_run_is_the_same_for_any_number_of_shards(small_job: Any) -> None:
    rng = np.random.default_rng(6)
    steps = [
        (
            [
                (rng.zipf(1.3, 60).tolist(), (rng.zipf(1.5, 40) % 97).tolist(), float(w))
                for w in rng.choice([1.0, 0.5, 0.0], 3)
            ],
            int(rng.integers(0, 3)),
            int(rng.integers(0, 5)),
        )
        for _ in range(25)
    ]
    expected = run(small_job, 1, steps)

    assert expected[1][0] > 0, "late gradients of evicted keys were among them"
    assert expected[1][1] > 0
    assert run(small_job, 3, steps) == run(small_job, 7, steps) == expected


def test_a_shard_holds_only_keys_of_its_buckets(small_job: Any) -> None:
    job = small_job(TABLES, num_shards=3)
    job.train(0, range(200), [])

    for shard in job.shards:
        first, last = bucket_range(shard.index, 3)
        buckets = buckets_of(shard.tables[0].export().keys)
        assert ((buckets >= first) & (buckets < last)).all()
    assert sum(len(shard.tables[0]) for shard in job.shards) == 200


# Any order of messages ----------------------------------------------------------------------------


@given(st.data())
@settings(max_examples=30, deadline=None)
def test_refused_and_repeated_messages_never_change_the_outcome(small_job: Any, data: Any) -> None:
    """A shard that gets everything twice, early and late ends as one that gets it once."""
    once, noisy = small_job(TABLES), small_job(TABLES)
    sent: list[tuple[Callable[..., Any], tuple[Any, ...]]] = []

    def repeat_some() -> None:
        for send, arguments in data.draw(st.lists(st.sampled_from(sent), max_size=3)):
            send(*arguments)

    for step in range(data.draw(st.integers(1, 4))):
        keys = [data.draw(st.lists(a_key, max_size=5)) for _ in TABLES]
        unique = once.unique(*keys)
        bits = once.admitted(unique)
        message = once.contribution(0, unique, admitted=bits, batch_id=step)
        record = once.record(step, step, low_water=step)
        once.send(0, message)
        assert isinstance(once.apply(0, record), ApplyReply)
        sent += [
            (noisy.send, (0, message)),
            (noisy.send, (0, replace(message, attempt=1))),
            (noisy.send, (0, replace(message, recovery_epoch=0))),
            (noisy.send, (0, noisy.pull(0, unique))),
        ]
        if data.draw(st.booleans()):
            assert noisy.apply(0, record).reason == "missing"
        noisy.send(0, message)
        repeat_some()
        assert isinstance(noisy.apply(0, record), ApplyReply)
        sent.append((noisy.apply, (0, record)))
        repeat_some()

    assert noisy.digest == once.digest
