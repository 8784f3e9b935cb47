"""How far the sequences of a batch are filled up, and what is too much."""

from typing import Any

import numpy as np
import pytest

from embedding.spec.optimizers import Sgd
from ps.client.deduplicate import Deduplicator
from ps.routing import Routing
from worker.data.batch import Bags, Batch
from worker.errors import DataError
from worker.spec import Lookup, ModelSpec, SparseFeature
from worker.step.preparing import Prepared, Preparer
from worker.step.sequences import MOST_BYTES, Sequences, check_room


def spec_of(*, dim: int = 2, length: int | None = None) -> ModelSpec:
    lookup = Lookup(feature=0, table="t", dim=dim, column=0, sequence=True, length=length)
    options: dict[str, Any] = {}
    return ModelSpec(
        type="torch", options=options, optimizer=Sgd(), num_dense=0, lookups=(lookup,),
        lookup_names=("seen",),
    )  # fmt: skip


def prepared(spec: ModelSpec, *lengths: int) -> Prepared:
    keys, offsets = np.arange(sum(lengths)), np.cumsum([0, *lengths])
    n, single = len(lengths), set(lengths) == {1}
    prepare = Preparer(
        tables=["t"],
        sparse=[SparseFeature(name="seen", column="seen", table="t", combiner="none")],
        lookups=spec.lookups,
        deduplicator=Deduplicator([spec.lookups[0].dim], Routing.even(1)),
    )
    bags = Bags(keys, None if single else offsets)
    return prepare(Batch(np.zeros(n, np.float32), np.zeros((n, 0), np.float32), (bags,)))


@pytest.mark.parametrize(
    ("length", "lengths", "filled_up_to"),
    [
        (None, [2, 0, 3], 3),
        (None, [1, 1], 1),
        (None, [0, 0], 1),
        (None, [], 1),
        (5, [2, 0, 3], 5),
        (5, [1, 1], 5),
        (5, [], 5),
    ],
)
def test_sequences_are_as_long_as_the_longest_or_as_the_feature_says(
    length: int | None, lengths: list[int], filled_up_to: int
) -> None:
    spec = spec_of(length=length)

    (padded,) = Sequences(spec).make(prepared(spec, *lengths)).values()

    assert padded.vectors.shape == (len(lengths), filled_up_to, 2)
    assert padded.lengths.tolist() == lengths


def test_what_would_take_too_much_memory_is_refused_before_it_is_taken() -> None:
    dim = 1024
    spec, n = spec_of(dim=dim), 1024
    longest = MOST_BYTES // (4 * n * dim)
    lengths = [0] * (n - 1)
    sequences = Sequences(spec)

    with pytest.raises(DataError) as caught:
        sequences.make(prepared(spec, *lengths, longest + 1))

    told = str(caught.value)
    assert told.startswith("the sequences of sparse feature 'seen' are too long: 1024 samples")
    assert "a smaller max_length" in told


def test_room_for_a_given_length_is_known_before_a_job_begins() -> None:
    length = MOST_BYTES // (4 * 1024 * 2)
    check_room(spec_of(length=length), 1024)
    with pytest.raises(DataError, match="'seen' are too long: 1025 samples"):
        check_room(spec_of(length=length), 1025)
    check_room(spec_of(length=None), 1 << 40)


def test_a_sequence_longer_than_it_may_be_is_refused() -> None:
    spec = spec_of(length=2)

    with pytest.raises(DataError, match="'seen' has a sequence of 3 keys: expected at most 2"):
        Sequences(spec).make(prepared(spec, 1, 3))


def test_buffers_are_used_again() -> None:
    spec = spec_of()
    sequences = Sequences(spec)
    made = sequences.make(prepared(spec, 3, 2))
    gradients = sequences.gradients(made)
    sequences.give_back(made, gradients)

    again = sequences.make(prepared(spec, 2, 1))

    assert np.shares_memory(again[0].vectors, made[0].vectors)
    assert not np.shares_memory(again[0].vectors, gradients[0].vectors)
