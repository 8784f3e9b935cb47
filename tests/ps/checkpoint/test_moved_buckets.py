"""Buckets move between shards that go on: read from cuts, and no bit of the model is another."""

import contextlib
import itertools
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ps.checkpoint import chosen
from ps.checkpoint.manifest import CheckpointError
from ps.checkpoint.read import CheckpointReader
from ps.checkpoint.restore import start_shard_from
from ps.routing import Routing
from ps.server.moving import Moving
from ps.shard.shard import Shard


class MovingJob:
    """A job whose cuts are taken in by the shards that it will have, and one that stays."""

    def __init__(self, make_cut_job: Any, small_job: Any, folder: Path, shards: int) -> None:
        self.cut_job = make_cut_job(small_job, folder, shards)
        self.still = make_cut_job(small_job, folder / "still", 1)
        self.job = self.cut_job.job
        self.movings: list[Moving] = []
        self.path = Path()

    def train(self, steps: int = 1, *, evict: bool = False) -> None:
        for job in (self.cut_job, self.still):
            job.train(steps, evict=evict)

    def begin(self, routing: Routing) -> None:
        """Let the shards that there will be take buckets in from now on."""
        job = self.job
        self.store = replace(job.spec, num_shards=routing.num_shards, uneven=routing)
        new = [Shard(self.store, i) for i in range(len(job.shards), routing.num_shards)]
        self.shards = [*job.shards, *new][: routing.num_shards]
        self.movings = [Moving(shard, contextlib.nullcontext) for shard in self.shards]

    def now_and_then(self) -> Callable[[], None]:
        """Return what trains a step at each tenth call."""
        calls = itertools.count()
        return lambda: self.train() if next(calls) % 10 == 0 else None

    def cut(self, *, changed_only: bool, meanwhile: Callable[[], None] = lambda: None) -> int:
        """Take a cut and have it taken in; return how many rows were."""
        self.path = self.cut_job.cut(changed_only=changed_only, meanwhile=meanwhile)
        return sum(m.take_in(self.store, str(self.path)).rows for m in self.movings)

    def move(self) -> list[bool]:
        """Have all go by the new routing at the step of now."""
        job, step = self.job, self.job.shards[0].step
        for shard in job.shards:
            shard.leave()
        ready = [moving.go_by(self.store, step) for moving in self.movings]
        for shard, is_ready in zip(self.shards, ready, strict=True):
            if is_ready:
                shard.enter(job.epoch, step=step)
                continue
            shard.fence()
            shard.go_by(self.store)
            reader = CheckpointReader(self.path)
            start_shard_from(shard, reader, recovery_epoch=job.epoch, goes_on=True)
        self.adopt()
        return ready

    def adopt(self) -> None:
        job = self.job
        job.spec, job.shards = self.store, self.shards
        job.deduplicate = type(job.deduplicate)(job.dims.tolist(), self.store.routing)

    def is_undisturbed(self) -> bool:
        return bool(self.job.digest == self.still.job.digest)


@pytest.fixture
def moving_job(cut_job: Any, small_job: Any, tmp_path: Path) -> Callable[[int], MovingJob]:
    return lambda shards: MovingJob(type(cut_job), small_job, tmp_path / "moving", shards)


@pytest.fixture
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ps.checkpoint.incoming.AT_ONCE", 40)
    monkeypatch.setattr("ps.checkpoint.bucket_groups._LEAST_PART_BYTES", 300)
    monkeypatch.setattr("ps.checkpoint.bucket_groups._MOST_PART_BYTES", 300)


@pytest.mark.parametrize(
    ("before", "after", "most_ranges"),
    [(1, 2, 64), (2, 3, 64), (3, 2, 64), (2, 5, 64), (4, 1, 64), (2, 3, 1), (3, 2, 1)],
)
def test_a_model_is_the_same_bit_for_bit_while_and_after_its_buckets_move(
    moving_job: Any,
    small_pieces: None,
    small_job: Any,
    monkeypatch: pytest.MonkeyPatch,
    before: int,
    after: int,
    most_ranges: int,
) -> None:
    """Rows, counters and filters change, go and come again all the time.

    With few ranges what lies between the buckets that come is read, too.
    """
    monkeypatch.setattr(chosen, "MOST_RANGES", most_ranges)
    moving = moving_job(before)
    moving.train(4)
    moving.begin(moving.job.spec.routing.spread_over(after))
    assert moving.cut(changed_only=False) > 0
    moving.train(4, evict=True)
    moving.cut(changed_only=True, meanwhile=moving.now_and_then())
    assert moving.is_undisturbed(), "what was taken in counts for nothing yet"
    moving.train(2)
    moving.cut(changed_only=True)

    assert moving.move() == [True] * after

    assert moving.is_undisturbed()
    moving.train(3, evict=True)
    assert moving.is_undisturbed(), "what has left counts for nothing any more"
    path = moving.cut_job.cut(changed_only=False, meanwhile=moving.now_and_then())
    again = small_job(moving.cut_job.tables, num_shards=3, dense_size=2500, initialize=False)
    for shard in again.shards:
        start_shard_from(shard, CheckpointReader(path), recovery_epoch=3, goes_on=True)
    for shard in moving.job.shards:
        for _ in shard.drop_others(100):
            moving.train()
    moving.train(evict=True)
    assert moving.is_undisturbed()
    lengths = [sum(len(shard.tables[t]) for shard in moving.job.shards) for t in range(4)]
    assert lengths == [len(table) for table in moving.still.job.shards[0].tables]


def test_buckets_that_change_places_between_shards_that_stay_change_no_bit(
    moving_job: Any, small_pieces: None
) -> None:
    """As where hot ones go to shards that have less to do: dense blocks stay where they are."""
    moving = moving_job(3)
    moving.train(4)
    routing = moving.job.spec.routing
    buckets = routing.buckets.copy()
    chosen_ones = np.random.default_rng(2).choice(buckets.size, 500, replace=False)
    buckets[chosen_ones] = (buckets[chosen_ones] + 1) % 3
    moving.begin(replace(routing, version=routing.version + 1, buckets=buckets))
    assert moving.cut(changed_only=False) > 0
    moving.train(2, evict=True)
    moving.cut(changed_only=True)

    assert moving.move() == [True] * 3

    assert moving.is_undisturbed()
    moving.train(3, evict=True)
    assert moving.is_undisturbed()


def test_what_a_cut_after_a_move_holds_can_be_restored_by_any_number_of_shards(
    moving_job: Any, small_job: Any
) -> None:
    moving = moving_job(2)
    moving.train(3)
    moving.begin(moving.job.spec.routing.spread_over(3))
    moving.cut(changed_only=False)
    moving.move()
    moving.train(2)

    digest = moving.job.digest
    paths = [
        moving.cut_job.cut(changed_only=False),
        moving.job.write_checkpoint(moving.cut_job.folder / "last"),
    ]
    for path in paths:
        for shards in (1, 3):
            job = small_job(
                moving.cut_job.tables, num_shards=shards, dense_size=2500, initialize=False
            )
            for shard in job.shards:
                start_shard_from(shard, CheckpointReader(path), recovery_epoch=3, goes_on=True)
            assert job.digest == digest


@pytest.mark.parametrize("after", [1, 3])
def test_a_move_that_is_given_up_leaves_nothing(moving_job: Any, after: int) -> None:
    moving = moving_job(2)
    moving.train(3)
    moving.begin(moving.job.spec.routing.spread_over(after))
    moving.cut(changed_only=False)
    moving.train(2, evict=True)
    for each in moving.movings:
        each.give_up()
        each.finish_dropping()
    moving.train(2)

    assert moving.is_undisturbed()
    lengths = [sum(len(shard.tables[t]) for shard in moving.job.shards) for t in range(4)]
    assert lengths == [len(table) for table in moving.still.job.shards[0].tables]


def test_a_shard_that_has_not_taken_in_the_last_cut_begins_with_it(moving_job: Any) -> None:
    moving = moving_job(2)
    moving.train(3)
    moving.begin(moving.job.spec.routing.spread_over(3))
    moving.cut(changed_only=False)
    moving.train(1)
    late = moving.movings.pop()
    moving.cut(changed_only=True)
    moving.movings.append(late)

    assert moving.move() == [True, True, False]
    moving.train(2)
    assert moving.is_undisturbed()


def test_a_cut_that_does_not_lie_on_the_one_before_is_refused(moving_job: Any) -> None:
    moving = moving_job(2)
    moving.train(2)
    moving.begin(moving.job.spec.routing.spread_over(1))
    moving.cut(changed_only=False)
    moving.train(1)

    with pytest.raises(CheckpointError, match="does not lie on the checkpoint of step 2"):
        moving.cut(changed_only=False)
    assert moving.is_undisturbed()


def test_nothing_is_taken_in_once_a_move_is_given_up(moving_job: Any) -> None:
    """The call that takes it in may be under way just then."""
    moving = moving_job(2)
    moving.train(2)
    moving.begin(moving.job.spec.routing.spread_over(1))
    (taker,) = moving.movings

    class GivesUp(contextlib.nullcontext[None]):
        def __exit__(self, *error: Any) -> None:
            taker.give_up()

    taker._exclusive = GivesUp
    with pytest.raises(CheckpointError, match="are not taken in any more"):
        moving.cut(changed_only=False)
    taker._exclusive = contextlib.nullcontext
    taker.finish_dropping()

    moving.train(1)
    assert moving.is_undisturbed()


def test_a_routing_is_taken_only_by_who_has_left_the_epoch(moving_job: Any) -> None:
    job = moving_job(2).job
    other = job.spec.routing.spread_over(3)

    with pytest.raises(RuntimeError, match="shard 0 is in epoch"):
        job.shards[0].go_by(replace(job.spec, num_shards=3, uneven=other))
    assert np.array_equal(job.shards[0].routing.buckets, job.spec.routing.buckets)
