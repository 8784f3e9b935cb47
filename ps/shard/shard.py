"""The shard: one parameter server's part of a job, as a deterministic state machine.

`handle(message, sender)` returns the replies to send. It knows no Ray, clock, socket or thread.
Pulls never change anything, pushes only buffer, and records are the only writes, applied exactly in
order. A shell that runs it in threads sees to it that nothing else runs beside a write; `answer`
may run beside all that only buffers: pushes, pulls that have to wait, norms.
"""

from collections import deque
from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from embedding.spec.tiers import Tiers
from embedding.table.together import Together
from embedding.table.variable import EmbeddingVariable
from ps.messages.exchange import Refusal, RefusalReason, Reply, Request
from ps.messages.pull_push import ANY_STEP, Contribution, Pull, PullReply, PushReply
from ps.messages.records import (
    Apply,
    ApplyReply,
    DenseNorm,
    DenseNormReply,
    Freeze,
    FreezeReply,
    Record,
)
from ps.shard.ahead import dense_ahead, looks_ahead
from ps.shard.buffer import GradientBuffer
from ps.shard.dense import DenseBlocks
from ps.shard.evicted_keys import EvictedKeys, EvictedRuns, kept_since_pull
from ps.shard.facts import ShardCounts, ShardFacts
from ps.shard.frozen import FrozenShard
from ps.shard.journal import Journal
from ps.shard.loads import BucketLoads
from ps.shard.making import tables_of
from ps.shard.merge import merge
from ps.shard.message_checks import what_does_not_fit
from ps.shard.record_checks import what_is_wrong, what_is_wrong_in_sum
from ps.shard.side_by_side import RunAll, in_turn
from ps.spec import StoreSpec
from runtime.first_steps import FirstSteps


@dataclass(slots=True)
class Outgoing:
    """A reply and whom it is for."""

    to: Hashable
    reply: Reply


class Shard:
    """Tables, dense blocks, gradient buffer and record log of one parameter server.

    A new shard is fenced: it refuses everything until `initialize` gives it its first state. One
    that failed in the middle of a step is dead: some of its tables may have made that step and
    others not, so it refuses everything for ever.

    Args:
        spec: of the whole job.
        index: number of this shard.
        max_contributions, max_buffer_bytes, always_buffered: limits of the gradient buffer; no more
            pulls than contributions may wait.
        run_all: how updates that do not touch each other are run, see `ps.shard.side_by_side`.
        counts_loads: whether it counts what each bucket is asked for.
        tiers: by table, where values are that memory is not to hold.

    Attributes:
        routing: which shard has which part.
        log: the latest records, see `_remember`.
        frozen: the state of the last step at which it was frozen, until the next or another epoch.
        loads: of the buckets, where they are counted.
        journal: what came after that, where another copy is made of it, see `keep_journal`.
        dead: why the shard is dead, None as long as it is not.
    """

    def __init__(
        self,
        spec: StoreSpec,
        index: int,
        *,
        max_contributions: int = 1024,
        max_buffer_bytes: int = 1 << 30,
        always_buffered: int = 0,
        run_all: RunAll = in_turn,
        counts_loads: bool = False,
        tiers: Mapping[str, Tiers] | None = None,
    ) -> None:
        self.spec = spec
        self.index = index
        self._tiers = tiers
        self.tables = self._make_tables()
        self._grouped: Together | None = None
        self.dense = DenseBlocks(spec, index)
        self.buffer = GradientBuffer(
            max_contributions=max_contributions,
            max_bytes=max_buffer_bytes,
            always=always_buffered,
        )
        self.dead: str | None = None
        self.recovery_epoch: int | None = None
        self.routing = spec.routing
        self.step = 0
        self.log: deque[Record] = deque()
        self.frozen: FrozenShard | None = None
        self.journal: Journal | None = None
        self._journal_bytes: int | None = None
        self.counts = ShardCounts()
        self._dims = [table.dim for table in spec.tables]
        self.loads = BucketLoads(self._dims) if counts_loads else None
        self._run_all = run_all
        self._last_cut = 0
        self._first_steps = FirstSteps(remembered=spec.longest_life)
        self._has_left = False
        self._parked: list[tuple[Hashable, Pull]] = []
        self._slots_of = [spec.optimizers.index(table.optimizer) for table in spec.tables]
        self._dense_scalars = spec.optimizers.index(spec.dense_optimizer)
        self._evicted = [EvictedKeys() for _ in spec.tables]

    @property
    def fenced(self) -> bool:
        return self.recovery_epoch is None

    def initialize(
        self, recovery_epoch: int, *, dense: npt.NDArray[np.float32], step: int = 0
    ) -> None:
        """Take a first state, with empty tables, and answer from now on in this recovery epoch."""
        self.check_alive()
        first, last = self.routing.dense_range(self.index)
        if dense.shape != (last - first,):
            raise ValueError(f"dense must have shape ({last - first},), got {dense.shape}")
        self.dense.initialize(dense)
        self.enter(recovery_epoch, step=step, tables=self.empty_tables())

    def fence(self) -> None:
        """Give up all that the shard holds: until it has another state it refuses everything."""
        self.check_alive()
        if not self.fenced:
            self.thaw()
            self.tables, self._grouped = [], None  # before others are made, which may be as large
            self.tables = self._make_tables()
            self.buffer.clear()
            self.log.clear()
            self.drop_journal()
            self.recovery_epoch = None

    def empty_tables(self) -> list[EmbeddingVariable]:
        """Return tables for another state: the shard's own while it has none, else new ones."""
        return self.tables if self.fenced else self._make_tables()

    def _make_tables(self) -> list[EmbeddingVariable]:
        return tables_of(self.spec, self._tiers)

    def drop(self, tables: list[EmbeddingVariable]) -> None:
        """Give up what `empty_tables` gave, of a state that could not be made."""
        if tables is self.tables:
            self.tables = self._make_tables()

    def enter(
        self, recovery_epoch: int, *, step: int, tables: list[EmbeddingVariable] | None = None
    ) -> None:
        """Answer from now on, at `step`, in this recovery epoch; dense parameters were set before.

        What belongs to another history goes: contributions, evictions, records, what was frozen.
        Pulls that wait are told when they are handled again.

        Args:
            tables: that were `empty_tables`, with the rows of the state; None: it keeps its own.
        """
        self.check_alive()
        self.thaw()
        if tables is not None:
            self.tables, self._grouped = tables, None
        self.recovery_epoch = recovery_epoch
        self.step = step
        self._last_cut = 0
        self._first_steps = FirstSteps(remembered=self.spec.longest_life)
        self._has_left = False
        self.buffer.clear()
        self.log.clear()
        self.drop_journal()
        for evicted in self._evicted:
            evicted.clear()

    # Another coordinator ----------------------------------------------------------------------

    def leave(self) -> ShardFacts:
        """Take nothing more from the coordinator of this epoch, which is gone, until `enter`."""
        self.check_alive()
        if self.recovery_epoch is None:
            raise RuntimeError(f"shard {self.index} has no state yet")
        self._has_left = True
        return ShardFacts(
            recovery_epoch=self.recovery_epoch,
            step=self.step,
            log_begins=self.log[0].step if self.log else self.step,
            newest=self.log[-1] if self.log else None,
            resolved=tuple(self.buffer.resolved),
            first_steps=self._first_steps.runs,
        )

    def log_from(self, step: int) -> tuple[Record, ...]:
        """Return the records from a step on, for a shard that lacks them."""
        return tuple(record for record in self.log if record.step >= step)

    def catch_up(self, records: Sequence[Record]) -> ShardFacts:
        """Apply the records that another shard has applied; whose batches this one holds, too.

        Raises:
            RuntimeError: the shard has not left its epoch, or the records are not those it lacks.
        """
        message = Apply(0, self.leave().recovery_epoch, tuple(records))
        (out,) = self._apply(message, None)
        if isinstance(out.reply, Refusal):
            raise RuntimeError(out.reply.text)
        return self.leave()

    # Another copy -----------------------------------------------------------------------------

    def keep_journal(self, max_bytes: int) -> None:
        """Keep, from the next cut on, what a copy that begins with the cut has to handle."""
        self.check_alive()
        self.drop_journal()
        self._journal_bytes = max_bytes

    def drop_journal(self) -> None:
        """Keep nothing for a copy any more."""
        self.journal = self._journal_bytes = None

    def copy_from(self, step: int) -> tuple[EvictedRuns, ...]:
        """A copy has the state of the cut of a step: return what it has to know beside it.

        From now on the journal stays that of this cut.

        Raises:
            RuntimeError: there is no journal from that step on.
        """
        self.check_alive()
        if self.journal is None or self.journal.begins != step:
            raise RuntimeError(f"shard {self.index} keeps nothing from step {step} on for a copy")
        if self.journal.is_over:
            raise RuntimeError(
                f"what shard {self.index} kept from step {step} on for a copy has grown beyond"
                f" {self.journal.max_bytes} bytes (cluster.buffer_bytes)"
            )
        self._journal_bytes = None
        return self.journal.evicted

    def take_evicted(self, evicted: Sequence[EvictedRuns]) -> None:
        """Remember the evicted keys that another copy remembered at the step that this one is at.

        Gradients that were pulled before come late to both, and neither may return their rows.
        """
        for own, runs in zip(self._evicted, evicted, strict=True):
            own.take(runs)

    # Another routing --------------------------------------------------------------------------

    def take_in(self) -> list[EmbeddingVariable]:
        """Return the tables, into which rows of other buckets may be put from now on.

        They count for nothing until the shard goes by a routing that gives it these buckets.
        """
        self.check_alive()
        if not self.fenced:
            self._own_buckets()
        return self.tables

    def go_by(self, spec: StoreSpec) -> None:
        """Have the part that another routing gives; it takes nothing until it enters an epoch.

        Its tables keep all rows: those of buckets that are another shard's from now on count for
        nothing, and are to be dropped. What dense blocks it has by that the caller sets.

        Raises:
            RuntimeError: it has not left its epoch.
        """
        self.check_alive()
        if not (self.fenced or self._has_left):
            raise RuntimeError(f"shard {self.index} is in epoch {self.recovery_epoch}")
        if spec.routing == self.routing:
            return
        self.spec, self.routing = spec, spec.routing
        counted, self.dense = self.dense.num_non_finite, DenseBlocks(spec, self.index)
        self.dense.num_non_finite = counted
        if not self.fenced:
            self._own_buckets()

    def _own_buckets(self) -> None:
        own = self.routing.buckets == self.index
        for table in self.tables:
            table.own(own)

    def drop_others(self, most: int = 1 << 14) -> Iterator[None]:
        """Remove rows of buckets that are other shards', looking at so many with each `next`.

        Between two of them the shard may go on, but take in nothing.
        """
        for table in self.tables:
            yield from table.drop_others(most)

    def check_alive(self) -> None:
        """Raise RuntimeError where the shard is dead: what it holds is of no step."""
        if self.dead is not None:
            raise RuntimeError(f"shard {self.index} is dead: {self.dead}")

    def handle(self, message: Request, sender: Hashable) -> list[Outgoing]:
        """Take one message; return its reply, or nothing where it is a pull that has to wait.

        What has waited is answered when it is handled again, see `take_ready`.
        """
        if isinstance(message, Pull):
            return self._pull(message, sender)
        refusal = self._refuse_early(message)
        if refusal is not None:
            return [Outgoing(sender, refusal)]
        if isinstance(message, Contribution):
            return [Outgoing(sender, self._push(message))]
        if isinstance(message, DenseNorm):
            return [Outgoing(sender, self._measure(message))]
        if isinstance(message, Freeze):
            return [Outgoing(sender, self._freeze(message))]
        return self._apply(message, sender)

    def disconnect(self, sender: Hashable) -> None:
        """Forget the waiting pulls of a sender that is gone."""
        self._parked = [(s, pull) for s, pull in self._parked if s != sender]

    @property
    def num_parked(self) -> int:
        return len(self._parked)

    def take_ready(self) -> list[tuple[Hashable, Pull]]:
        """Take the waiting pulls that can be answered now, each with its sender.

        They are handled as if they came now: one whose step has gone by meanwhile is superseded.
        """
        ready = [(sender, pull) for sender, pull in self._parked if not self._has_to_wait(pull)]
        self._parked = [(s, pull) for s, pull in self._parked if self._has_to_wait(pull)]
        return ready

    def _has_to_wait(self, pull: Pull) -> bool:
        lives_on = self.dead is None and pull.recovery_epoch == self.recovery_epoch
        return lives_on and not self._has_left and self._is_ahead(pull)

    # Checks -----------------------------------------------------------------------------------

    def _refuse_early(self, message: Request) -> Refusal | None:
        if self.dead is not None:
            return self._refusal(message, "dead", self.dead)
        if self.fenced:
            return self._refusal(message, "fenced", "it has no state yet")
        if self._has_left:
            return self._refusal(message, "fenced", f"it has left epoch {self.recovery_epoch}")
        if message.recovery_epoch != self.recovery_epoch:
            text = f"recovery epoch {message.recovery_epoch}, the job is in {self.recovery_epoch}"
            return self._refusal(message, "epoch", text)
        if isinstance(message, Apply | DenseNorm | Freeze):
            return None
        if message.routing_version != self.routing.version:
            text = f"routing {message.routing_version}, the job is at {self.routing.version}"
            return self._refusal(message, "routing", text)
        wrong = what_does_not_fit(message, self._dims, self.dense.size)
        return None if wrong is None else self._refusal(message, "malformed", wrong)

    def _refusal(self, message: Request, reason: RefusalReason, text: str) -> Refusal:
        kind = type(message).__name__.lower()
        return Refusal(message.request_id, reason, f"shard {self.index} refused a {kind}: {text}")

    # Reads ------------------------------------------------------------------------------------

    def _pull(self, pull: Pull, sender: Hashable) -> list[Outgoing]:
        reply = self.answer(pull)
        if reply is None:
            if self.num_parked < self.buffer.max_contributions:
                self._parked.append((sender, pull))
                return []
            text = f"{self.num_parked} pulls wait for a step, no more may"
            reply = self._refusal(pull, "full", text)
        return [Outgoing(sender, reply)]

    def answer(self, pull: Pull) -> Reply | None:
        """Return what a pull gets at the step of now, None where it has to wait; changes nothing.

        Any number may run at once, not beside a write.
        """
        refusal = self._refuse_early(pull)
        if refusal is not None:
            return refusal
        if pull.at_step != ANY_STEP and pull.at_step < self.step:
            text = f"step {pull.at_step} was asked for, the shard is at {self.step}"
            return self._refusal(pull, "superseded", text)
        return None if self._is_ahead(pull) else self._read(pull)

    def reply_bytes(self, pull: Pull) -> int:
        """Return what the arrays of the reply to a pull take at most."""
        num_values = sum(n * d for n, d in zip(pull.table_sizes, self._dims, strict=False))
        return 4 * (num_values + self.dense.size * pull.dense) + pull.keys.size

    def _is_ahead(self, pull: Pull) -> bool:
        return max(pull.at_step, pull.not_before) > self.step

    def _read(self, pull: Pull) -> PullReply:
        sizes = pull.table_sizes
        values = np.empty(sum(n * d for n, d in zip(sizes, self._dims, strict=True)), np.float32)
        admitted = np.empty(pull.keys.size, np.uint8)
        self._together().pull(pull.keys, pull.counts, sizes, values, admitted, step=self.step)
        dense = self._dense_ahead() if pull.dense and looks_ahead(pull, self.step) else None
        ahead = dense is not None
        if dense is None:
            has_them = (pull.dense_epoch, pull.dense_step) == (self.recovery_epoch, self.step)
            wanted = pull.dense and not has_them
            dense = self.dense.vector if wanted else np.empty(0, np.float32)
        return PullReply(pull.request_id, self.step, values, dense, admitted, ahead)

    def _dense_ahead(self) -> npt.NDArray[np.float32] | None:
        last = self.log[-1] if self.log else None
        return dense_ahead(self.dense, last, self.buffer.newest_attempts(), self._dense_scalars)

    def _measure(self, message: DenseNorm) -> Reply:
        if missing := self.buffer.missing(message.entries):
            text = f"step {message.step} has contributions that are not held: {missing[:4]}"
            return self._refusal(message, "missing", text)
        wrong = what_is_wrong_in_sum(message.entries, message.divisor)
        if wrong is not None or message.divisor == 0:
            text = f"step {message.step}: {wrong or 'it has no samples'}"
            return self._refusal(message, "malformed", text)
        live = [entry for entry in message.entries if entry.weight > 0]
        sums = self.dense.sums_of_squares(
            [self._held(entry.batch_id, entry.attempt) for entry in live],
            [entry.weight for entry in live],
            scale=np.float32(1.0 / message.divisor),
        )
        return DenseNormReply(message.request_id, sums)

    # Buffering --------------------------------------------------------------------------------

    def _push(self, contribution: Contribution) -> Reply:
        refusal = self.buffer.add(contribution)
        if refusal is None:
            return PushReply(contribution.request_id)
        self.counts.contributions_superseded += refusal.reason == "superseded"
        return self._refusal(contribution, refusal.reason, refusal.text)

    # Cuts -------------------------------------------------------------------------------------

    def _freeze(self, message: Freeze) -> Reply:
        """Keep the state of now beside what changes from here on; one that comes again, once."""
        if message.number < self._last_cut:
            text = f"cut {message.number} came after cut {self._last_cut}"
            return self._refusal(message, "superseded", text)
        if message.number > self._last_cut:
            if message.step != self.step:
                text = f"step {message.step} is to be frozen, the shard is at {self.step}"
                return self._refusal(message, "step", text)
            self.thaw()
            self._last_cut = message.number
            self.frozen = FrozenShard.of(message, self.tables, self.dense)
            self._begin_journal()
        return FreezeReply(message.request_id, message.step)

    def _begin_journal(self) -> None:
        """Begin it, or begin it again at this cut: no copy has begun with the one before."""
        if self._journal_bytes is not None:
            evicted = [evicted.runs() for evicted in self._evicted]
            self.journal = Journal(self.step, evicted, max_bytes=self._journal_bytes)

    def thaw(self) -> None:
        """Give up what is frozen."""
        if self.frozen is not None:
            self.frozen.close()
            self.frozen = None

    # The only write ---------------------------------------------------------------------------

    def _apply(self, message: Apply, sender: Hashable) -> list[Outgoing]:
        for record in message.records:
            if record.step < self.step:
                continue
            refusal = self._refuse_record(message, record)
            if refusal is not None:
                return [Outgoing(sender, refusal)]
            try:
                self._apply_record(record)
            except BaseException as error:
                self.dead = f"step {record.step} failed halfway: {error!r}"
                raise
        return [Outgoing(sender, ApplyReply(message.request_id, self.step))]

    def _refuse_record(self, message: Apply, record: Record) -> Refusal | None:
        if record.step > self.step:
            text = f"record {record.step} came at step {self.step}; the ones between are missing"
            return self._refusal(message, "step", text)
        if missing := self.buffer.missing(record.entries):
            text = f"record {record.step} names contributions that are not held: {missing[:4]}"
            return self._refusal(message, "missing", text)
        if (wrong := what_is_wrong(record, self.spec)) is not None:
            return self._refusal(message, "malformed", f"record {record.step}: {wrong}")
        return None

    def _apply_record(self, record: Record) -> None:
        live = [entry for entry in record.entries if entry.weight > 0]
        if live and record.divisor > 0:
            contributions = [self._held(e.batch_id, e.attempt) for e in live]
            self._update(record, contributions)
            if self.loads is not None:
                self.loads.add(record.step, contributions)
        for eviction in record.evict:
            keys = self.tables[eviction.table].evict(
                eviction.min_version,
                l2_weight_threshold=eviction.l2_weight_threshold,
                rows_per_bucket=eviction.rows_per_bucket,
                evict_first=eviction.evict_first,
            )
            self.counts.evicted += keys.size
            self._evicted[eviction.table].add(record.step, keys)
        for evicted in self._evicted:
            evicted.forget(before=record.oldest_pull_step)
        if self.journal is not None:
            named = [self._held(entry.batch_id, entry.attempt) for entry in record.entries]
            self.journal.add(record, named)
        self.buffer.settle(record)
        self._remember(record)
        self.step += 1

    def _remember(self, record: Record) -> None:
        """Log a record; forget earlier ones that every shard has applied.

        Whoever takes over the job sends the log to shards that lack some of it. It counts on from
        the totals of the newest record, and the buffer knows which batches are resolved.
        """
        self.log.append(record)
        for value in range(record.clock + 1, record.totals.clock + 1):
            self._first_steps.begin(value, record.step + 1)
            self._first_steps.forget(now=value)
        while len(self.log) > 1 and self.log[0].step < record.applied_step:
            self.log.popleft()

    def _held(self, batch_id: int, attempt: int) -> Contribution:
        contribution = self.buffer.get(batch_id, attempt)
        assert contribution is not None, "checked before"
        return contribution

    def _update(self, record: Record, contributions: list[Contribution]) -> None:
        weights = [entry.weight for entry in record.entries if entry.weight > 0]
        scalars = [np.array(values, np.float64) for values in record.scalars]
        self._run_all(
            [
                lambda: self._update_tables(record, contributions, weights, scalars),
                lambda: self.dense.apply(
                    contributions,
                    weights,
                    scale=np.float32(record.dense_factor / record.divisor),
                    scalars=scalars[self._dense_scalars],
                ),
            ]
        )

    def _update_tables(
        self,
        record: Record,
        contributions: list[Contribution],
        weights: list[float],
        scalars: list[npt.NDArray[np.float64]],
    ) -> None:
        of_contributors = self.spec.sparse_mean == "contributors"
        scale = np.float32(1.0 if of_contributors else 1.0 / record.divisor)
        accepted = [self._accepted(contribution) for contribution in contributions]
        merged = merge(
            contributions, weights, accepted, self._dims, mean_of_contributors=of_contributors
        )
        self._together().apply(
            merged.keys,
            merged.counts,
            merged.gradients,
            merged.has_gradient,
            starts=merged.starts,
            sizes=merged.sizes,
            gradient_starts=merged.gradient_starts,
            step=record.step,
            scale=float(scale),
            scalars=[scalars[slot] for slot in self._slots_of],
        )

    def _together(self) -> Together:
        """Return the tables of now: those of another state are others."""
        grouped = self._grouped
        if grouped is None or grouped.tables is not self.tables:
            self._grouped = grouped = Together(self.tables)
        return grouped

    def _accepted(self, contribution: Contribution) -> npt.NDArray[np.uint8] | None:
        """Mark the keys that were evicted after the pull: their gradients must not return them."""
        mask = kept_since_pull(self._evicted, contribution)
        if mask is not None:
            self.counts.gradients_of_evicted_keys += int(mask.size - np.count_nonzero(mask))
        return mask
