"""A shard's dense parameters: fixed-size blocks, each a row with its optimizer slots beside it."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from embedding.optimizers import rule_for
from ps.merge import add_weighted
from ps.messages import Contribution
from ps.spec import BLOCK_SIZE, StoreSpec


class DenseBlocks:
    """Dense parameters of one shard.

    The same kernels update a block and a table row; both are vector and slots side by side.

    Attributes:
        rows: float32[blocks, BLOCK_SIZE + sum of the slots' widths].
        first_block: number of the first block.
    """

    def __init__(self, spec: StoreSpec, shard: int) -> None:
        self.rule = rule_for(spec.dense_optimizer, sparse=False)
        self.first_block, last = spec.blocks_of(shard)
        first, stop = spec.dense_range(shard)
        self.size = stop - first
        num_blocks = last - self.first_block
        self.rows = np.zeros((num_blocks, self.rule.row_width(BLOCK_SIZE)), np.float32)
        self._positions = np.arange(num_blocks)
        self._sum = np.zeros(num_blocks * BLOCK_SIZE, np.float32)

    @property
    def vector(self) -> npt.NDArray[np.float32]:
        """The parameters, float32[size], copied."""
        # Copied before it is reshaped: that alone makes a view where the rows have no slots.
        return self.rows[:, :BLOCK_SIZE].copy().reshape(-1)[: self.size]

    def initialize(self, values: npt.NDArray[np.float32]) -> None:
        """Set the parameters, float32[size], and every slot to its initial value."""
        self._sum[: self.size] = values
        self.rows[:, :BLOCK_SIZE] = self._sum.reshape(-1, BLOCK_SIZE)
        self._sum[:] = 0
        self.rows[:, BLOCK_SIZE:] = self.rule.initial_slots(BLOCK_SIZE)

    def restore(self, rows: npt.NDArray[np.float32]) -> None:
        """Set parameters and slots, float32[blocks, width], as `rows` had them."""
        if rows.shape != self.rows.shape:
            raise ValueError(f"dense blocks must have shape {self.rows.shape}, got {rows.shape}")
        self.rows[:] = rows

    def apply(
        self,
        contributions: Sequence[Contribution],
        weights: Sequence[float],
        *,
        scale: np.float32,
        scalars: npt.NDArray[np.float64],
    ) -> None:
        """Sum the dense gradients left to right and update every block."""
        total = self._sum[: self.size]
        total[:] = 0
        for contribution, weight in zip(contributions, weights, strict=True):
            add_weighted(total, contribution.dense, np.float32(weight))
        gradients = self._sum.reshape(-1, BLOCK_SIZE)
        self.rule.update(self.rows, self._positions, gradients, scale, scalars)
