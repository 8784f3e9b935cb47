"""What must hold in every run: looked at after every event of the coordinator and of a shard."""

from collections import Counter
from collections.abc import Sequence
from itertools import chain

import numpy as np
import numpy.typing as npt

from embedding.table.links import make_variables
from ps.messages.exchange import Refusal, Request
from ps.messages.pull_push import ANY_STEP, Contribution, Pull, PullReply, PushReply
from ps.messages.records import (
    Apply,
    DenseNorm,
    DenseNormReply,
    Freeze,
    FreezeReply,
    Record,
    TableEviction,
)
from ps.shard.shard import Outgoing, Shard
from scheduler.coordinator.coordinator import Coordinator
from scheduler.coordinator.coordinator_state import epoch_of
from scheduler.coordinator.events import (
    Command,
    EndOfTrainingWanted,
    Event,
    GiveUpWorker,
    HoldWanted,
    PauseWanted,
    SendRecords,
    ShiftWanted,
    TakeCut,
)
from scheduler.coordinator.step_scalars import scalars_of_step
from simulation.clipping import expected_dense_factor
from simulation.cuts import KeptCut, Snapshot, snapshot_of
from simulation.network import LEASE_SECONDS
from simulation.oracle import Oracle, Paces
from simulation.patience import Patience
from simulation.scenario import Scenario
from simulation.seen import Seen
from simulation.told import grants_of, reports_of
from simulation.world import Story, World, train_batch
from worker.protocol import Grant, Report, Token


class Violation(AssertionError):
    """An invariant does not hold; `batch` is the one whose story is wanted."""

    def __init__(self, text: str, batch: int | None = None) -> None:
        super().__init__(text)
        self.batch = batch


def require(condition: bool, text: str, *values: object, batch: int | None = None) -> None:
    """Raise a violation with the text, `{}` for each value, unless the condition holds."""
    if not condition:
        raise Violation(text.format(*values), batch)


class CutOffReferee:
    """Checks shards that live on though their coordinator can't reach them."""

    def __init__(self, world: World) -> None:
        self._world = world

    def cut_off_shard_took(
        self, message: Request, outgoing: list[Outgoing], *, heard_before: float
    ) -> None:
        """Look at what a shard answered that has heard nothing since it was cut off."""
        silent = self._world.queue.now - heard_before
        if silent <= LEASE_SECONDS or not isinstance(message, Pull | Contribution):
            return
        done = [out.reply for out in outgoing if isinstance(out.reply, PullReply | PushReply)]
        text = "a shard that is cut off for {:.3f} s has answered {}"
        require(not done, text, silent, type(message).__name__)


class Referee:
    """Checks one recovery epoch of a run while it goes on.

    Args:
        seen: what happened before it, and what will.
        below: the cut with which all shards began it, if they did.
    """

    def __init__(
        self,
        scenario: Scenario,
        coordinator: Coordinator,
        shards: list[Shard],
        standbys: dict[int, Shard],
        story: Story,
        seen: Seen,
        below: KeptCut | None,
    ) -> None:
        self.seen = seen
        self._below = below
        self._scenario = scenario
        self._coordinator = coordinator
        self._shards = shards
        self._standbys = standbys
        self._story = story
        self._epoch = coordinator.spec.recovery_epoch
        routing = coordinator.spec.store.routing
        seen.by_block[routing.version] = routing.by_block
        self._answers: dict[tuple[int, int, int], Grant] = {}
        self._holders: dict[tuple[str, int, int, int], tuple[int, int]] = {}
        self._open_pulls: dict[tuple[int, int, int], Pull] = {}
        self._begun = coordinator.step
        self._resolved = seen.resolved
        self._low_water = 0
        clock = coordinator.spec.start.clock
        # On the clock; some of them may be of an earlier job.
        self._samples_before = clock.value * scenario.global_batch + clock.samples
        self._applied_samples = self._samples_before
        self._dropped_samples = 0
        self._skipped_samples: Counter[str] = Counter()
        for record in seen.records:
            self._count(record)
        self._snapshots: dict[tuple[int, int], Snapshot] = {}
        self._oldest_promised = 0
        self._oracle = Oracle(
            scenario,
            seen.tokens,
            first_step=self._begun,
            resolved=self._resolved,
            mode=coordinator.rule.name,
            steps=seen.steps,
        )
        self._paces = Paces()
        self._measured: set[tuple[int, int]] = set()
        self._frozen: set[tuple[int, int]] = set()
        self._most_credits = 0
        self._paused = coordinator.paused
        self._held_at: int | None = None
        self._patience = Patience(coordinator)
        # Whom the coordinator takes nothing from any more.
        self._gone: set[tuple[int, int]] = set()

    # The coordinator --------------------------------------------------------------------------

    def coordinator_took(
        self, event: Event, commands: list[Command], *, step_before: int, now: float
    ) -> None:
        """Look at what the coordinator made of an event, and at which step it was before."""
        reports, grants = reports_of(event), grants_of(commands)
        require(len(reports) == len(grants), "{} are answered {}", reports, grants)
        told = [pair for pair in zip(reports, grants, strict=True) if self._is_of_now(*pair)]
        if reports and not told:
            require(len(commands) == 1, "{} of another epoch make {}", reports, commands)
            return
        for report, _ in told:
            self._note_ends(report, step_before)
        if isinstance(event, HoldWanted):
            self._held_at = self._coordinator.step if event.held else None
        if self._held_at is not None:
            self._check_stands_still(commands, self._held_at)
        if isinstance(event, PauseWanted | EndOfTrainingWanted):
            self._paused = isinstance(event, PauseWanted) and event.paused
        if isinstance(event, ShiftWanted) and event.mode not in (self._oracle.mode, "auto"):
            self._oracle.shifted(event.mode, step_before)  # type: ignore[arg-type]
            self.seen.steps = self._oracle.steps
        for formed in range(step_before + 1, self._coordinator.step + 1):
            self._oracle.lasts(self._coordinator.attempt_steps, step=formed)
        for command in commands:
            if isinstance(command, SendRecords):
                for record in command.records:
                    self._check_record(record)
            elif isinstance(command, TakeCut):
                self._check_cut(command)
            elif isinstance(command, GiveUpWorker):
                fair = self._patience.had_its_time(command.worker, now)
                require(fair, "given up too early: {}", command.text)
                # What somebody lost is not found again by taking a worker for one that hangs.
                faults = self._scenario.faults
                hangs = faults.hang or faults.pause or self._scenario.long_batches
                silent = self._patience.is_silent(command.worker, now)
                # Of a recovery workers hear late.
                hangs = hangs or self._scenario.faults.recover
                require(
                    bool(hangs) or silent, "nobody hangs, but one is given up: {}", command.text
                )
        for report, grant in told:
            self._check_answer(report, grant)
        self._check_leases()
        self._patience.look(event, now)
        workers = self._coordinator.workers
        self._gone |= {(w, state.incarnation) for w, state in workers.items() if state.lost}
        said, true = self._coordinator.applied_step, min(shard.step for shard in self._copies)
        require(said <= true, "step {} is said to be applied, a shard is at {}", said, true)

    def _check_stands_still(self, commands: list[Command], step: int) -> None:
        """What is about to move orders no step and gives out no batch to train."""
        now = self._coordinator.step
        require(now == step, "a job that stands still at step {} has come to {}", step, now)
        for answer in grants_of(commands):
            given = [t for t in answer.tokens if t.kind == "train"]
            known = self._answers.values()
            new = [t for t in given if not any(t in grant.tokens for grant in known)]
            require(not new, "a job that stands still has given out {}", new)

    def _is_of_now(self, report: Report, grant: Grant) -> bool:
        """Whether a report is of this epoch; one that is not is answered with nothing else."""
        if report.recovery_epoch == self._epoch:
            return True
        nothing = Grant(report.sequence, recovery_epoch=self._epoch)
        require(grant == nothing, "{} of another epoch was answered: {}", report, grant)
        return False

    def handed(self, worker: tuple[int, int], grant: Grant) -> None:
        """A relay hands a grant to a worker: what it is given there was granted to it."""
        if grant.tokens and grant.recovery_epoch == self._epoch:
            known = self._answers.get((*worker, grant.sequence))
            require(known == grant, "worker {} is handed {}, granted was {}", worker, grant, known)

    @property
    def _copies(self) -> list[Shard]:
        return [*self._shards, *self._standbys.values()]

    def _note_ends(self, report: Report, step: int) -> None:
        name = report.worker, report.incarnation
        gone = name in self._gone or name[1] < self._coordinator.workers[name[0]].incarnation
        if not gone:
            self._paces.joined(name, self._live_workers())
        for finished in report.finished:
            token = finished.token
            self._story.tell(
                "worker %s.%s reports %s of %s", *name, finished.outcome, token,
                batch=train_batch(token),
            )  # fmt: skip
            known = gone or token.kind != "train" or finished.outcome == "superseded"
            if not known and self._oracle.reported(finished, step=step):
                self._paces.ended(name)

    def _is_live(self, worker: tuple[int, int]) -> bool:
        state = self._coordinator.workers[worker[0]]
        return state.incarnation == worker[1] and not state.lost

    def _live_workers(self) -> list[tuple[int, int]]:
        workers = self._coordinator.workers
        return [(w, s.incarnation) for w, s in workers.items() if not s.lost]

    def _check_answer(self, report: Report, grant: Grant) -> None:
        name = report.worker, report.incarnation
        if not self._is_live(name):
            stopped = grant.stop and not grant.tokens
            require(stopped, "worker {} is gone and was answered {}", name, grant)
            return
        known = self._answers.get((*name, grant.sequence))
        if known is not None or grant.sequence != report.sequence:
            text = "a repeated report of worker {} got {}, before it was {}"
            require(known == grant, text, name, grant, known)
            return
        leaves = self._coordinator.stopping or name[0] >= self._coordinator.num_workers
        told = "worker {} is told otherwise than {}: {}"
        require(grant.stop == leaves, told, name, leaves, grant)
        self._answers[*name, grant.sequence] = grant
        for token in grant.tokens:
            self._check_token(token, name)
        if self._scenario.mode == "ssp" and any(t.kind == "train" for t in grant.tokens):
            self._check_lead(name)

    def worker_read(self, steps: Sequence[int], dense: npt.NDArray[np.float32]) -> None:
        """A worker has the answers of all shards, with dense parameters of these steps.

        -1 is for those that a shard expects of a step that it has not made.
        """
        for shard, step in enumerate(steps):
            part = slice(*self._coordinator.spec.store.routing.dense_range(shard))
            self.seen.dense.append((part.start, step, dense[part].copy()))

    def _check_lead(self, worker: tuple[int, int]) -> None:
        """When the last of the tokens that it holds begins, the others have ended.

        Which ends count where attempts were given up is seen too late here.
        """
        if self._oracle.has_given_up:
            return
        lead = self._paces.lead(worker, self._live_workers())
        lead += len(self._coordinator.ledger.leases_of(worker[0])) - 1
        slack = self._scenario.mode_options.ssp_slack
        require(lead <= slack, "worker {} may get {} ahead, the slack is {}", worker, lead, slack)

    def _check_cut(self, cut: TakeCut) -> None:
        """A cut is taken now: the coordinator's part is what it is now."""
        state = self._coordinator.cuts.state_of(cut.step)
        require(state.step == self.seen.step, "a cut of {} before {}", state.step, self.seen.step)
        intervals = [(0, state.ledger.low_water), *state.ledger.resolved]
        resolved = {batch_id for first, stop in intervals for batch_id in range(first, stop)}
        text = "in the cut are resolved {}, in truth {}"
        require(resolved == self._resolved, text, resolved, self._resolved)
        samples = state.ledger.samples
        counted = samples.applied, samples.dropped, samples.skipped_by_reason
        right = self._totals()
        require(counted == right, "the samples in the cut are {}: {}", right, counted)
        clock = divmod(self._applied_samples, self._scenario.global_batch)
        ticks = state.clock.value, state.clock.samples
        require(ticks == clock, "the clock in the cut is {}: {}", clock, ticks)
        require(state.modes.mode == self._oracle.mode, "the mode in the cut is {}", state.modes)
        for record in self.seen.records:
            found = epoch_of(record.step, state.histories)
            text = "the cut says that step {} is of epoch {}, it is of {}"
            require(found == record.recovery_epoch, text, record.step, found, record.recovery_epoch)

    def cut_written(self, kept: KeptCut) -> None:
        """With all that it lies on, a cut is what every shard held as it was frozen."""
        for shard in self._shards:
            tables = make_variables(shard.spec.tables)
            kept.lay_on(tables, shard.routing.buckets == shard.index)
            found = snapshot_of(tables, kept.dense[shard.index])
            right = self._snapshots[shard.index, kept.cut.number]
            require(found == right, "{} has another state of shard {}", kept.cut, shard.index)
        follows = kept.below is not None and kept.below is self._below
        require(kept.cut.kind == "full" or follows, "{} lies on {}", kept.cut, kept.below)
        self._below = kept

    def cut_failed(self) -> None:
        """No delta may lie on what is not written."""
        self._below = None

    def _check_token(self, token: Token, worker: tuple[int, int]) -> None:
        self._story.tell("worker %s.%s is given %s", *worker, token, batch=train_batch(token))
        # An evaluation's rounds use the same batches.
        rounds = len(self._coordinator.progress.evaluations)
        number = rounds if token.kind == "eval" else 0
        holder = self._holders.setdefault(
            (token.kind, number, token.batch_id, token.attempt), worker
        )
        text = "{} was given to worker {} and to worker {}"
        require(holder == worker, text, token, holder, worker, batch=token.batch_id)
        if token.kind == "train":
            require(not self._paused, "{} is given out in a pause", token, batch=token.batch_id)
            self.seen.tokens[token.batch_id, token.attempt] = token
            steps = self._coordinator.step, self._coordinator.applied_step
            self._oracle.given(token, step=steps[0], applied_step=steps[1])
            mode = self._oracle.mode
            if mode == "sync" or (mode == "gba" and token.attempt == 0):
                planned = self._oracle.planned[token.batch_id]
                require(token.step == planned, "{}: its step is {}", token, planned)
            waits = mode in ("sync", "backup")
            right = token.step if waits else ANY_STEP
            require(token.at_step == right, "{} must pull at {}", token, right)
        elif self._coordinator.evaluation is not None:
            step = self._coordinator.evaluation.step
            require(token.at_step == step, "{} in the evaluation of step {}", token, step)

    @property
    def _always(self) -> int:
        """What a step needs beyond the credits, where buffers are short."""
        spec = self._coordinator.spec
        return 0 if spec.buffer_bytes is None else spec.step_batches(self._coordinator.rule)

    def _check_leases(self) -> None:
        coordinator = self._coordinator
        ledger = coordinator.ledger
        # Those of workers that leave end first.
        self._most_credits = credits = max(self._most_credits, coordinator.credits)
        unapplied = self.seen.records_between(coordinator.applied_step, self.seen.step)
        waiting = sum(len(r.entries) + len(self.seen.skipped[r.step]) for r in unapplied)
        in_flight = ledger.num_leased + ledger.num_ended + waiting
        credits += self._always
        require(in_flight <= credits, "{} batches in flight, {} credits", in_flight, credits)
        lost = {index for index, state in coordinator.workers.items() if state.lost}
        for batch in ledger.outstanding():
            gone = batch.worker is not None and batch.worker in lost
            require(not gone, "{} is leased to a worker that is gone", batch, batch=batch.batch_id)

    # Records ----------------------------------------------------------------------------------

    def _check_record(self, record: Record) -> None:
        seen, step = self.seen, self.seen.step
        require(record.step == step, "record {} was ordered as number {}", record.step, step)
        require(record.recovery_epoch == self._epoch, "{} is of another epoch", record)
        expected = self._oracle.step(record)
        entries = [(e.batch_id, e.attempt, e.weight) for e in record.entries]
        text = "step {} has to be {}, not {}"
        require(entries == expected.entries, text, step, expected.entries, entries)
        skipped = list(record.skipped)
        require(skipped == expected.skipped, text, step, expected.skipped, skipped)
        for batch_id, attempt, _ in entries:
            self._check_entry(record, batch_id, attempt)
        latest: Counter[int] = Counter()
        for batch_id, attempt in record.discard:
            latest[batch_id] = max(latest[batch_id], attempt + 1)
        left_out = {void for void in expected.discards if void[1] >= latest[void[0]]}
        require(not left_out, "attempts {} are void and not in {}", sorted(left_out), record)
        sizes = [(e.weight, seen.pushed[e.batch_id, e.attempt, 0].samples) for e in record.entries]
        samples = sum(n for _, n in sizes)
        require(record.divisor == samples, "N is {}, not {}: {}", samples, record.divisor, record)
        factor = expected_dense_factor(record, seen.pushed, self._coordinator.spec.store)
        require(record.dense_factor == factor, "the dense factor is {}: {}", factor, record)
        require(record.clock == self._clock, "the clock is {}: {}", self._clock, record)
        scalars = self._scalars(record)
        require(record.scalars == scalars, "the scalars are {}: {}", scalars, record)
        seen.records.append(record)
        seen.skipped[step] = expected.skipped
        seen.reasons[step] = expected.reasons
        self._count(record)
        self._check_totals(record)
        resolved = [entry.batch_id for entry in record.entries] + expected.skipped
        self._resolved.update(resolved)
        while self._low_water in self._resolved:
            self._low_water += 1
        require(record.low_water == self._low_water, "low water is {}: {}", self._low_water, record)
        due = self._evictions_due(record)
        require(record.evict == due, "to evict are {}: {}", due, record)
        promised = record.oldest_pull_step
        # What has ended waits for no more steps than there are credits.
        oldest = self._oracle.oldest_step(step + 1) - self._most_credits - self._always
        enough = promised >= min(oldest, record.applied_step)
        require(enough, "pulls before step {} have to be void: {}", oldest, record)
        self._oldest_promised = max(self._oldest_promised, promised)
        for batch_id in resolved:
            self._story.tell("resolved by %s", record, batch=batch_id)

    def _count(self, record: Record) -> None:
        """Count the samples of a record."""
        for entry in record.entries:
            samples = self.seen.pushed[entry.batch_id, entry.attempt, 0].samples
            self._applied_samples += samples if entry.weight > 0 else 0
            self._dropped_samples += samples if entry.weight == 0 else 0
        self._skipped_samples += self.seen.reasons[record.step]

    def _totals(self) -> tuple[int, int, dict[str, int]]:
        applied = self._applied_samples - self._samples_before
        return applied, self._dropped_samples, dict(self._skipped_samples)

    def _check_totals(self, record: Record) -> None:
        """Whoever takes over the job counts on from these."""
        totals = record.totals
        counted = (totals.applied, totals.dropped, dict(totals.skipped))
        right = self._totals()
        require(counted == right, "the samples are {}: {}", right, totals)
        clock = divmod(self._applied_samples, self._scenario.global_batch)
        require((totals.clock, totals.since_tick) == clock, "the clock is {}: {}", clock, totals)
        reached = self._coordinator.applied_step
        require(record.applied_step <= reached, "every shard is at {}: {}", reached, record)

    def _check_entry(self, record: Record, batch_id: int, attempt: int) -> None:
        for shard in self._copies:
            part = self.seen.pushed.get((batch_id, attempt, shard.index))
            held = part is not None and shard.buffer.get(batch_id, attempt) is part
            text = "step {} names batch {}, attempt {}, which a copy of shard {} does not hold"
            require(held, text, record.step, batch_id, attempt, shard.index, batch=batch_id)
            assert part is not None
            text = "batch {} was pulled at {}, after {} was promised"
            old, promised = part.pull_step, self._oldest_promised
            require(old >= promised, text, batch_id, old, promised, batch=batch_id)

    def _scalars(self, record: Record) -> tuple[tuple[float, ...], ...]:
        """Return what optimizers are told; their state has seen the steps of an earlier job."""
        asynchronous = self._oracle.mode in ("async", "ssp")
        options = self._scenario.mode_options
        return scalars_of_step(
            self._coordinator.spec.store,
            step=record.step,
            clock=self._clock,
            learning_rate_scale=options.async_learning_rate_scale if asynchronous else 1.0,
        )

    @property
    def _clock(self) -> int:
        return self._applied_samples // self._scenario.global_batch

    def _evictions_due(self, record: Record) -> tuple[TableEviction, ...]:
        scenario, clock = self._scenario, self._clock
        every = scenario.evict_every_steps
        if clock // every == record.clock // every:
            return ()
        lived = clock - scenario.steps_to_live
        records = chain(self.seen.earlier, self.seen.records)
        old = (r.step for r in records if r.clock >= lived)
        min_version = next(old, record.step + 1) if lived > 0 else 0
        return (TableEviction(1, min_version),) if min_version > 0 else ()

    # Shards -----------------------------------------------------------------------------------

    def shard_took(
        self, number: int, sender: int, message: Request, outgoing: list[Outgoing]
    ) -> None:
        """Look at what a copy of a shard made of a message."""
        index = number % len(self._shards)
        shard = self._shards[index] if number == index else self._standbys[index]
        if message.recovery_epoch != self._epoch:
            refused = [isinstance(o.reply, Refusal) and o.reply.reason for o in outgoing]
            require(refused == ["epoch"], "{} of another epoch was answered: {}", message, outgoing)
            return
        if isinstance(message, Pull):
            require(number == index, "a standby is asked: {}", message)
            self._open_pulls[index, sender, message.request_id] = message
        for out in outgoing:
            reply = out.reply
            if isinstance(reply, PullReply):
                assert isinstance(out.to, int)
                self._check_pull(index, self._open_pulls[index, out.to, reply.request_id], reply)
            elif isinstance(reply, PushReply):
                assert isinstance(message, Contribution)
                self._note_push(index, message)
            elif isinstance(reply, Refusal):
                require(self._may_refuse(index, message, reply), "refused: {}", reply.text)
                if isinstance(message, Contribution):
                    self._story.tell("%s", reply.text, batch=message.batch_id)
            elif isinstance(reply, DenseNormReply):
                self._measured.add((index, reply.request_id))
            elif isinstance(reply, FreezeReply):
                assert isinstance(message, Freeze)
                require(message.step == reply.step, "{} answered by {}", message, reply)
                if (index, message.number) not in self._frozen:
                    self._frozen.add((index, message.number))
                    found = snapshot_of(shard.tables, shard.dense.rows)
                    self._snapshots[index, message.number] = found
            else:
                require(reply.step == shard.step, "{} at step {}", reply, shard.step)
        self._check_shard(shard, message)

    def _may_refuse(self, index: int, message: Request, reply: Refusal) -> bool:
        if isinstance(message, DenseNorm):
            # One that arrives once more when its step was applied.
            return reply.reason == "missing" and (index, message.request_id) in self._measured
        if isinstance(message, Freeze):
            # One that arrives once more after another one.
            return reply.reason == "superseded" and (index, message.number) in self._frozen
        if isinstance(message, Apply):
            return False
        return reply.reason == "superseded" or (reply.reason == "full" and self._always > 0)

    def _check_pull(self, index: int, pull: Pull, reply: PullReply) -> None:
        wanted = pull.at_step
        first = self._begun
        require(reply.step >= first, "a pull of step {}, the epoch began at {}", reply.step, first)
        fits = wanted in (ANY_STEP, reply.step) and reply.step >= pull.not_before
        require(
            fits, "shard {} was asked for step {} and answered at {}", index, wanted, reply.step
        )
        early = wanted == ANY_STEP and pull.for_step > reply.step
        require(early or not reply.ahead, "shard {} looked ahead for {}", index, pull)
        self.seen.pulls.append((index, pull, reply))

    def _note_push(self, index: int, message: Contribution) -> None:
        name = message.batch_id, message.attempt, index
        first = self.seen.pushed.setdefault(name, message)
        require(first is message, "{} was pushed twice with different content", name)
        self._story.tell(
            "shard %s holds attempt %s", index, message.attempt, batch=message.batch_id
        )

    def _check_shard(self, shard: Shard, message: Request) -> None:
        index = shard.index
        first = shard.log[0].step if shard.log else shard.step
        lacking = min(other.step for other in self._copies)
        require(first <= lacking, "shard {} logs from {}, one is at {}", index, first, lacking)
        logged = sum(len(record.entries) + len(record.skipped) for record in shard.log)
        credits = self._most_credits + self._always
        require(logged <= credits, "shard {} logs {} batches, {} credits", index, logged, credits)
        # What a dead worker left behind comes on top; the buffer's own limit has room for that.
        held = len(shard.buffer)
        fits = held <= credits or self._coordinator.ledger.tallies.reissued > 0
        require(fits, "shard {} holds {} contributions, {} credits", index, held, credits)
        if isinstance(message, Apply):
            end = message.records[-1].step + 1
            require(
                shard.step >= end, "shard {} acknowledged {} at step {}", index, end, shard.step
            )
            last = shard.log[-1]
            ordered = self.seen.records_between(shard.step - 1, shard.step)
            require([last] == ordered, "shard {} applied {} for {}", index, last, ordered)
            self._check_resolved(shard)

    def _check_resolved(self, shard: Shard) -> None:
        """A shard knows which batches its records resolve; whoever takes over asks it."""
        records = self.seen.records_between(self._begun, shard.step)
        right = {entry.batch_id for record in records for entry in record.entries}
        right |= {batch_id for record in records for batch_id in self.seen.skipped[record.step]}
        right |= set(range(records[-1].low_water))  # of epochs before
        index, intervals = shard.index, shard.buffer.resolved
        known = [batch_id for first, end in intervals for batch_id in range(first, end)]
        require(known == sorted(right), "shard {} knows {}, resolved are {}", index, known, right)
