"""A shard with its sockets: everything a parameter server does, but for being a Ray actor."""

import os
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from embedding.spec.tiers import Tiers
from ps.checkpoint.cut import CutWriter
from ps.checkpoint.digest import BucketDigests, block_digests
from ps.checkpoint.manifest import CheckpointError, FileEntry
from ps.checkpoint.pace import Pace
from ps.checkpoint.read import CheckpointReader
from ps.checkpoint.restore import MovedDense, start_shard_from
from ps.checkpoint.write import Compression, write_shard
from ps.messages.records import Record
from ps.net.sockets import Address, connect
from ps.server.data_plane import DataPlane
from ps.server.figures import ServerFigures, TableFigures
from ps.server.journal_sender import CopyError, JournalSender
from ps.server.moving import Moving, TakenIn
from ps.server.read_write_lock import ReadWriteLock
from ps.server.warmup import warm_up
from ps.shard.evicted_keys import EvictedRuns
from ps.shard.facts import ShardFacts
from ps.shard.shard import Shard
from ps.shard.side_by_side import Threads
from ps.spec import StoreSpec
from runtime.memory import peak_rss_bytes
from runtime.process_figures import ProcessFigures


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerSetup:
    """What a parameter server is told when it starts.

    Args:
        store: tables and dense parameters of the job.
        tiers: by table, where values are that memory is not to hold.
        index: number of the shard.
        secret: that peers must prove to know.
        max_contributions, max_buffer_bytes, always_buffered: limits of the gradient buffer.
        max_reply_bytes: of replies to pulls that are made and not yet written.
        compress: whether replies are compressed.
        lease_seconds: for so long its coordinator may be silent, see `DataPlane`; None: for ever.
        any_float_mode: whether records are applied in an unusual float mode too.
        counts_loads: whether it counts what each bucket is asked for.
        dies_at_step: the process kills itself, on purpose, once the shard has reached that step.
    """

    store: StoreSpec
    index: int
    secret: bytes = field(repr=False)
    max_contributions: int
    max_buffer_bytes: int
    tiers: Mapping[str, Tiers] = field(default_factory=dict)
    always_buffered: int = 0
    max_reply_bytes: int = 1 << 28
    compress: bool = False
    lease_seconds: float | None = None
    any_float_mode: bool = False
    counts_loads: bool = False
    dies_at_step: int | None = None


@dataclass(frozen=True, slots=True)
class ShardCut:
    """What a shard has written of a checkpoint.

    Args:
        files: for the manifest.
        tables: the digest of each of the shard's buckets, by table: uint8[buckets, 32].
        blocks: the digest of each of its dense blocks.
    """

    files: list[FileEntry]
    tables: dict[str, npt.NDArray[np.uint8]]
    blocks: list[bytes]


class ShardServer:
    """Comes up fenced: it refuses pulls and pushes until it is initialised or restored."""

    def __init__(self, setup: ServerSetup, *, node_id: str) -> None:
        warm_up(setup.store, setup.tiers)
        self._setup = setup
        self._node_id = node_id
        self._lock = ReadWriteLock()
        self._ended = threading.Event()
        self._failure: BaseException | None = None
        self._updates = Threads(2)
        self._shard = Shard(
            setup.store,
            setup.index,
            max_contributions=setup.max_contributions,
            max_buffer_bytes=setup.max_buffer_bytes,
            always_buffered=setup.always_buffered,
            run_all=self._updates,
            counts_loads=setup.counts_loads,
            tiers=setup.tiers,
        )
        self._plane = DataPlane(
            self._shard,
            lock=self._lock,
            secret=setup.secret,
            compress=setup.compress,
            max_reply_bytes=setup.max_reply_bytes,
            on_error=self._fail,
            lease_seconds=setup.lease_seconds,
            any_float_mode=setup.any_float_mode,
            dies_at_step=setup.dies_at_step,
        )
        self._sender: JournalSender | None = None
        self._moving = Moving(self._shard, self._lock.exclusive)
        self._cpu_seconds_before = time.process_time()
        self._pace = Pace()
        self._hurried_step = -1

    def address(self) -> Address:
        return self._plane.listener.address(self._node_id)

    def open_network(self, host: str) -> Address:
        """Listen on this node's address too, for peers on other nodes."""
        self._plane.listener.open_network(host)
        return self.address()

    def initialize(
        self,
        recovery_epoch: int,
        dense: npt.NDArray[np.float32],
        store: StoreSpec | None = None,
    ) -> None:
        """Start a new job with empty tables and these dense parameters.

        Args:
            store: by whose routing the shard goes from now on; None: as before.
        """
        with self._lock.exclusive():
            self._moving.give_up()
            if store is not None:
                self._shard.fence()
                self._shard.go_by(store)
            self._shard.initialize(recovery_epoch, dense=dense)
            self._plane.hand_back()

    def start_from(
        self,
        recovery_epoch: int,
        checkpoint: str,
        *,
        goes_on: bool = False,
        moved: MovedDense | None = None,
        adapt: bool = False,
        store: StoreSpec | None = None,
    ) -> None:
        """Give up what the shard holds, and begin with its part of a checkpoint.

        See `start_shard_from`. Where that fails the shard holds nothing and is fenced.

        Args:
            store: by whose routing the shard goes from now on; None: as before.
        """
        with self._lock.exclusive():
            self._drop_sender()
            self._moving.give_up()
            # Else there would be room for two models needed.
            self._shard.fence()
            if store is not None:
                self._shard.go_by(store)
            start_shard_from(
                self._shard,
                CheckpointReader(checkpoint),
                recovery_epoch=recovery_epoch,
                goes_on=goes_on,
                moved=moved,
                adapt=adapt,
            )
            self._plane.hand_back()

    # Another coordinator ----------------------------------------------------------------------

    def leave(self) -> ShardFacts:
        """Take nothing more of this recovery epoch; return what the shard has seen of it."""
        with self._lock.exclusive():
            facts = self._shard.leave()
            self._plane.hand_back()
            return facts

    def log_from(self, step: int) -> tuple[Record, ...]:
        """Return the records that the shard logs, from a step on."""
        with self._lock.shared():
            return self._shard.log_from(step)

    def catch_up(self, records: tuple[Record, ...]) -> ShardFacts:
        """Apply what another shard has logged; raises RuntimeError, see `Shard.catch_up`."""
        with self._lock.exclusive():
            return self._shard.catch_up(records)

    def enter(self, recovery_epoch: int) -> None:
        """Go on in another recovery epoch with what the shard holds, at its step."""
        with self._lock.exclusive():
            self._drop_sender()
            self._moving.give_up()
            self._shard.enter(recovery_epoch, step=self._shard.step)
            self._plane.hand_back()
        self._moving.drop_others()

    # Another routing --------------------------------------------------------------------------
    # Its order: the shard takes in what a cut has of the buckets that come to it, then what later
    # cuts have of them, then all stand still, and it goes by the new routing.

    def take_in(self, store: StoreSpec, checkpoint: str) -> TakenIn:
        """Take in what a cut has of the buckets that come to the shard, see `Moving.take_in`.

        Args:
            store: with the routing by which the shard will go.
            checkpoint: lies on the one of the call before, if there was one.

        Raises:
            CheckpointError, OSError: it can't be read, or does not lie on that one.
        """
        return self._moving.take_in(store, checkpoint)

    def go_by(self, recovery_epoch: int, store: StoreSpec, checkpoint: str, step: int) -> bool:
        """Go by another routing, in another recovery epoch, at a step at which all stand still.

        Args:
            checkpoint: of that step.

        Returns:
            whether the shard had all for it; else it has begun with the checkpoint.
        """
        with self._lock.exclusive():
            self._drop_sender()
            if not self._shard.fenced:
                self._shard.leave()
            ready = self._moving.go_by(store, step)
            if ready:
                self._shard.enter(recovery_epoch, step=step)
                self._plane.hand_back()
        if not ready:
            self.start_from(recovery_epoch, checkpoint, goes_on=True, store=store)
        self._moving.drop_others()
        return ready

    def stay(self) -> None:
        """Take nothing in any more, as the routing stays; what came is dropped."""
        with self._lock.exclusive():
            self._moving.give_up()
        self._moving.drop_others()

    # Another copy -----------------------------------------------------------------------------
    # Its order: the shard keeps a journal, a cut is taken and written, the copy begins with it, and
    # is sent what came since; once that is little they all enter the next recovery epoch.

    def keep_journal(self, max_bytes: int) -> None:
        """Keep what comes after the next cut, for a copy; see `Shard.keep_journal`."""
        with self._lock.exclusive():
            self._drop_sender()
            self._shard.keep_journal(max_bytes)

    def drop_journal(self) -> None:
        """Keep nothing any more; a copy that is being made is given up."""
        with self._lock.exclusive():
            self._drop_sender()
            self._shard.drop_journal()

    def copy_from(self, step: int) -> tuple[EvictedRuns, ...]:
        """Return what a copy that begins with the cut of a step has to know beside it.

        Raises:
            RuntimeError: see `Shard.copy_from`.
        """
        with self._lock.exclusive():
            return self._shard.copy_from(step)

    def begin_copy(
        self, recovery_epoch: int, checkpoint: str, evicted: tuple[EvictedRuns, ...]
    ) -> None:
        """Begin as a copy of a shard that goes on, with a cut of it; see `start_from`.

        Args:
            evicted: what `copy_from` of the other copy gave.
        """
        self.start_from(recovery_epoch, checkpoint, goes_on=True)
        with self._lock.exclusive():
            self._shard.take_evicted(evicted)

    def send_journal(self, address: Address) -> int:
        """Send a copy all that came since its cut, from now on; return once it lacks little.

        Returns:
            the step that the copy has reached.

        Raises:
            CopyError: it can't be brought to where the shard is.
        """
        with self._lock.exclusive():
            self._drop_sender()
            if self._shard.journal is None:
                raise CopyError(f"shard {self._setup.index} keeps nothing for a copy")
            sender = self._sender = JournalSender(
                self._shard,
                self._lock,
                lambda: connect(
                    address,
                    node_id=self._node_id,
                    secret=self._setup.secret,
                    name=f"shard {self._setup.index}",
                ),
            )
        return sender.wait_until_near()

    def finish_journal(self, seconds: float) -> int:
        """Wait until a copy has all that the shard has, which takes no more records.

        Returns:
            the step that both are at.

        Raises:
            CopyError: it does not get there in time.
        """
        if self._sender is None:
            raise CopyError(f"shard {self._setup.index} sends nothing to a copy")
        return self._sender.wait_until_level(seconds=seconds)

    def _drop_sender(self) -> None:
        if self._sender is not None:
            self._sender.close()
            self._sender = None

    # Checkpoints ------------------------------------------------------------------------------

    def write_checkpoint(self, directory: str, step: int) -> ShardCut:
        """Write this shard's files; the caller writes the manifest.

        Pulls and pushes are answered meanwhile; no record is applied, so all is of one step.

        Raises:
            CheckpointError: the shard is at another step than the caller wants to write.
        """
        with self._lock.shared():
            self._shard.check_alive()
            if self._shard.step != step:
                raise CheckpointError(
                    f"shard {self._setup.index} is at step {self._shard.step}, the checkpoint is of"
                    f" step {step}: records must be held while it is written"
                )
            routing, index = self._shard.routing, self._shard.index
            span = routing.bucket_span(index)
            own = routing.buckets_of(index) - span[0]
            digests = {t.spec.name: BucketDigests(span) for t in self._shard.tables}
            files = write_shard(directory, self._shard, digests=digests)
            return ShardCut(
                files,
                {name: digest.digests()[own] for name, digest in digests.items()},
                block_digests(self._shard.dense),
            )

    def write_cut(
        self,
        directory: str,
        step: int,
        *,
        changed_only: bool,
        compression: Compression = "none",
        seconds: float = 0.0,
    ) -> list[FileEntry]:
        """Write what the shard has frozen, while it goes on; the caller writes the manifest.

        Whatever comes of it, nothing of the shard is frozen afterwards.

        Args:
            seconds: over which it is spread, see `Pace`.

        Raises:
            CheckpointError: what is frozen is not what the caller wants to write.
            OSError: a file could not be written.
            RuntimeError: it was frozen again meanwhile, or entered another recovery epoch.
        """
        self._pace = pace = Pace(seconds)
        if self._hurried_step == step:
            pace.hurry()
        with self._lock.shared():
            frozen = self._shard.frozen
        if frozen is None or (frozen.step, frozen.changed_only) != (step, changed_only):
            has = "nothing" if frozen is None else _described(frozen.step, frozen.changed_only)
            raise CheckpointError(
                f"shard {self._setup.index} has frozen {has}, the cut is"
                f" {_described(step, changed_only)}"
            )
        try:
            writer = CutWriter(
                directory,
                self._shard.spec,
                self._setup.index,
                locked=self._lock.shared,
                changed_only=changed_only,
                compression=compression,
                pace=pace,
            )
            return writer.write(frozen.tables, frozen.dense)
        finally:
            with self._lock.exclusive():
                if self._shard.frozen is frozen:
                    self._shard.thaw()

    def hurry_cut(self, step: int) -> None:
        """Write the cut of a step as fast as it goes from here on; it may not have begun."""
        self._hurried_step = step
        self._pace.hurry()

    def stats(self) -> ServerFigures:
        """Return what reports show of a server."""
        with self._lock.shared():
            counts = self._shard.counts
            return ServerFigures(
                step=self._shard.step,
                tables={
                    table.spec.name: TableFigures(
                        rows=table.num_own,
                        unadmitted=table.num_unadmitted,
                        evicted=table.num_evicted,
                        non_finite=table.num_non_finite,
                        bytes=table.memory()["total"],
                        tiers=table.tiers(),
                    )
                    for table in self._shard.tables
                },
                dense_non_finite=self._shard.dense.num_non_finite,
                contributions_superseded=counts.contributions_superseded,
                gradients_of_evicted_keys=counts.gradients_of_evicted_keys,
                process=ProcessFigures(
                    peak_rss_bytes=peak_rss_bytes(),
                    bytes_sent=self._plane.bytes_sent,
                    bytes_received=self._plane.bytes_received,
                    cpu_seconds=time.process_time() - self._cpu_seconds_before,
                    stage_seconds=self._plane.stage_seconds(),
                ),
                pid=os.getpid(),
                node=self._node_id,
            )

    def bucket_loads(self) -> npt.NDArray[np.int64]:
        """Return int64[4096], the load of each bucket since the server began, see `BucketLoads`.

        Raises:
            RuntimeError: it does not count them.
        """
        with self._lock.shared():
            if self._shard.loads is None:
                raise RuntimeError("the server was not told to count what buckets are asked for")
            return self._shard.loads.values.copy()

    def watch(self) -> None:
        """Block until a message fails inside the shard, then raise that; or until it is closed."""
        self._ended.wait()
        if self._failure is not None:
            raise self._failure

    def close(self) -> None:
        self._drop_sender()
        self._moving.close()
        self._ended.set()
        self._pace.hurry()
        self._plane.close()
        with self._lock.exclusive():  # a message that came before may be under way
            self._updates.close()

    def _fail(self, error: BaseException) -> None:
        self._failure = error
        self._ended.set()


def _described(step: int, changed_only: bool) -> str:
    return f"{'what changed until' if changed_only else 'all of'} step {step}"
