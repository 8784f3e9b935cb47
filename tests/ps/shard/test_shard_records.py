from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from embedding.kernels.mixing import buckets_of
from embedding.spec.admission import CounterAdmission
from embedding.spec.initial_values import Constant
from embedding.spec.optimizers import Sgd
from embedding.spec.table import TableSpec
from ps.messages.exchange import Refusal
from ps.messages.records import ApplyReply, Entry, TableEviction

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


# Records ------------------------------------------------------------------------------------------


def refused(job: Any, *records: Any) -> Refusal:
    """The refusal of records that change nothing."""
    before = job.state
    reply = job.apply(0, *records)
    assert isinstance(reply, Refusal), reply
    assert job.state == before
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


@pytest.mark.parametrize(
    "changes",
    [
        {"scalars": ((0.1, 0.2), (1.0,))},
        {"scalars": ((), (1.0,))},
        {"scalars": ((0.1,), (1.0, 0.5))},
        {"evict": (TableEviction(2, 1),)},
        {"evict": (TableEviction(-1, 1),)},
        {"evict": (TableEviction(0, 1), TableEviction(0, 2))},
        {"evict": (TableEviction(0, rows_per_bucket=-1),)},
        {"evict": (TableEviction(0, l2_weight_threshold=-0.5),)},
        {"evict": (TableEviction(0, l2_weight_threshold=float("nan")),)},
        {"entries": (Entry(1, 0, 1.0), Entry(1, 0, 1.0))},
        {"entries": (Entry(1, 0, 1.0), Entry(1, 0, 0.0))},
        {"entries": (Entry(1, 0, float("nan")),)},
        {"entries": (Entry(1, 0, float("inf")),)},
        {"entries": (Entry(1, 0, -1.0),)},
        {"divisor": -4},
        {"entries": (Entry(1, 0, 1.0),), "skipped": (2, 1)},
        {"applied_step": 2},
    ],
    ids=str,
)
def test_a_record_that_can_not_be_right_changes_nothing(
    small_job: Any, changes: dict[str, Any]
) -> None:
    job = trained(small_job)

    assert refused(job, job.record(1, 1, **changes)).reason == "malformed"


@pytest.mark.parametrize(
    "eviction",
    [TableEviction(1, 1), TableEviction(1, rows_per_bucket=1)],
    ids=["version", "number of rows"],
)
def test_a_table_that_tracks_no_usage_is_evicted_by_weight_alone(
    small_job: Any, eviction: TableEviction
) -> None:
    job = small_job((ALL, replace(RARE, admission=None, track_usage=False)))
    job.train(0, [1, 2], [5])

    assert refused(job, job.record(1, evict=(eviction,))).reason == "malformed"

    job.step(evict=(TableEviction(0, 0), TableEviction(1, l2_weight_threshold=1e9)))
    assert [len(table) for table in job.shards[0].tables] == [2, 0]


def test_records_sent_again_are_acknowledged_without_effect(small_job: Any) -> None:
    job = trained(small_job)
    job.step(1)
    before = job.state

    old = [job.record(0, 0), job.record(1, 1), job.record(1, Entry(77, 0, 1.0))]
    replies = [job.apply(0, *old), job.apply(0, old[1]), job.apply(0)]

    assert replies == [ApplyReply(3, 2)] * 3
    assert job.state == before


def test_a_list_of_old_and_new_records_applies_the_new_ones(small_job: Any) -> None:
    job, other = trained(small_job), trained(small_job)
    other.step(1)
    other.step()

    reply = job.apply(0, *(job.record(step, *batches) for step, *batches in ((0, 0), (1, 1), (2,))))

    assert reply == ApplyReply(3, 3)
    assert job.digest == other.digest
    assert [record.step for record in job.shards[0].log] == [0, 1, 2]


def test_the_log_goes_back_to_what_others_may_lack(small_job: Any) -> None:
    job = small_job(TABLES)
    shard = job.shards[0]

    def logged_after(step: int, **changes: Any) -> list[int]:
        job.push(step + 1, [1], [5])
        job.step(step + 1, **changes)  # batch 0 is never resolved
        assert shard.step == step + 1
        return [record.step for record in shard.log]

    assert logged_after(0) == [0]
    assert logged_after(1) == [0, 1]
    assert logged_after(2, applied_step=1) == [1, 2]
    assert logged_after(3, applied_step=1) == [1, 2, 3]
    assert logged_after(4, applied_step=4) == [4]
    assert logged_after(5, applied_step=5) == [5], "the newest says how far the job is"


def test_a_skipped_batch_is_resolved(small_job: Any) -> None:
    job = small_job(TABLES)
    buffer = job.shards[0].buffer
    job.push(1, [1], [5])
    job.push(2, [1], [5])

    job.step(1, skipped=(2, 4))
    job.step(skipped=(3,), low_water=0)

    assert (len(buffer), buffer.nbytes) == (0, 0)
    assert buffer.resolved == [(1, 5)]
    message = job.contribution(0, job.unique([1], [5]), batch_id=4, attempt=7)
    assert job.send(0, message).reason == "superseded"


def test_a_list_is_applied_up_to_the_record_that_is_refused(small_job: Any) -> None:
    job, other = trained(small_job), trained(small_job)
    other.step(1)
    records = (job.record(1, 1), job.record(2, Entry(9, 0, 1.0)), job.record(3))
    reply = job.apply(0, *records)

    assert isinstance(reply, Refusal)
    assert reply.reason == "missing"
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

    job.step(Entry(0, 0, 1.0), Entry(1, 0, 0.5), divisor=16)

    assert job.send(0, job.pull(0, unique)).values.tolist() == [0.5 - 2.0 / 16] * 3


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
    job.step(evict=(TableEviction(0, 1), TableEviction(1, 1)))
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


@pytest.mark.parametrize(
    "rule", [{"l2_weight_threshold": 1e9}, {"rows_per_bucket": 1, "evict_first": "least_recent"}]
)
def test_whatever_the_rule_an_evicted_row_is_safe_from_late_gradients_and_starts_anew(
    small_job: Any, rule: dict[str, Any]
) -> None:
    keys = np.arange(10_000)
    old, new = keys[buckets_of(keys) == 77][:2].tolist()
    job = small_job([ALL])
    fresh = job.send(0, job.pull(0, job.unique([old]))).values.tobytes()
    job.train(0, [old])
    job.train(1, [new])
    job.step(evict=(TableEviction(0, **rule),))
    assert job.shards[0].tables[0].frequency(np.array([old]))[0] == 0

    job.send(0, job.contribution(0, job.unique([old]), batch_id=7, pull_step=2))
    job.step(7)

    assert job.shards[0].counts.gradients_of_evicted_keys == 1
    assert job.send(0, job.pull(0, job.unique([old]))).values.tobytes() == fresh


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
    job.step(1, evict=(TableEviction(0, 1),))

    assert job.shards[0].tables[0].frequency(np.array([1, 2])).tolist() == [2, 0]


def test_counters_are_evicted_like_rows(small_job: Any) -> None:
    job = small_job(TABLES)
    job.train(0, [], [5, 6])
    job.train(1, [], [6])

    job.step(evict=(TableEviction(1, 1),))

    assert job.shards[0].tables[1].frequency(np.array([5, 6])).tolist() == [0, 2]
