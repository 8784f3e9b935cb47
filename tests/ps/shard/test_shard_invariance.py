from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from embedding.kernels.mixing import buckets_of
from embedding.spec.admission import CounterAdmission
from embedding.spec.initial_values import Constant
from embedding.spec.optimizers import AdamAsync, Sgd
from embedding.spec.table import TableSpec
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


# Any number of shards -----------------------------------------------------------------------------

a_key = st.integers(0, 25) | st.sampled_from([2**63 - 1, -(2**63)])
a_weight = st.sampled_from([1.0, 1.0, 0.5, 0.0])
a_batch = st.tuples(st.lists(a_key, max_size=8), st.lists(a_key, max_size=8), a_weight)
a_step = st.tuples(st.lists(a_batch, max_size=3), st.integers(0, 4), st.integers(0, 4))
VARIED = (
    ALL,
    replace(RARE, optimizer=AdamAsync()),
    TableSpec(name="third", dim=1, optimizer=AdamAsync(apply_sparse_rmsprop=True)),
    TableSpec(name="narrow", dim=18, value_dtype="bfloat16"),
)
EACH = range(len(VARIED))


def run(small_job: Any, num_shards: int, steps: list[Any]) -> tuple[str, list[int]]:
    """Train; batches of a step were pulled up to 4 steps before, rows are evicted by age."""
    job = small_job(VARIED, num_shards=num_shards, dense_size=2100)
    batch_id = 0
    for step, (batches, lag, age) in enumerate(steps):
        entries = []
        for a, b, weight in batches:
            job.push(batch_id, a, b, b[:2], a[:3], pull_step=max(0, step - lag))
            entries.append(Entry(batch_id, 0, weight))
            batch_id += 1
        evict = tuple(TableEviction(t, step - age) for t in EACH) if age and step > age else ()
        job.step(*entries, evict=evict, low_water=batch_id, oldest_pull_step=max(0, step - 4))
    totals = [
        sum(getattr(shard.counts, name) for shard in job.shards)
        for name in ("gradients_of_evicted_keys", "evicted")
    ]
    return job.digest, totals


@given(st.lists(a_step, min_size=1, max_size=7))
@settings(max_examples=15, deadline=None)
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


def keys_of_buckets(*wanted: int) -> list[int]:
    keys = np.arange(60_000)
    return keys[np.isin(buckets_of(keys), wanted)].tolist()


def run_evicting(small_job: Any, num_shards: int, **rule: Any) -> tuple[str, int, int]:
    """Train on crowded buckets of several shards; evict after every second step."""
    pool = np.array(keys_of_buckets(5, 1500, 1501, 4000))
    rng = np.random.default_rng(8)
    job = small_job(VARIED, num_shards=num_shards)
    for step in range(16):
        job.push(step, *(rng.choice(pool, 25) for _ in VARIED), pull_step=max(0, step - 2))
        evict = tuple(TableEviction(t, **rule) for t in EACH) if step % 2 else ()
        job.step(step, evict=evict, oldest_pull_step=max(0, step - 2))
    late = sum(shard.counts.gradients_of_evicted_keys for shard in job.shards)
    return job.digest, sum(shard.counts.evicted for shard in job.shards), late


RULES: list[dict[str, Any]] = [
    {"l2_weight_threshold": 0.3},
    {"rows_per_bucket": 3},
    {"rows_per_bucket": 3, "evict_first": "least_recent"},
    {"rows_per_bucket": 2},
    {"min_version": 4, "l2_weight_threshold": 0.2, "rows_per_bucket": 4},
]


@pytest.mark.parametrize("rule", RULES, ids=str)
def test_rows_are_evicted_alike_by_any_number_of_shards(
    small_job: Any, rule: dict[str, Any]
) -> None:
    expected = run_evicting(small_job, 1, **rule)

    assert expected[1] > 0
    assert expected[2] > 0, "late gradients of evicted keys were among them"
    assert run_evicting(small_job, 3, **rule) == run_evicting(small_job, 7, **rule) == expected


def test_every_rule_of_eviction_makes_another_model(small_job: Any) -> None:
    digests = {run_evicting(small_job, 1, **rule)[0] for rule in [{}, *RULES]}

    assert len(digests) == 1 + len(RULES)


def test_a_shard_holds_only_keys_of_its_buckets(small_job: Any) -> None:
    job = small_job(TABLES, num_shards=3)
    job.train(0, range(200), [])

    for shard in job.shards:
        buckets = buckets_of(shard.tables[0].export().keys)
        assert (job.spec.routing.buckets[buckets] == shard.index).all()
    assert sum(len(shard.tables[0]) for shard in job.shards) == 200


# Any order of messages ----------------------------------------------------------------------------


@given(st.data())
@settings(max_examples=20, deadline=None)
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
