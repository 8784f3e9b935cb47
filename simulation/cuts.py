"""Cuts of a simulated job: read piece by piece while it trains, kept in memory, restored."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from embedding.entries import CounterEntries, TableEntries
from embedding.kernels.mixing import buckets_of
from embedding.table.bloom import BloomBlocks
from embedding.table.variable import EmbeddingVariable
from ps.shard.frozen import FrozenShard, count_as_saved
from ps.shard.shard import Shard
from ps.spec import StoreSpec
from scheduler.coordinator.coordinator_state import CoordinatorState
from scheduler.coordinator.cuts import Cut
from simulation.world import World

PIECE_ROWS = 3
PIECE_SECONDS = 0.01

Piece = TableEntries | CounterEntries | BloomBlocks


@dataclass(slots=True)
class KeptTable:
    """What a cut has of a table of one shard: what was removed, and what is there."""

    removed: npt.NDArray[np.int64]
    pieces: list[Piece] = field(default_factory=list)

    def lay_on(self, table: EmbeddingVariable, own: npt.NDArray[np.bool_] | None = None) -> None:
        """Bring a table, as the cut below left it, to what it was at this one.

        Args:
            own: bool[4096], the buckets that are looked at; None: all.
        """
        removed = self.removed if own is None else self.removed[own[buckets_of(self.removed)]]
        if removed.size:
            table.remove(removed)
        for kind, take in (
            (TableEntries, table.import_rows),
            (CounterEntries, table.import_counters),
            (BloomBlocks, table.import_bloom),
        ):
            for piece in self.pieces:
                if isinstance(piece, kind):
                    take(piece if own is None else _own_of(piece, own))  # type: ignore[arg-type]


@dataclass(slots=True)
class KeptCut:
    """A cut that is written.

    Args:
        state: of the coordinator, as JSON.
        below: the cut that a delta lies on; None: it is full.
        tables: by shard; dense: float32[blocks, width], by shard.
        by_block: the shards in the order of these blocks.
    """

    cut: Cut
    state: dict[str, Any]
    below: "KeptCut | None"
    tables: dict[int, list[KeptTable]] = field(default_factory=dict)
    dense: dict[int, npt.NDArray[np.float32]] = field(default_factory=dict)
    by_block: list[int] = field(default_factory=list)

    @property
    def num_deltas(self) -> int:
        """How many deltas lie on one another here."""
        return 0 if self.below is None else 1 + self.below.num_deltas

    def restore(self, shard: Shard, recovery_epoch: int, store: StoreSpec | None = None) -> None:
        """Give a shard its part of the cut, whichever shards had it then.

        Args:
            store: by whose routing it goes from now on; None: as before.
        """
        if store is not None and store.routing != shard.routing:
            shard.fence()
            shard.go_by(store)
        tables = shard.empty_tables()
        self.lay_on(tables, shard.routing.buckets == shard.index)
        shard.dense.restore(self.blocks(shard))
        count_as_saved(tables)
        shard.enter(recovery_epoch, step=self.cut.step, tables=tables)

    def lay_on(self, tables: Sequence[EmbeddingVariable], own: npt.NDArray[np.bool_]) -> None:
        """Fill empty tables with what the cut and all that it lies on have of some buckets."""
        if self.below is not None:
            self.below.lay_on(tables, own)
        for of_shard in self.tables.values():
            for table, kept in zip(tables, of_shard, strict=True):
                kept.lay_on(table, own)

    def blocks(self, shard: Shard) -> npt.NDArray[np.float32]:
        """Return the dense blocks that a shard has by its routing."""
        whole = np.concatenate([self.dense[index] for index in self.by_block])
        return whole[slice(*shard.routing.block_range(shard.index))]


def _own_of(piece: Piece, own: npt.NDArray[np.bool_]) -> Piece:
    if isinstance(piece, BloomBlocks):
        mine = own[piece.buckets]
        return BloomBlocks(piece.buckets[mine], piece.counters[mine])
    return piece.take(np.flatnonzero(own[buckets_of(piece.keys)]))


class CutWriting:
    """The servers write what they have frozen, each at its own pace, while they go on.

    Args:
        below: the newest cut that is written.
        fails: whether a server can't write to its end.
        is_over: whether the job does not want it any more: another recovery epoch has begun.
        written: called with the cut, or with None where it could not be written.
    """

    def __init__(
        self,
        world: World,
        shards: Sequence[Shard],
        cut: Cut,
        state: CoordinatorState,
        *,
        below: KeptCut | None,
        fails: bool,
        is_over: Callable[[], bool],
        written: Callable[[KeptCut | None], None],
    ) -> None:
        self._world = world
        self._is_over, self._written = is_over, written
        self._kept = KeptCut(cut, state.to_json(), below if cut.kind == "delta" else None)
        self._kept.by_block = shards[0].routing.by_block
        self._open = set(range(len(shards)))
        self._fails = world.random.randrange(len(shards)) if fails else None
        for shard in shards:
            frozen = shard.frozen
            assert frozen is not None, f"shard {shard.index} has nothing frozen for {cut}"
            found = frozen.step, frozen.changed_only
            assert found == (cut.step, cut.kind == "delta"), f"{cut} is written, {found} is frozen"
            self._kept.dense[shard.index] = frozen.dense
            tables = [KeptTable(table.removed) for table in frozen.tables]
            self._kept.tables[shard.index] = tables
            self._later(shard.index, _pieces(frozen, tables))

    def _later(self, shard: int, reading: Iterator[None]) -> None:
        seconds = PIECE_SECONDS * self._world.random.random()
        self._world.queue.later(seconds, lambda: self._read(shard, reading))

    def _read(self, shard: int, reading: Iterator[None]) -> None:
        if self._is_over() or not self._open:
            return
        if shard == self._fails and self._world.random.random() < 0.5:
            self._open.clear()
            self._written(None)
        elif next(reading, self) is None:
            self._later(shard, reading)
        else:
            self._open.discard(shard)
            if not self._open:
                self._written(self._kept)


def _pieces(frozen: FrozenShard, tables: Sequence[KeptTable]) -> Iterator[None]:
    """Read a shard's tables, a piece for each `next`."""
    for table, kept in zip(frozen.tables, tables, strict=True):
        for pieces in (table.rows(PIECE_ROWS), table.counters(PIECE_ROWS), table.bloom(1)):
            for piece in pieces:
                kept.pieces.append(piece)
                yield


@dataclass(frozen=True, slots=True, eq=False)
class Snapshot:
    """Everything that a shard holds, by table and sorted, and its dense blocks."""

    arrays: tuple[npt.NDArray[Any], ...]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Snapshot) and all(
            a.dtype == b.dtype and np.array_equal(a, b)
            for a, b in zip(self.arrays, other.arrays, strict=True)
        )


def snapshot_of(tables: Sequence[EmbeddingVariable], dense: npt.NDArray[np.float32]) -> Snapshot:
    """Copy all that tables and dense blocks hold."""
    arrays: list[npt.NDArray[Any]] = [dense.copy()]
    for table in tables:
        rows, counters = table.export(), table.export_counters()
        arrays += [rows.keys, rows.frequency, rows.version, rows.vectors, rows.slots]
        arrays += [counters.keys, counters.frequency, counters.version]
        arrays.append(table.export_bloom().counters)
    return Snapshot(tuple(arrays))
