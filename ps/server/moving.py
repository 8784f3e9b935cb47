"""The part of a server in which buckets come to it and leave it, while its shard goes on."""

import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass

from ps.checkpoint.files import CheckpointFiles
from ps.checkpoint.incoming import Incoming
from ps.checkpoint.read import CheckpointReader
from ps.routing import ranges_without
from ps.shard.shard import Shard
from ps.spec import StoreSpec
from runtime.places import Place

# Between two times at which some rows are removed: others wait for the lock.
PAUSE_SECONDS = 0.005


@dataclass(frozen=True, slots=True)
class TakenIn:
    """What a server has put into its tables from a cut: its step, and rows with their bytes."""

    step: int
    rows: int
    nbytes: int


class Moving:
    """Takes buckets in before the shard goes by the routing that gives them, and drops others.

    Args:
        shard: of the server.
        exclusive: holds it against everything else.
    """

    def __init__(self, shard: Shard, exclusive: Callable[[], AbstractContextManager[None]]) -> None:
        self._shard = shard
        self._exclusive = exclusive
        self._incoming: Incoming | None = None
        self._known: dict[Place, CheckpointFiles] = {}  # that were opened for it
        self._dropping: threading.Thread | None = None
        self._closing = False

    def take_in(self, store: StoreSpec, checkpoint: str) -> TakenIn:
        """Take what a cut has of the buckets that come, or of what changed since the cut before.

        Args:
            store: with the routing by which the shard will go.

        Raises:
            CheckpointError, OSError: the cut can't be read; nothing that counts has changed.
        """
        incoming = self._incoming
        if incoming is None or incoming.store.routing != store.routing:
            incoming = self._incoming = self._begun(store)
            self._known = {}
        if not self._is_for_these_tables(incoming):
            raise RuntimeError("the shard has begun anew while buckets came to it")
        before = incoming.rows
        nbytes = incoming.read(CheckpointReader(checkpoint, self._known))
        return TakenIn(incoming.step, incoming.rows - before, nbytes)

    def _begun(self, store: StoreSpec) -> Incoming:
        shard, index = self._shard, self._shard.index
        coming, kept = store.routing.buckets == index, (0, 0)
        if not shard.fenced:
            coming &= shard.routing.buckets != index
            kept = shard.routing.block_range(index)
        self.finish_dropping()
        with self._exclusive():
            tables = shard.take_in()
        blocks = ranges_without(store.routing.block_range(index), kept)
        return Incoming(tables, coming, blocks, store, locked=self._exclusive)

    def go_by(self, store: StoreSpec, step: int) -> bool:
        """Have the shard go by a routing; return whether it has all that it needs for it.

        Else it is to begin with a checkpoint. The lock is held exclusively.

        Args:
            step: at which the shard is to be.
        """
        incoming, self._incoming = self._incoming, None
        if incoming is None or incoming.store != store:
            return False
        is_new = self._shard.fenced
        if incoming.step != step or not (is_new or self._shard.step == step):
            return False
        if not self._is_for_these_tables(incoming):
            return False
        before = self._shard.dense
        self._shard.go_by(store)
        own = [] if is_new else [(before.first_block, before.rows)]
        self._shard.dense.take(own + incoming.dense)
        return True

    def _is_for_these_tables(self, incoming: Incoming) -> bool:
        both = zip(self._shard.tables, incoming.tables, strict=False)
        return all(mine is its for mine, its in both)

    def give_up(self) -> None:
        """Take nothing in any more; what came is dropped. The lock is held exclusively."""
        incoming, self._incoming = self._incoming, None
        if incoming is None:
            return
        incoming.given_up = True
        if self._shard.fenced:
            self._shard.drop(self._shard.tables)  # so that what begins anew begins with nothing

    def drop_others(self) -> None:
        """Begin to remove rows of buckets that the shard does not have, beside all else."""
        if self._dropping is None or not self._dropping.is_alive():
            self._dropping = threading.Thread(target=self._drop, name="drop", daemon=True)
            self._dropping.start()

    def finish_dropping(self) -> None:
        """Remove them at once; the lock is not held."""
        if self._dropping is not None:
            self._dropping.join()
        for _ in self._drops():
            pass

    def close(self) -> None:
        self._closing = True
        if self._dropping is not None:
            self._dropping.join()

    def _drop(self) -> None:
        pause = threading.Event()
        for _ in self._drops():
            if self._closing:
                return
            pause.wait(PAUSE_SECONDS)

    def _drops(self) -> Iterator[None]:
        """Yield after each time that some rows were removed."""
        dropping = self._shard.drop_others()
        while True:
            with self._exclusive():
                try:
                    next(dropping)
                except StopIteration:
                    return
            yield
