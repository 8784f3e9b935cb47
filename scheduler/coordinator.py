"""The coordinator: gives out tokens, gathers what ended, and orders steps into records.

A plain state machine: `handle(event, now)` returns commands; time comes in as an argument. A shell
delivers reports and acknowledgements, sends records to the shards, and carries out commands.
"""

from dataclasses import dataclass, field
from typing import Any

from embedding.optimizers import step_scalars
from ps.messages import Entry, Record
from ps.spec import StoreSpec
from scheduler.clock import ScheduleClock
from scheduler.dense_norms import DenseNorms
from scheduler.evaluation import EvaluationResult, EvaluationRound
from scheduler.events import (
    Answer,
    Command,
    DenseNormMeasured,
    EvaluationWanted,
    Event,
    FailJob,
    GiveUpWorker,
    RecordsApplied,
    StopWanted,
    TimePassed,
    Warn,
    WorkerLost,
    WorkerReported,
)
from scheduler.evictions import evictions_due
from scheduler.ledger import Batch, Ledger, LedgerPlan, Status
from scheduler.modes import Mode, ModeOptions, rule_of
from scheduler.staleness import Histogram
from worker.protocol import Finished, Grant, Report, Token


@dataclass(frozen=True, slots=True, kw_only=True)
class CoordinatorSpec:
    """What does not change while a job runs.

    Args:
        store: tables and dense parameters.
        plan: batches to train.
        evaluation_plan: batches of the evaluation files, or None.
        mode, options: the mode rule.
        group_size: M, local batches of a global batch.
        global_batch: G, in samples.
        workers, depth: they bound the credits.
        eval_every_steps: evaluate at every so many ticks of the schedule clock; 0: only at the end.
        max_seconds: stop giving out batches after so much training time; None: no limit.
        heartbeat_timeout_seconds: a worker that says nothing for so long is given up.
        stall_seconds: without any progress for so long the job is said to stall, and fails after
            as long again.
    """

    store: StoreSpec
    plan: LedgerPlan
    evaluation_plan: LedgerPlan | None
    mode: Mode
    group_size: int
    global_batch: int
    workers: int
    depth: int
    options: ModeOptions = field(default_factory=ModeOptions)
    recovery_epoch: int = 0
    eval_every_steps: int = 0
    max_seconds: float | None = None
    heartbeat_timeout_seconds: float = 60.0
    stall_seconds: float = 120.0

    @property
    def credits(self) -> int:
        """Most batches that may be leased, or done and not applied on every shard."""
        backup = self.options.backup_batches if self.mode == "backup" else 0
        return self.workers * self.depth + 2 * (self.group_size + backup)


@dataclass(slots=True)
class WorkerState:
    """What the coordinator knows of one worker.

    Args:
        pace: batches that it ended, counted on from the slowest live worker's when it joined.
    """

    incarnation: int = -1
    last_seen: float = 0.0
    last_grant: Grant | None = None
    lost: bool = False
    pace: int = 0
    batches: int = 0
    samples: int = 0
    seconds: float = 0.0
    peak_rss_bytes: int = 0
    bytes_sent: int = 0
    bytes_received: int = 0


@dataclass(slots=True)
class Progress:
    """Sums over the whole job, from which reports take differences."""

    loss_sum: float = 0.0
    loss_samples: int = 0
    first_lease: float | None = None
    last_apply: float | None = None
    evaluation_seconds: float = 0.0
    evaluations: list[EvaluationResult] = field(default_factory=list)


class Coordinator:
    """Ledger, mode rule, schedule clock and workers of one job."""

    def __init__(self, spec: CoordinatorSpec) -> None:
        self.spec = spec
        self.rule = rule_of(spec.mode, spec.options)
        self.ledger = Ledger(
            spec.plan,
            group_size=spec.group_size,
            batch_is_step=self.rule.batch_is_step,
            backup_batches=self.rule.backup_batches,
        )
        self.clock = ScheduleClock(spec.global_batch)
        self.dense_norms = DenseNorms(spec.store.dense_clip_norm)
        self.step = 0
        self.data_staleness = Histogram()
        self.parameter_staleness = Histogram()
        self.progress = Progress()
        self.workers: dict[int, WorkerState] = {}
        self.evaluation: EvaluationRound | None = None
        self.stopping = False
        self._shard_steps = [0] * spec.store.num_shards
        self._unapplied: list[tuple[int, int]] = []
        self._last_progress: float | None = None
        self._warned = False

    def handle(self, event: Event, now: float) -> list[Command]:
        """Take one event at time `now`, in seconds of any steady clock; return what to do."""
        match event:
            case WorkerReported():
                return self._reported(event.report, now)
            case WorkerLost():
                return self._lost(event.worker, event.incarnation)
            case RecordsApplied():
                return self._applied(event.shard, event.step, now)
            case DenseNormMeasured():
                return self.dense_norms.measured(event.step, event.parts)
            case TimePassed():
                return self._look_at_time(now)
            case EvaluationWanted():
                assert self.trained, "training is not complete"
                self._start_evaluation(now)
                return []
            case StopWanted():
                self.stopping = True
                return []

    # Questions --------------------------------------------------------------------------------

    @property
    def applied_step(self) -> int:
        """The step that every shard has reached."""
        return min(self._shard_steps)

    @property
    def shard_lag(self) -> tuple[int, ...]:
        """How many of the ordered steps each shard has not yet applied."""
        return tuple(self.step - step for step in self._shard_steps)

    @property
    def trained(self) -> bool:
        """Whether every batch is resolved and every shard has applied the last step."""
        return self.ledger.exhausted and self.applied_step == self.step

    @property
    def train_seconds(self) -> float:
        """From the first lease to the last apply, without evaluations."""
        first, last = self.progress.first_lease, self.progress.last_apply
        if first is None or last is None:
            return 0.0
        return max(0.0, last - first - self.progress.evaluation_seconds)

    # Workers ----------------------------------------------------------------------------------

    def _reported(self, report: Report, now: float) -> list[Command]:
        state = self.workers.setdefault(report.worker, WorkerState())
        given_up = state.lost and report.incarnation == state.incarnation
        if given_up or report.incarnation < state.incarnation:
            # Nobody would ever take back what it was given now.
            return [Answer(Grant(report.sequence, stop=True))]
        if report.incarnation > state.incarnation:
            self._lost(report.worker, state.incarnation)
            state = self.workers[report.worker] = WorkerState(
                incarnation=report.incarnation, pace=self._slowest_pace
            )
        state.last_seen = now
        if state.last_grant is not None and report.sequence <= state.last_grant.sequence:
            return [Answer(state.last_grant)]
        state.peak_rss_bytes = report.peak_rss_bytes
        state.bytes_sent, state.bytes_received = report.bytes_sent, report.bytes_received
        for finished in report.finished:
            self._finish(finished, state, now)
        commands = self.dense_norms.order(self._form_steps(now))
        state.last_grant = self._grant(report, now)
        return [*commands, Answer(state.last_grant)]

    def _finish(self, finished: Finished, state: WorkerState, now: float) -> None:
        if finished.token.kind == "eval":
            if self.evaluation is not None and self.evaluation.finish(finished):
                self._last_progress = now
                self._end_evaluation_if_complete(now)
            return
        if not self.ledger.finish(finished):
            return
        state.pace += 1
        if finished.outcome == "done":
            state.batches += 1
            state.samples += finished.samples
            state.seconds += finished.seconds
            self.progress.loss_sum += finished.loss_sum
            self.progress.loss_samples += finished.samples

    def _lost(self, worker: int, incarnation: int) -> list[Command]:
        state = self.workers.get(worker)
        if state is None or state.incarnation != incarnation:
            return []
        state.lost = True
        self.ledger.reclaim(self.ledger.leases_of(worker))
        if self.evaluation is not None:
            self.evaluation.ledger.reclaim(self.evaluation.ledger.leases_of(worker))
        return []

    def _grant(self, report: Report, now: float) -> Grant:
        held = set(report.held)
        expected = self._leases_of(report.worker)
        self._reclaim(expected - held)
        revoked = tuple(sorted(held - expected))
        tokens: list[Token] = []
        for _ in range(report.want):
            token = self._lease(report.worker, now)
            if token is None:
                break
            tokens.append(token)
        if report.waiting and not tokens:
            urgent = self._lease_urgent(report, now)
            tokens += [urgent] if urgent is not None else []
        stop = self.stopping
        return Grant(report.sequence, tuple(tokens), revoked, stop)

    def _leases_of(self, worker: int) -> set[Any]:
        leases = self.ledger.leases_of(worker)
        if self.evaluation is not None:
            leases |= self.evaluation.ledger.leases_of(worker)
        return leases

    def _reclaim(self, identities: set[Any]) -> None:
        self.ledger.reclaim(identities)
        if self.evaluation is not None:
            self.evaluation.ledger.reclaim(identities)

    def _lease(self, worker: int, now: float) -> Token | None:
        if self.evaluation is not None:
            return self.evaluation.lease(worker)
        in_flight = self.ledger.num_leased + self.ledger.num_ended
        in_flight += sum(count for _, count in self._unapplied)
        if in_flight >= self.spec.credits or self._is_too_far_ahead(worker):
            return None
        return self._lease_train(worker, now)

    def _is_too_far_ahead(self, worker: int) -> bool:
        """Whether a worker, once it has ended all that it holds, had to wait for the slowest.

        The slowest may always go on, and what it leads is held by workers that live.
        """
        if self.rule.slack is None:
            return False
        ahead = self.workers[worker].pace + len(self.ledger.leases_of(worker))
        return ahead - self._slowest_pace > self.rule.slack

    @property
    def _slowest_pace(self) -> int:
        return min((state.pace for state in self.workers.values() if not state.lost), default=0)

    def _lease_urgent(self, report: Report, now: float) -> Token | None:
        """What a waiting worker takes beyond its depth, because nothing can go on without it.

        A batch of a step before all those that it waits with: it was counted in the credits before
        it was taken back. Or a batch of an evaluation, which holds the steps that it waits for.
        """
        if self.evaluation is not None:
            return self.evaluation.lease(report.worker)
        steps = [batch.step for batch in self._held_train_tokens(report)]
        pending = self.ledger.lowest_pending_step()
        if not steps or pending is None or pending >= min(steps):
            return None
        return self._lease_train(report.worker, now)

    def _held_train_tokens(self, report: Report) -> list[Batch]:
        return [b for b in self.ledger.outstanding() if b.worker == report.worker]

    def _lease_train(self, worker: int, now: float) -> Token | None:
        token = self.ledger.lease(worker, step_now=self.applied_step, at_step=self.rule.at_step)
        if token is not None and self.progress.first_lease is None:
            self.progress.first_lease = now
            self._last_progress = now
        return token

    # Steps ------------------------------------------------------------------------------------

    def _form_steps(self, now: float) -> list[Record]:
        """Order every step that is complete, unless an evaluation holds the state as it is."""
        records: list[Record] = []
        while self.evaluation is None:
            batches = self.rule.next_step(self.ledger, self.step)
            if batches is None:
                break
            records.append(self._make_record(batches))
            self._evaluate_if_due(records[-1], now)
        return records

    def _make_record(self, batches: list[Batch]) -> Record:
        step, clock = self.step, self.clock.value
        entries, discard, divisor, applied = [], self.ledger.take_discards(), 0, 0
        for batch in batches:
            result = batch.result
            assert result is not None, "a step is made of ended batches"
            weight = self.rule.weight(step - batch.step)
            if batch.status is Status.DONE:
                entries.append(Entry(batch.batch_id, result.token.attempt, weight))
                divisor += result.samples
                applied += result.samples if weight > 0 else 0
                self.data_staleness.add(step - batch.step)
                self.parameter_staleness.add(step - result.pull_step)
                self.ledger.resolve(batch, Status.APPLIED if weight > 0 else Status.DROPPED)
            else:
                discard += [(batch.batch_id, attempt) for attempt in range(batch.attempt + 1)]
                self.ledger.resolve(batch, Status.SKIPPED)
        self._unapplied.append((step, len(batches)))
        self.clock.advance(applied, next_step=step + 1)
        self.step += 1
        for batch in self.rule.outdated(self.ledger, self.step):
            self.ledger.give_again(batch, step=self.step)
        oldest = self.ledger.oldest_lease_step
        return Record(
            step=step,
            recovery_epoch=self.spec.recovery_epoch,
            mode_epoch=0,
            entries=tuple(entries),
            divisor=divisor,
            scalars=self._scalars(step, clock),
            clock=clock,
            evict=evictions_due(self.spec.store.tables, self.clock, clock_before=clock),
            discard=tuple(discard),
            low_water=self.ledger.low_water,
            oldest_pull_step=self.applied_step if oldest is None else oldest,
        )

    def _scalars(self, step: int, clock: int) -> tuple[tuple[float, ...], ...]:
        return tuple(
            step_scalars(
                optimizer,
                learning_rate=optimizer.learning_rate_at(clock),
                step=step,
                clock=clock,
            )
            for optimizer in self.spec.store.optimizers
        )

    def _applied(self, shard: int, step: int, now: float) -> list[Command]:
        before = self.applied_step
        self._shard_steps[shard] = max(self._shard_steps[shard], step)
        if self.applied_step > before:
            self.progress.last_apply = now
            self._last_progress = now
            self._warned = False
            self._unapplied = [(s, n) for s, n in self._unapplied if s >= self.applied_step]
        return []

    # Evaluation -------------------------------------------------------------------------------

    def _evaluate_if_due(self, record: Record, now: float) -> None:
        every = self.spec.eval_every_steps
        due = every > 0 and self.clock.value // every > record.clock // every
        if due and not self.ledger.exhausted:
            self._start_evaluation(now)

    def _start_evaluation(self, now: float) -> None:
        if self.spec.evaluation_plan is not None:
            self.evaluation = EvaluationRound(
                self.spec.evaluation_plan, step=self.step, clock=self.clock.value, started=now
            )
            self._end_evaluation_if_complete(now)

    def _end_evaluation_if_complete(self, now: float) -> None:
        if self.evaluation is not None and self.evaluation.complete:
            self.progress.evaluations.append(self.evaluation.result())
            if not self.trained:
                self.progress.evaluation_seconds += now - self.evaluation.started
            self.evaluation = None

    # Time -------------------------------------------------------------------------------------

    def _look_at_time(self, now: float) -> list[Command]:
        commands: list[Command] = []
        first = now if self.progress.first_lease is None else self.progress.first_lease
        trained_for = now - first - self.progress.evaluation_seconds
        limit = self.spec.max_seconds
        if limit is not None and self.evaluation is None and trained_for >= limit:
            self.ledger.stop()
        for worker, state in self.workers.items():
            silent = now - state.last_seen
            if not state.lost and silent > self.spec.heartbeat_timeout_seconds:
                self._lost(worker, state.incarnation)
                text = f"worker {worker} has said nothing for {silent:.0f} s"
                commands.append(GiveUpWorker(worker, state.incarnation, text))
        return commands + self._look_for_stall(now)

    def _look_for_stall(self, now: float) -> list[Command]:
        if self._last_progress is None or (self.trained and self.evaluation is None):
            self._last_progress = now
            return []
        waited = now - self._last_progress
        if waited > 2 * self.spec.stall_seconds:
            return [FailJob(self.who_waits(waited))]
        if waited > self.spec.stall_seconds and not self._warned:
            self._warned = True
            return [Warn(self.who_waits(waited))]
        return []

    def who_waits(self, waited: float) -> str:
        """Say who waits for whom, for a person who wonders why nothing moves."""
        parts = [f"no step was applied for {waited:.0f} s at global step {self.applied_step}"]
        if self.dense_norms.awaited:
            parts.append(f"the norms of steps {self.dense_norms.awaited[:8]} are being measured")
        behind = [i for i, step in enumerate(self._shard_steps) if step < self.step]
        if behind:
            parts.append(f"step {self.step} is ordered, but shards {behind} have not applied it")
        ledger = self.evaluation.ledger if self.evaluation is not None else self.ledger
        for batch in ledger.outstanding()[:8]:
            holder = "nobody" if batch.worker is None else f"worker {batch.worker}"
            parts.append(
                f"batch {batch.batch_id} (step {batch.step}, attempt {batch.attempt})"
                f" is {batch.status.value}, held by {holder}"
            )
        return "; ".join(parts)
