"""A shard's dense parameters: fixed-size blocks, each a row with its optimizer slots beside it."""

from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import numpy.typing as npt
from numba import njit

from embedding.kernels.finite import all_finite
from embedding.optimizers.rule import rule_for
from ps.messages.pull_push import Contribution
from ps.routing import BLOCK_SIZE
from ps.shard.merge import add_weighted
from ps.spec import StoreSpec

# Sums of so many blocks stay in a cache until they are used, and copies of so many in a nearer one.
_SUMMED_AT_ONCE = 512
_COPIED_AT_ONCE = 32


class DenseBlocks:
    """Dense parameters of one shard.

    The same kernels update a block and a table row; both are vector and slots side by side.

    Attributes:
        rows: float32[blocks, BLOCK_SIZE + sum of the slots' widths].
        first_block: number of the first block.
        num_non_finite: updates of a block that were left out, see `apply`.
    """

    def __init__(self, spec: StoreSpec, shard: int) -> None:
        self.rule = rule_for(spec.dense_optimizer, sparse=False)
        self.first_block, last = spec.routing.block_range(shard)
        first, stop = spec.routing.dense_range(shard)
        self.size = stop - first
        num_blocks = last - self.first_block
        self.rows = np.zeros((num_blocks, self.rule.row_width(BLOCK_SIZE)), np.float32)
        self.num_non_finite = 0
        self._positions = np.arange(num_blocks)
        self._sum = np.zeros((min(num_blocks, _SUMMED_AT_ONCE), BLOCK_SIZE), np.float32)

    @property
    def vector(self) -> npt.NDArray[np.float32]:
        """The parameters, float32[size], copied."""
        # Copied before it is reshaped: that alone makes a view where the rows have no slots.
        return self.rows[:, :BLOCK_SIZE].copy().reshape(-1)[: self.size]

    def initialize(self, values: npt.NDArray[np.float32]) -> None:
        """Set the parameters, float32[size], and every slot to its initial value."""
        padded = np.zeros(len(self.rows) * BLOCK_SIZE, np.float32)
        padded[: self.size] = values
        self.rows[:, :BLOCK_SIZE] = _as_blocks(padded)
        self.rows[:, BLOCK_SIZE:] = self.rule.initial_slots(BLOCK_SIZE)

    def restore(self, rows: npt.NDArray[np.float32]) -> None:
        """Set parameters and slots, float32[blocks, width], as `rows` had them."""
        if rows.shape != self.rows.shape:
            raise ValueError(f"dense blocks must have shape {self.rows.shape}, got {rows.shape}")
        self.rows[:] = rows

    def take(self, parts: Iterable[tuple[int, npt.NDArray[np.float32]]]) -> None:
        """Take those of its blocks that are among some.

        Args:
            parts: blocks side by side, float32[blocks, width] as `rows`, with the first's number.
        """
        first, end = self.first_block, self.first_block + len(self.rows)
        for start, rows in parts:
            low, high = max(first, start), min(end, start + len(rows))
            if low < high:
                self.rows[low - first : high - first] = rows[low - start : high - start]

    def apply(
        self,
        contributions: Sequence[Contribution],
        weights: Sequence[float],
        *,
        scale: np.float32,
        scalars: npt.NDArray[np.float64],
    ) -> None:
        """Sum the dense gradients left to right and update every block.

        Finite gradients may have a sum that is not. A block where it is stays as it is, and is
        counted: what tables do with rows, and the same for any number of shards.
        """
        for blocks, gradients in self._gradients(contributions, weights):
            positions = self._positions[blocks]
            if not all_finite(gradients):
                finite = np.isfinite(gradients).all(axis=1)
                positions = np.where(finite, positions, -1)
                self.num_non_finite += int(np.count_nonzero(~finite))
            self.rule.update(self.rows, positions, gradients, scale, scalars)

    def after(
        self,
        contributions: Sequence[Contribution],
        *,
        scale: np.float32,
        scalars: npt.NDArray[np.float64],
    ) -> npt.NDArray[np.float32]:
        """Return the parameters that an update would make, float32[size]; changes nothing.

        Any number may run at once, not beside a write. A block where a sum is not finite stays as
        it is.

        Args:
            contributions: at least one.
        """
        values = np.empty(self.size, np.float32)
        weights = [1.0] * len(contributions)
        own = np.empty((min(len(self.rows), _COPIED_AT_ONCE), BLOCK_SIZE), np.float32)
        for blocks, gradients in self._sums(contributions, weights, out=own):
            rows = self.rows[blocks].copy()
            positions = self._positions[: len(rows)]
            if not all_finite(gradients):
                positions = np.where(np.isfinite(gradients).all(axis=1), positions, -1)
            self.rule.update(rows, positions, gradients, scale, scalars)
            part = values[blocks.start * BLOCK_SIZE : blocks.stop * BLOCK_SIZE]
            part[:] = rows[:, :BLOCK_SIZE].reshape(-1)[: part.size]
        return values

    def _gradients(
        self, contributions: Sequence[Contribution], weights: Sequence[float]
    ) -> Iterator[tuple[slice, npt.NDArray[np.float32]]]:
        """Yield all blocks, some at a time, with their summed gradients as `_sums` does."""
        whole = 0
        if len(contributions) == 1 and weights[0] == 1.0:
            # The only gradient is the sum; but its last block may be a part, which needs zeros.
            whole = self.size // BLOCK_SIZE
            yield slice(whole), _as_blocks(contributions[0].dense[: whole * BLOCK_SIZE])
        yield from self._sums(contributions, weights, out=self._sum, first=whole)

    def sums_of_squares(
        self,
        contributions: Sequence[Contribution],
        weights: Sequence[float],
        *,
        scale: np.float32,
    ) -> npt.NDArray[np.float64]:
        """Return each block's part of the squared norm of the dense gradient, float64[blocks].

        The gradient is the sum that `apply` makes, times `scale`, in float32; its squares are
        added in float64 in the order of the parameters. Changes no parameter and no slot.
        """
        sums = np.empty(len(self.rows), np.float64)
        for blocks, gradients in self._gradients(contributions, weights):
            _add_squares(gradients, scale, sums[blocks])
        return sums

    def _sums(
        self,
        contributions: Sequence[Contribution],
        weights: Sequence[float],
        *,
        out: npt.NDArray[np.float32],
        first: int = 0,
    ) -> Iterator[tuple[slice, npt.NDArray[np.float32]]]:
        """Yield the blocks from the first one on, some at a time, and their summed gradients.

        So a sum is used while it is in the cache.

        Args:
            out: float32[n, BLOCK_SIZE], where the sums of so many blocks lie until the next ones.
        """
        for start in range(first, len(self.rows), max(len(out), 1)):
            gradients = out[: len(self.rows) - start]
            begin, end = start * BLOCK_SIZE, (start + len(gradients)) * BLOCK_SIZE
            total = gradients.reshape(-1)
            size = min(end, self.size) - begin
            _add_up(contributions, weights, slice(begin, begin + size), out=total[:size])
            total[size:] = 0
            yield slice(start, start + len(gradients)), gradients


def _add_up(
    contributions: Sequence[Contribution],
    weights: Sequence[float],
    part: slice,
    *,
    out: npt.NDArray[np.float32],
) -> None:
    """Sum a part of dense gradients, times their weights, from left to right."""
    if not contributions:
        out[:] = 0
        return
    # A sum starts with its first term: one pass less.
    np.multiply(contributions[0].dense[part], np.float32(weights[0]), out=out)
    for contribution, weight in zip(contributions[1:], weights[1:], strict=True):
        add_weighted(out, contribution.dense[part], np.float32(weight))


def _as_blocks(values: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    return values.reshape(-1, BLOCK_SIZE)


@njit(cache=True, nogil=True)
def _add_squares(gradients, scale, sums):  # type: ignore[no-untyped-def]
    """sums[i] = sum over c of (gradients[i, c] * scale)^2, from left to right."""
    for i in range(gradients.shape[0]):
        total = 0.0
        for c in range(gradients.shape[1]):
            g = np.float64(gradients[i, c] * scale)
            total += g * g
        sums[i] = total
