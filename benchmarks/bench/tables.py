"""Tables to measure, through the public calls of an embedding variable alone."""

from collections import deque
from dataclasses import replace
from functools import cached_property
from itertools import count

import numpy as np

from bench.keys import Int64Array, Size, deduplicated, in_order, keys_of, uniform, zipf
from bench.limits import BareRows
from bench.lines import MEGA, Times
from embedding import EmbeddingVariable, TableSpec
from embedding.spec.initial_values import Initializer, Uniform, Zeros
from embedding.spec.table import ValueDtype
from ps.client.deduplicate import Deduplicated

ZIPF_BATCHES = 64
_LEARNING_RATE = 0.02


class Table:
    """An embedding variable with Adagrad, and the buffers of one thread that works on it."""

    def __init__(
        self,
        size: Size,
        *,
        zeros: bool = False,
        name: str = "bench",
        value_dtype: ValueDtype = "float32",
    ) -> None:
        initializer: Initializer = Zeros() if zeros else Uniform()
        self.spec = TableSpec(
            name=name,
            dim=size.dim,
            initializer=initializer,
            value_dtype=value_dtype,
            track_usage=size.track_usage,
            seed=size.seed,
        )
        self.rows = EmbeddingVariable(self.spec)
        self._values = np.empty((size.batch, size.dim), np.float32)
        self._admitted = np.empty(size.batch, np.uint8)
        self._gradients = np.full((size.batch, size.dim), 0.01, np.float32)
        self._ones = np.ones(size.batch, np.int64)
        self._steps = count(1)

    def pull(self, batches: list[Int64Array]) -> None:
        """Pull each batch of keys."""
        for keys in batches:
            n = keys.size
            self.rows.pull(keys, None, self._values[:n], self._admitted[:n])

    def apply(self, batches: list[Int64Array], times: Times | None = None) -> None:
        """Apply a gradient to each batch of distinct keys, each batch a step of its own."""
        for keys in batches:
            if times is None:
                self._apply(keys)
            else:
                times.add(lambda keys=keys: self._apply(keys))  # type: ignore[misc]

    def _apply(self, keys: Int64Array) -> None:
        n = keys.size
        self.rows.apply(
            keys,
            self._ones[:n],
            self._gradients[:n],
            None,
            step=next(self._steps),
            scale=1.0,
            scalars=(_LEARNING_RATE,),
        )


def key_batches(numbers: list[Int64Array]) -> list[Int64Array]:
    """Return the keys of batches of numbers."""
    return [keys_of(batch) for batch in numbers]


def millions(batches: list[Int64Array]) -> float:
    """Return how many million keys the batches hold."""
    return sum(batch.size for batch in batches) / MEGA


def new_keys(size: Size, first: int = 0) -> list[Int64Array]:
    """Return `size.rows` keys in batches, those of the numbers from `first` on."""
    return key_batches(in_order(first, size.rows, size.batch))


def compile_kernels(size: Size) -> None:
    """Use a small table once in every way, so that no figure has a compilation in it."""
    few = replace(size, rows=4 * size.batch, repeats=1)
    table = Table(few)
    table.apply(new_keys(few))
    table.pull(new_keys(few, first=few.rows // 2))
    Table(few).rows.import_rows(table.rows.export())
    frozen = table.rows.freeze(changed_only=False)
    table.apply(new_keys(few)[:1])
    deque(frozen.rows(few.batch), maxlen=0)
    table.rows.evict(1 << 40 if size.track_usage else 0)


class Setting:
    """What several figures share, made when the first of them asks."""

    def __init__(self, size: Size) -> None:
        self.size = size

    @cached_property
    def resident(self) -> Table:
        """A table with the keys of all numbers below `size.rows`."""
        table = Table(self.size)
        table.apply(new_keys(self.size))
        return table

    @cached_property
    def bare(self) -> BareRows:
        """A bare array with as many rows."""
        return BareRows(self.size)

    @cached_property
    def uniform(self) -> list[Int64Array]:
        return uniform(self.size)

    @cached_property
    def zipf(self) -> list[Int64Array]:
        return zipf(self.size, ZIPF_BATCHES)

    @cached_property
    def zipf_deduplicated(self) -> list[Deduplicated]:
        return deduplicated(self.zipf)
