"""A training step of the embeddings alone, ours and torch's, on the same ids in the same process.

Torch: `nn.EmbeddingBag(mode="sum", sparse=True)` on ids below the number of rows, forward,
backward from a given gradient, `optim.Adagrad.step` on the sparse gradient. No hashing: ids are
row numbers, the rows were allocated before.

Ours: duplicates out, pull, sum into the pooled input of 26 features, gradients summed per key,
apply. Keys are hashed, any int64 would do.

Both: one thread, batches of samples x 26 ids, one id a bag, 16 values or as `--dim` says, Adagrad
from the same vectors and accumulators; afterwards the vectors are compared.
"""

import importlib
from collections.abc import Callable
from functools import partial
from itertools import count
from statistics import median
from typing import Any

import numpy as np
import numpy.typing as npt

from bench.keys import Int64Array, deduplicator, keys_of, zipf_numbers
from bench.lines import alternate, emit, emit_rate
from bench.tables import Setting, key_batches, millions
from embedding import EmbeddingVariable, TableEntries, TableSpec
from embedding.pooling import pool, pool_gradient

Float32Array = npt.NDArray[np.float32]

FEATURES = 26
_BATCHES = 24
_LEARNING_RATE, _ACCUMULATOR = 0.02, 0.1


def beside_torch(setting: Setting) -> None:
    """Compare with torch where it is installed; else say so."""
    try:
        torch = importlib.import_module("torch")
    except ImportError:
        emit("torch", None, "", error="torch is not installed: pip install '.[bench]'")
        return
    torch.set_num_threads(1)
    size = setting.size
    rng = size.rng()
    per_feature, samples = size.rows // FEATURES, size.batch // FEATURES
    vectors = rng.uniform(-0.05, 0.05, (per_feature * FEATURES, size.dim)).astype(np.float32)
    gradient = rng.normal(0, 0.01, (samples, FEATURES * size.dim)).astype(np.float32)
    for kind in ("zipf", "uniform"):
        numbers = _numbers(kind, per_feature, samples, rng)
        for tables in (1, FEATURES):
            ours = Ours(vectors, gradient, tables)
            theirs = Theirs(torch, vectors, gradient, tables)
            keys = key_batches(numbers)
            inputs = [theirs.inputs(batch) for batch in numbers]
            times, torch_times = alternate(
                size.repeats, partial(_each, ours.step, keys), partial(_each, theirs.step, inputs)
            )
            difference = np.abs(ours.vectors(keys[0]) - theirs.vectors(inputs[0])).max()
            emit_rate(
                f"step_{kind}_{tables}_table{'s' if tables > 1 else ''}",
                millions(numbers),
                times,
                "M keys/s",
                limit=torch_times,
                limit_name=f"torch {torch.__version__}",
                target=4.0,
                milliseconds=1e3 * median(times.wall) / _BATCHES,
                torch_milliseconds=1e3 * median(torch_times.wall) / _BATCHES,
                largest_difference=float(difference),
            )


def _each(step: Callable[[Any], None], batches: list[Any]) -> None:
    for batch in batches:
        step(batch)


def _numbers(
    kind: str, per_feature: int, samples: int, rng: np.random.Generator
) -> list[Int64Array]:
    """Return batches int64[26 x samples]; feature f has the numbers from f x per_feature on."""
    draw = zipf_numbers if kind == "zipf" else _uniform_numbers
    drawn = [f * per_feature + draw(per_feature, _BATCHES * samples, rng) for f in range(FEATURES)]
    by_batch = np.stack(drawn).reshape(FEATURES, _BATCHES, samples).transpose(1, 0, 2)
    return list(by_batch.reshape(_BATCHES, -1))


def _uniform_numbers(rows: int, count: int, rng: np.random.Generator) -> Int64Array:
    return rng.integers(0, rows, count)


class Ours:
    """One table for all features, or one for each."""

    def __init__(self, vectors: Float32Array, gradient: Float32Array, tables: int) -> None:
        self._dim = dim = vectors.shape[1]
        self._gradient, self._pooled = gradient, np.empty_like(gradient)
        n = gradient.size // dim
        self._starts = np.linspace(0, n, tables + 1).astype(np.int64)
        self._deduplicate = deduplicator(dim, tables)
        self._flat, self._summed = np.empty(n * dim, np.float32), np.empty(n * dim, np.float32)
        self._admitted = np.empty(n, np.uint8)
        self._steps = count(1)
        self._tables = []
        for part in np.split(np.arange(len(vectors)), tables):
            table = EmbeddingVariable(TableSpec(name=f"t{part[0]}", dim=dim, track_usage=False))
            slots = np.full((part.size, dim), _ACCUMULATOR, np.float32)
            zeros = np.zeros(part.size, np.int64)
            table.import_rows(TableEntries(keys_of(part), zeros, zeros, vectors[part], slots))
            self._tables.append(table)

    def step(self, keys: Int64Array) -> None:
        """Train on one batch of keys, int64[26 x samples], feature after feature."""
        samples = keys.size // FEATURES
        dim = self._dim
        batch = self._deduplicate(keys, self._starts)
        ends = np.cumsum(batch.sizes[0])
        parts = [slice(end - n, end) for end, n in zip(ends, batch.sizes[0], strict=True)]
        flat = self._flat[: dim * batch.keys.size].reshape(-1, dim)
        for table, part in zip(self._tables, parts, strict=True):
            table.pull(batch.keys[part], batch.counts[part], flat[part], self._admitted[part])
        summed = self._summed[: flat.size]
        summed[:] = 0
        for f in range(FEATURES):
            positions = batch.positions[f * samples : (f + 1) * samples]
            pool(self._flat, positions, None, None, self._pooled, f * dim, dim)
            pool_gradient(self._gradient, f * dim, dim, positions, None, None, summed)
        counts, sums, step = (
            batch.counts.astype(np.int64),
            summed.reshape(-1, dim),
            next(self._steps),
        )
        for table, part in zip(self._tables, parts, strict=True):
            table.apply(
                batch.keys[part],
                counts[part],
                sums[part],
                None,
                step=step,
                scale=1.0,
                scalars=(_LEARNING_RATE,),
            )

    def vectors(self, batch: Int64Array) -> Float32Array:
        """Return the vectors of a batch, float32[26 x samples, dim]."""
        parts = np.split(batch, len(self._tables))
        out = []
        for table, keys in zip(self._tables, parts, strict=True):
            out.append(np.empty((keys.size, self._dim), np.float32))
            table.pull(keys, None, out[-1], np.empty(keys.size, np.uint8))
        return np.concatenate(out)


class Theirs:
    """One EmbeddingBag for all features, or one for each."""

    def __init__(
        self, torch: Any, vectors: Float32Array, gradient: Float32Array, tables: int
    ) -> None:
        self._torch, self._num_tables = torch, tables
        self._bags = [
            torch.nn.EmbeddingBag.from_pretrained(
                torch.from_numpy(part.copy()), freeze=False, mode="sum", sparse=True
            )
            for part in np.split(vectors, tables)
        ]
        self._per_table = len(vectors) // tables
        self._optimizer = torch.optim.Adagrad(
            [bag.weight for bag in self._bags],
            lr=_LEARNING_RATE,
            initial_accumulator_value=_ACCUMULATOR,
        )
        dim, samples = vectors.shape[1], len(gradient)
        by_feature = gradient.reshape(samples, FEATURES, dim).transpose(1, 0, 2).reshape(-1, dim)
        self._gradients = [torch.from_numpy(part.copy()) for part in np.split(by_feature, tables)]
        self._offsets = torch.arange(FEATURES * samples // tables)

    def inputs(self, numbers: Int64Array) -> list[Any]:
        """Return the ids of a batch for each table, as tensors."""
        parts = np.split(numbers, self._num_tables)
        return [self._torch.from_numpy(p - t * self._per_table) for t, p in enumerate(parts)]

    def step(self, inputs: list[Any]) -> None:
        """Train on one batch."""
        self._optimizer.zero_grad(set_to_none=True)
        bags = zip(self._bags, inputs, strict=True)
        outputs = [bag(ids, self._offsets) for bag, ids in bags]
        self._torch.autograd.backward(outputs, self._gradients)
        self._optimizer.step()

    def vectors(self, inputs: list[Any]) -> Float32Array:
        """Return the vectors of a batch, float32[26 x samples, dim]."""
        rows = [bag.weight[ids] for bag, ids in zip(self._bags, inputs, strict=True)]
        result: Float32Array = self._torch.cat(rows).detach().numpy()
        return result
