"""Which pending batch a worker gets, against a look at all of them."""

import random
from dataclasses import replace

import pytest

from scheduler.coordinator.batches import Batch
from scheduler.coordinator.pending import Pending


def best(batches: list[Batch], worker: int, window: int, owner: dict[int, int]) -> Batch | None:
    """Look at every batch."""

    def rank(batch: Batch) -> tuple[int, bool, int, int]:
        own = owner.get(batch.lane)
        distance = 0 if own == worker else 1 if own is None else 2
        return batch.step // window, batch.attempt == 0, distance, batch.batch_id

    return min(batches, key=rank, default=None)


@pytest.mark.parametrize("seed", range(30))
def test_the_batch_is_the_one_that_a_look_at_all_would_choose(seed: int) -> None:
    rng = random.Random(seed)
    window, lanes = rng.choice([1, 4]), rng.choice([1, 3, 8])
    pending, expected, owner = Pending(window), list[Batch](), dict[int, int]()
    for number in range(300):
        action = rng.random()
        if action < 0.5:
            batch = Batch(number, rng.randrange(10), rng.randrange(lanes), 1)
            batch.attempt = rng.choice([0, 0, 0, 1])
            pending.add(batch)
            expected.append(batch)
        elif action < 0.6 and expected:
            pending.remove(expected.pop(rng.randrange(len(expected))))
        elif action < 0.62:
            window = rng.choice([1, 4])
            for batch in expected:
                batch.step += rng.randrange(5)
            pending.rearrange(window)
        else:
            worker = rng.randrange(4)
            chosen = best(expected, worker, window, owner)
            assert pending.take(worker) is chosen
            if chosen is not None:
                expected.remove(chosen)
                owner[chosen.lane] = worker
        assert pending.lowest_step == min((batch.step for batch in expected), default=None)
        assert sorted(b.batch_id for b in pending) == sorted(b.batch_id for b in expected)


class Watched(Batch):
    """A batch that counts how often any of its kind is looked at."""

    looks = 0

    def __getattribute__(self, name: str) -> object:
        if name == "lane":
            Watched.looks += 1
        return super().__getattribute__(name)


def looks(batches: int) -> float:
    """How often a batch is looked at from being added to being given out, on average."""
    Watched.looks = 0
    pending = Pending(1)
    for number in range(batches):
        pending.add(Watched(number, 0, number, 1))
    for worker in range(batches):
        pending.take(worker % 16)
    return Watched.looks / batches


def test_choosing_looks_at_no_more_batches_where_more_are_pending() -> None:
    assert looks(4096) < looks(64) + 0.1


def test_what_was_given_out_leaves_nothing_behind() -> None:
    pending = Pending(1)
    batch = Batch(0, 0, 0, 1)
    for number in range(100):
        pending.add(replace(batch, batch_id=number, lane=number % 3))
        pending.take(number % 4)

    assert len(pending) == 0
    assert pending.take(0) is None
    assert pending.lowest_step is None
