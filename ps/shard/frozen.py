"""A shard as it was at one step, while it goes on."""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from embedding import EmbeddingVariable
from embedding.table.frozen import FrozenTable
from ps.messages.records import Freeze
from ps.shard.dense import DenseBlocks


@dataclass(frozen=True, slots=True, eq=False)
class FrozenShard:
    """What a shard held after a step, for whoever writes it.

    Args:
        step: k, the next one that the shard would apply.
        recovery_epoch: of the step.
        changed_only: whether the tables are what had changed since the freeze before.
        tables: in the order of the store; read with the shard held against changes, see there.
        dense: float32[blocks, width], parameters and slots, all of them; a copy.
    """

    step: int
    recovery_epoch: int
    changed_only: bool
    tables: tuple[FrozenTable, ...]
    dense: npt.NDArray[np.float32]

    @classmethod
    def of(
        cls, message: Freeze, tables: Iterable[EmbeddingVariable], dense: DenseBlocks
    ) -> "FrozenShard":
        """Freeze tables and dense blocks as a message wants it."""
        frozen = tuple(table.freeze(changed_only=message.changed_only) for table in tables)
        return cls(
            message.step, message.recovery_epoch, message.changed_only, frozen, dense.rows.copy()
        )

    def close(self) -> None:
        """Give up what was not read of it; with the shard held against changes."""
        for table in self.tables:
            table.close()


def count_as_saved(tables: Iterable[EmbeddingVariable]) -> None:
    """Say of tables that they hold what a checkpoint has, no more and no less.

    So the first cut may be a delta that lies on it: nothing counts as changed, and what is removed
    from now on is remembered.
    """
    for table in tables:
        table.freeze(changed_only=False).close()
