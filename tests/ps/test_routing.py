"""Which shard has what: every bucket and block once, even and uneven, as one frozen value."""

import itertools
import pickle
import re
from dataclasses import FrozenInstanceError, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from embedding import Adagrad, CounterAdmission, Sgd, TableSpec
from embedding.kernels.mixing import NUM_BUCKETS
from ps.checkpoint.read import CheckpointReader
from ps.checkpoint.restore import start_shard_from
from ps.routing import BLOCK_SIZE, Routing, ranges_without, runs_of
from ps.spec import StoreSpec

TABLES = (
    TableSpec(name="counted", dim=3, admission=CounterAdmission(min_count=2)),
    TableSpec(name="plain", dim=2, optimizer=Adagrad()),
)
NUM_SHARDS = [1, 2, 3, 7, 64, 100, 4095, 4096]
DENSE_SIZE = 10_000
BLOCKS = -(-DENSE_SIZE // BLOCK_SIZE)


def shares(*sizes: int) -> np.ndarray:
    """The shard of each bucket or block where shards have so many, one after another."""
    return np.repeat(np.arange(len(sizes), dtype=np.uint16), sizes)


def uneven() -> Routing:
    """Four shards, of which one has no bucket and another no block."""
    buckets, blocks = shares(1, 3000, 0, 1095), shares(6, 0, 1, 3)
    return Routing(3, 4, DENSE_SIZE, buckets, blocks)


def scattered() -> Routing:
    """Buckets anywhere, and blocks in another order than that of the shards."""
    rng = np.random.default_rng(0)
    buckets = rng.integers(0, 5, NUM_BUCKETS).astype(np.uint16)
    blocks = np.repeat(np.array([3, 0, 4, 1], np.uint16), [4, 1, 2, 3])
    return Routing(1, 5, DENSE_SIZE, buckets, blocks)


@pytest.mark.parametrize("num_shards", NUM_SHARDS)
@pytest.mark.parametrize("dense_size", [0, 1, 1024, 1025, 10_000])
def test_the_even_one_is_what_jobs_and_checkpoints_have_always_had(
    num_shards: int, dense_size: int
) -> None:
    """By the formulas, in whole numbers, since messages and files are sliced by them."""
    routing = Routing.even(num_shards, dense_size)
    blocks = -(-dense_size // BLOCK_SIZE)

    assert routing.version == 0
    assert routing.buckets.tolist() == [b * num_shards // 4096 for b in range(4096)]
    for shard in range(num_shards):
        first, end = -(-shard * 4096 // num_shards), -(-(shard + 1) * 4096 // num_shards)
        assert routing.bucket_runs(shard) == [(first, end)]
        first, end = blocks * shard // num_shards, blocks * (shard + 1) // num_shards
        parameters = min(first * 1024, dense_size), min(end * 1024, dense_size)
        has_any = first < end
        assert routing.block_range(shard) == ((first, end) if has_any else (0, 0))
        assert routing.dense_range(shard) == (parameters if has_any else (0, 0))
    sizes = np.bincount(routing.buckets, minlength=num_shards)
    assert sizes.max() - sizes.min() <= 1


@pytest.mark.parametrize(
    "routing",
    [*(Routing.even(n, DENSE_SIZE) for n in NUM_SHARDS), uneven(), scattered()],
    ids=[*map(str, NUM_SHARDS), "uneven", "scattered"],
)
def test_every_bucket_and_block_has_one_shard_which_has_it(routing: Routing) -> None:
    shards = range(routing.num_shards)

    for of, parts, size in (
        (routing.buckets, [routing.buckets_of(s) for s in shards], NUM_BUCKETS),
        (routing.blocks, [routing.blocks_of(s) for s in shards], BLOCKS),
    ):
        assert sorted(np.concatenate(parts).tolist()) == list(range(size))
        for shard, part in enumerate(parts):
            assert (of[part] == shard).all()
            assert (np.diff(part) > 0).all()


@pytest.mark.parametrize("routing", [Routing.even(7, DENSE_SIZE), uneven()])
def test_ranges_of_all_shards_one_after_another_are_the_whole(routing: Routing) -> None:
    shards = range(routing.num_shards)

    assert routing.in_order
    for ranges, size in (
        ([run for s in shards for run in routing.bucket_runs(s)], NUM_BUCKETS),
        ([routing.block_range(s) for s in shards], BLOCKS),
        ([routing.dense_range(s) for s in shards], DENSE_SIZE),
    ):
        assert [i for first, end in ranges for i in range(first, end)] == list(range(size))
    for s in shards:
        assert routing.buckets_of(s).tolist() == list(range(*routing.bucket_span(s)))
        assert routing.blocks_of(s).tolist() == list(range(*routing.block_range(s)))


def test_buckets_that_do_not_lie_side_by_side_are_runs_within_a_span() -> None:
    routing = scattered()

    assert not routing.in_order
    assert not Routing(1, 2, 0, shares(96, 4000)[::-1], shares(0)).in_order
    for shard in range(5):
        own, runs = routing.buckets_of(shard).tolist(), routing.bucket_runs(shard)
        assert [bucket for first, end in runs for bucket in range(first, end)] == own
        assert all(end < first for (_, end), (first, _) in itertools.pairwise(runs))
        assert routing.bucket_span(shard) == (own[0], own[-1] + 1)
    assert uneven().bucket_span(2) == (0, 0)
    assert uneven().bucket_runs(2) == []


CHANGES = [(1, 2), (2, 3), (2, 1), (3, 2), (3, 7), (7, 3), (100, 99), (99, 100), (4096, 1)]


@pytest.mark.parametrize(("before", "after"), CHANGES)
def test_as_few_buckets_move_as_can_be_where_shards_come_or_go(before: int, after: int) -> None:
    """Those that new shards get, or that shards have which go: nothing moves between others."""
    routing = Routing.even(before, DENSE_SIZE)
    spread = routing.spread_over(after)

    assert (spread.version, spread.num_shards, spread.dense_size) == (1, after, DENSE_SIZE)
    sizes = np.bincount(spread.buckets, minlength=after)
    assert sizes.max() - sizes.min() <= 1
    share, rest = divmod(NUM_BUCKETS, after)
    if after > before:
        closed = (after - before) * share + max(0, rest - before)
    else:
        closed = int((routing.buckets >= after).sum())
    assert int((spread.buckets != routing.buckets).sum()) == closed
    for shard in range(after):
        taken = runs_of((spread.buckets == shard) & (routing.buckets != shard))
        assert len(taken) <= before, "they lie side by side as far as can be"


@pytest.mark.parametrize("after", [1, 2, 5, 9])
def test_no_even_routing_is_nearer_to_a_scattered_one(after: int) -> None:
    """By a look at all ways to say which shards have one bucket more."""
    routing = scattered()
    have = np.bincount(routing.buckets, minlength=max(after, 5))[:after]
    share, rest = divmod(NUM_BUCKETS, after)
    kept = []
    for more in itertools.combinations(range(after), rest):
        wanted = np.array([share + (shard in more) for shard in range(after)])
        kept.append(int(np.minimum(have, wanted).sum()))

    spread = routing.spread_over(after)

    assert int((spread.buckets == routing.buckets).sum()) == max(kept)


@pytest.mark.parametrize("before", [1, 2, 3, 5, 6])
@pytest.mark.parametrize("after", [1, 2, 3, 4, 5])
def test_as_many_blocks_stay_as_can_where_those_of_a_shard_lie_side_by_side(
    before: int, after: int
) -> None:
    """By a look at all ways to give equal parts to shards; and so from there back again."""
    routing = Routing.even(before, 60 * BLOCK_SIZE)
    spread = routing.spread_over(after)
    for one, other in ((routing, spread), (spread, spread.spread_over(before))):
        sizes = np.diff(60 * np.arange(other.num_shards + 1) // other.num_shards)
        most = max(
            int((np.repeat(shards, sizes) == one.blocks).sum())
            for shards in itertools.permutations(range(other.num_shards))
        )

        assert int((other.blocks == one.blocks).sum()) == most
        counts = np.bincount(other.blocks, minlength=other.num_shards)
        assert counts.max() - counts.min() <= 1


def test_what_one_range_has_beside_another() -> None:
    for whole, part in itertools.product(itertools.product(range(5), repeat=2), repeat=2):
        found = [i for first, end in ranges_without(whole, part) for i in range(first, end)]

        assert found == [i for i in range(*whole) if i not in range(*part)]


def test_shards_that_come_and_go_again_leave_buckets_where_they_were() -> None:
    routing = Routing.even(3)
    assert routing.spread_over(3).buckets.tolist() == routing.buckets.tolist()
    back = routing.spread_over(4).spread_over(3)
    assert np.bincount(back.buckets).tolist() == [1366, 1365, 1365]
    assert back.version == 2


@pytest.mark.parametrize(
    ("field", "value", "text"),
    [
        ("version", -1, "version must be >= 0, got -1"),
        ("num_shards", 0, "num_shards must be in [1, 4096], got 0"),
        ("num_shards", 4097, "num_shards must be in [1, 4096], got 4097"),
        ("num_shards", 3, "buckets[3001] is shard 3, of 3 shards that are counted from 0"),
        ("dense_size", -1, "dense_size must be >= 0, got -1"),
        ("dense_size", 11 * 1024, "blocks must be uint16[11], got uint16[10]"),
        ("buckets", np.zeros(4095, np.uint16), "buckets must be uint16[4096], got uint16[4095]"),
        ("buckets", np.zeros(4096), "buckets must be uint16[4096], got float64[4096]"),
        ("blocks", np.zeros((1, 10), np.uint16), "blocks must be uint16[10], got uint16[1, 10]"),
        ("blocks", np.tile(shares(1, 1), 5), "blocks of one shard must lie side by side"),
        ("blocks", shares(9, 0, 0, 0, 1), "blocks[9] is shard 4, of 4 shards that are counted"),
    ],
)
def test_what_does_not_go_together_is_refused(field: str, value: Any, text: str) -> None:
    with pytest.raises(ValueError, match=re.escape(text)):
        replace(uneven(), **{field: value})


def test_it_is_a_value_that_nobody_can_change() -> None:
    buckets = shares(96, 4000)
    routing = Routing(1, 2, 0, buckets, shares(0))
    sent = pickle.loads(pickle.dumps(routing))  # as Ray does on the way to a worker

    buckets[:] = 0

    assert routing.bucket_span(0) == (0, 96)
    for one in (routing, sent):
        with pytest.raises(ValueError, match="read-only"):
            one.buckets[0] = 1
        with pytest.raises(FrozenInstanceError):
            one.version = 2  # type: ignore[misc]
    assert sent == routing
    assert hash(sent) == hash(routing)
    assert replace(routing, version=2) != routing
    assert replace(routing, buckets=shares(97, 3999)) != routing
    assert uneven() == uneven()


def test_a_store_has_an_even_one_unless_it_is_given_another() -> None:
    store = StoreSpec(tables=(), dense_size=DENSE_SIZE, dense_optimizer=Sgd(), num_shards=4)
    assert store.routing == Routing.even(4, DENSE_SIZE)
    assert store.routing is store.routing
    assert replace(store, uneven=uneven()).routing == uneven()

    for wrong in ({"num_shards": 5}, {"dense_size": 9999}):
        with pytest.raises(ValueError, match="uneven shares 10000 dense parameters out to 4"):
            replace(store, uneven=uneven(), **wrong)


def trained(small_job: Any, routing: Routing | None) -> Any:
    shards = 4 if routing is None else routing.num_shards
    job = small_job(TABLES, num_shards=shards, dense_size=DENSE_SIZE, uneven=routing)
    rng = np.random.default_rng(1)
    for step in range(4):
        job.train(step, rng.zipf(1.3, 300) % 500, rng.zipf(1.3, 100))
    return job


def test_an_uneven_one_changes_no_bit_of_the_model(small_job: Any) -> None:
    even, other = trained(small_job, None), trained(small_job, uneven())

    rows = [[len(shard.tables[1]) for shard in job.shards] for job in (even, other)]
    assert min(rows[0]) > 0
    assert rows[1][2] == 0, "it has no bucket"
    assert sum(rows[0]) == sum(rows[1])
    assert [shard.dense.size for shard in other.shards] == [6144, 0, 1024, DENSE_SIZE - 7168]
    assert other.digest == even.digest


@pytest.mark.parametrize(
    ("written", "wanted"),
    [(None, uneven()), (uneven(), None), (None, scattered()), (scattered(), uneven())],
    ids=["even, uneven", "uneven, even", "even, scattered", "scattered, uneven"],
)
def test_what_one_routing_wrote_another_restores(
    small_job: Any, tmp_path: Path, written: Routing | None, wanted: Routing | None
) -> None:
    job = trained(small_job, written)
    reader = CheckpointReader(job.write_checkpoint(tmp_path))

    shards = 4 if wanted is None else wanted.num_shards
    again = small_job(
        TABLES, num_shards=shards, dense_size=DENSE_SIZE, uneven=wanted, initialize=False
    )
    for shard in again.shards:
        start_shard_from(shard, reader, recovery_epoch=job.epoch, goes_on=True)

    assert again.digest == job.digest


def test_what_was_sliced_by_another_routing_is_refused(small_job: Any) -> None:
    job = small_job(TABLES, num_shards=4, dense_size=DENSE_SIZE, uneven=uneven())
    unique = job.unique([1, 2, 3], [4])

    reply = job.send(1, job.pull(1, unique, routing_version=0))

    assert reply.reason == "routing"
    assert reply.text == "shard 1 refused a pull: routing 0, the job is at 3"


def test_a_client_pulls_and_pushes_by_the_routing_of_its_store(small_job: Any, serve: Any) -> None:
    jobs = [
        small_job(TABLES, num_shards=4, dense_size=DENSE_SIZE, uneven=routing)
        for routing in (None, uneven())
    ]
    read = []
    for job in jobs:
        client = serve(job).client()
        unique = job.unique(list(range(200)), [4, 4, 5])
        for batch_id in range(2):
            pull = job.pulled(client, unique, at_step=batch_id)
            push = job.start_push(client, pull, batch_id)
            job.wait_for(client, push)
            assert not push.refusals
            job.step(batch_id)
        read.append(pull.dense.tobytes())

    assert read[0] == read[1]
    assert jobs[0].digest == jobs[1].digest
