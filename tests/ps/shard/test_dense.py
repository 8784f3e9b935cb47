import numpy as np
import pytest

from embedding.optimizers.rule import step_scalars
from embedding.spec.optimizers import Adagrad, AdamAsync, Optimizer, Sgd
from ps.messages.pull_push import Contribution
from ps.routing import BLOCK_SIZE
from ps.shard.dense import DenseBlocks
from ps.spec import StoreSpec

OPTIMIZERS: list[Optimizer] = [Sgd(), Adagrad(), AdamAsync(), AdamAsync(apply_sparse_rmsprop=True)]


def spec(dense_size: int, num_shards: int, optimizer: Optimizer) -> StoreSpec:
    return StoreSpec(
        tables=(), dense_size=dense_size, dense_optimizer=optimizer, num_shards=num_shards
    )


def contribution(dense: np.ndarray) -> Contribution:
    none = np.empty(0, np.float32)
    return Contribution(
        0, 0, 0, 0, 0, 0, 4, 0, (), none.astype(np.int64), none.astype(np.uint32), none, dense,
        none.astype(np.uint8),
    )  # fmt: skip


def train(dense_size: int, num_shards: int, optimizer: Optimizer) -> tuple[np.ndarray, np.ndarray]:
    """Parameters and block rows after three steps of two batches on every shard."""
    rng = np.random.default_rng(dense_size)
    initial = rng.normal(size=dense_size).astype(np.float32)
    steps = rng.normal(size=(3, 2, dense_size)).astype(np.float32)
    store = spec(dense_size, num_shards, optimizer)
    parameters, rows = [], []
    for shard in range(num_shards):
        part = slice(*store.routing.dense_range(shard))
        dense = DenseBlocks(store, shard)
        dense.initialize(initial[part])
        assert dense.vector.tobytes() == initial[part].tobytes()
        for step, batches in enumerate(steps):
            dense.apply(
                [contribution(batch[part].copy()) for batch in batches],
                [1.0, 0.3],
                scale=np.float32(1 / 7),
                scalars=np.array(step_scalars(optimizer, learning_rate=0.1, step=step)),
            )
        parameters.append(dense.vector)
        rows.append(dense.rows)
    return np.concatenate(parameters), np.concatenate(rows)


@pytest.mark.parametrize("dense_size", [0, 1, 1023, 1024, 1025, 5000])
@pytest.mark.parametrize("optimizer", OPTIMIZERS, ids=lambda o: o.type)
def test_any_number_of_shards_gives_the_same_bits(dense_size: int, optimizer: Optimizer) -> None:
    parameters, rows = train(dense_size, 1, optimizer)

    assert parameters.shape == (dense_size,)
    for num_shards in (2, 3, 5, 7, 50):
        other_parameters, other_rows = train(dense_size, num_shards, optimizer)
        assert other_parameters.tobytes() == parameters.tobytes()
        assert other_rows.tobytes() == rows.tobytes()


def test_an_update_is_the_optimizer_on_the_mean() -> None:
    """Adagrad, in float32 as NumPy does it; of more blocks than are summed at once."""
    store = spec(600_000, 1, Adagrad(initial_accumulator=0.5))
    dense = DenseBlocks(store, 0)
    rng = np.random.default_rng(2)
    w, a, b = rng.normal(size=(3, 600_000)).astype(np.float32)
    dense.initialize(w)

    accumulator = np.float32(0.5)
    for first, second in ((a, b), (b, a)):
        dense.apply(
            [contribution(first), contribution(second)],
            [1.0, 0.5],
            scale=np.float32(0.125),
            scalars=np.array([0.1]),
        )
        g = (first + np.float32(0.5) * second) * np.float32(0.125)
        accumulator = accumulator + g * g
        w = w - np.float32(0.1) * g / np.sqrt(accumulator)
        np.testing.assert_array_equal(dense.vector, w)


@pytest.mark.parametrize("dense_size", [0, 1, 1024, 1500, 5000])
@pytest.mark.parametrize("optimizer", OPTIMIZERS, ids=lambda o: o.type)
def test_a_sole_gradient_is_applied_where_it_lies_as_if_it_were_summed(
    dense_size: int, optimizer: Optimizer
) -> None:
    rng = np.random.default_rng(3)
    alone, summed = (DenseBlocks(spec(dense_size, 1, optimizer), 0) for _ in range(2))
    zeros = contribution(np.zeros(dense_size, np.float32))
    for step in range(3):
        gradient = contribution(rng.normal(size=dense_size).astype(np.float32))
        before = gradient.dense.copy()
        how = {
            "scale": np.float32(0.3),
            "scalars": np.array(step_scalars(optimizer, learning_rate=0.1, step=step)),
        }
        alone.apply([gradient], [1.0], **how)
        summed.apply([gradient, zeros], [1.0, 1.0], **how)
        assert gradient.dense.tobytes() == before.tobytes()

    assert alone.rows.tobytes() == summed.rows.tobytes()


def test_padding_stays_as_it_was() -> None:
    _, rows = train(1500, 1, Adagrad(initial_accumulator=0.5))

    padding = 2 * BLOCK_SIZE - 1500
    assert (rows[1, BLOCK_SIZE - padding : BLOCK_SIZE] == 0).all()
    assert (rows[1, -padding:] == 0.5).all()


@pytest.mark.parametrize("optimizer", OPTIMIZERS, ids=lambda o: o.type)
@pytest.mark.parametrize("dense_size", [10, 3000])
def test_a_vector_is_a_copy(dense_size: int, optimizer: Optimizer) -> None:
    """A reply is sent while the next step may be applied."""
    dense = DenseBlocks(spec(dense_size, 1, optimizer), 0)
    dense.initialize(np.ones(dense_size, np.float32))

    dense.vector[:] = 7

    assert (dense.vector == 1).all()


def test_rows_are_restored_with_their_slots() -> None:
    _, rows = train(1500, 1, AdamAsync())
    dense = DenseBlocks(spec(1500, 1, AdamAsync()), 0)

    dense.restore(rows)

    assert dense.rows.tobytes() == rows.tobytes()
    with pytest.raises(ValueError, match="dense blocks must have shape"):
        dense.restore(rows[:1])


def test_a_negative_number_of_parameters_is_refused() -> None:
    with pytest.raises(ValueError, match="dense_size must be >= 0, got -1"):
        spec(-1, 1, Sgd())


@pytest.mark.parametrize("num_shards", [1, 2, 3])
@pytest.mark.parametrize("block", [1, 600])
def test_a_sum_that_is_not_finite_leaves_its_block_as_it_is_on_any_number_of_shards(
    num_shards: int, block: int
) -> None:
    size, huge = (block + 2) * BLOCK_SIZE, np.float32(3e38)
    store = spec(size, num_shards, Adagrad())
    gradient = np.ones(size, np.float32)
    gradient[block * BLOCK_SIZE + 5] = huge  # finite, but not twice that
    parts = []
    left_out = 0
    for shard in range(num_shards):
        part = slice(*store.routing.dense_range(shard))
        dense = DenseBlocks(store, shard)
        dense.initialize(np.zeros(part.stop - part.start, np.float32))
        batches = [contribution(gradient[part].copy())] * 2
        scalars = np.array(step_scalars(Adagrad(), learning_rate=0.1, step=0))
        dense.apply(batches, [1.0, 1.0], scale=np.float32(0.5), scalars=scalars)
        parts.append(dense.rows)
        left_out += dense.num_non_finite
    rows = np.concatenate(parts)

    assert left_out == 1
    assert np.isfinite(rows).all()
    assert not rows[block, :BLOCK_SIZE].any(), "the parameters of that block have not moved"
    assert (rows[block, BLOCK_SIZE:] == rows[block, BLOCK_SIZE]).all(), "nor have its slots"
    assert (np.delete(rows, block, axis=0)[:, :BLOCK_SIZE] < 0).all()
