"""The coordinator: gives out tokens, gathers what ended, and orders steps into records.

A plain state machine: `handle(event, now)` returns commands; time comes in as an argument. A shell
delivers reports and acknowledgements, sends records to the shards, and carries out commands.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from ps.messages.pull_push import ANY_STEP
from ps.messages.records import Record
from scheduler.coordinator.allowance import Allowance
from scheduler.coordinator.batches import Batch
from scheduler.coordinator.contributions import contributions_of
from scheduler.coordinator.coordinator_state import CoordinatorState, beginning_of, histogram_of
from scheduler.coordinator.cuts import CutSchedule
from scheduler.coordinator.dense_norms import DenseNorms
from scheduler.coordinator.evaluation import EvaluationRound, is_evaluation_due, round_of
from scheduler.coordinator.events import (
    Answer,
    Answers,
    Command,
    CutFrozen,
    CutTaken,
    CutWanted,
    DeltasWanted,
    DenseNormMeasured,
    EndOfTrainingWanted,
    EvaluationWanted,
    Event,
    GiveUpWorker,
    HoldWanted,
    PauseWanted,
    PlanGrown,
    RecordsApplied,
    ShiftWanted,
    StopWanted,
    TakeCut,
    TimePassed,
    WorkerLost,
    WorkerReported,
    WorkersReported,
    WorkersWanted,
    of_different_workers,
)
from scheduler.coordinator.evictions import evictions_due
from scheduler.coordinator.growing_plan import GrowingPlan, PlanState
from scheduler.coordinator.lease_watch import LeaseWatch
from scheduler.coordinator.ledger import Ledger
from scheduler.coordinator.mode_control import ModeControl
from scheduler.coordinator.modes.rules import ModeRule
from scheduler.coordinator.modes.shift import Wish
from scheduler.coordinator.progressive import windows_of
from scheduler.coordinator.skip_watch import SkipWatch
from scheduler.coordinator.spec import FEW_WORKERS, CoordinatorSpec
from scheduler.coordinator.stall_watch import StallWatch, who_waits
from scheduler.coordinator.state import Progress, ShardProgress, TrainingTime, WorkerState
from scheduler.coordinator.step_scalars import scalars_of_step
from scheduler.coordinator.totals import totals_of
from scheduler.coordinator.work import work_of
from worker.data.arrived import BatchRows
from worker.protocol import Finished, Grant, Report, Token, TokenKind


class Coordinator:
    """Ledger, mode rule, schedule clock and workers of one job.

    Args:
        spec: of the job; of one that goes on, where it began is told by the state.
        state: of an earlier coordinator, of another recovery epoch; None: the job begins.

    Raises:
        ValueError: the state is of another plan.
    """

    def __init__(self, spec: CoordinatorSpec, state: CoordinatorState | None = None) -> None:
        self.spec = spec = spec if state is None else replace(spec, start=state.start)
        first = state or beginning_of(spec)
        clock, step = first.clock, first.step
        self.modes = ModeControl(spec, first.modes, clock=clock.value - spec.start.clock.value)
        self.ledger = Ledger(
            spec.plan or GrowingPlan(first.plan or PlanState(), lanes=spec.group_size),
            group_size=spec.group_size,
            batch_is_step=self.rule.batch_is_step,
            backup_batches=self.rule.backup_batches,
            first_step=step,
            state=first.ledger,
        )
        self.clock = spec.new_clock(clock)
        self.dense_norms = DenseNorms(spec.store.dense_clip_norm)
        self.cuts = CutSchedule(spec.cuts, step=step, clock=clock.value, below=spec.deltas_below)
        self.step = step
        self.data_staleness = histogram_of(first.data_staleness)
        self.parameter_staleness = histogram_of(first.parameter_staleness)
        self._histories = first.histories
        self.progress = Progress(first.loss_sum, first.loss_samples, list(first.evaluations))
        self.windows = windows_of(spec)
        self.time = TrainingTime(first.train_seconds)
        self.workers: dict[int, WorkerState] = {}
        self.num_workers = first.num_workers
        self.workers_automatic = first.workers_automatic
        self.evaluation: EvaluationRound | None = None
        self.stopping = False
        self._shards = ShardProgress(spec.copies.numbers, first_step=step)
        self.allowance = Allowance(spec, self.ledger, self.modes, workers=first.num_workers)
        self._lease_watch = LeaseWatch(spec.lease_timeout_seconds, stall=spec.stall_seconds)
        self._skip_watch = SkipWatch(spec.max_consecutive_non_finite)
        self._stall_watch = StallWatch(
            spec.stall_seconds,
            fails_after=self._lease_watch.stall_lasts,
            place_limit=spec.place_seconds,
        )
        self.time.hold_if(first.paused, "pause", 0.0)
        if first.evaluating:
            self._start_evaluation(0.0)

    def state(self) -> CoordinatorState:
        """Return what another coordinator needs to go on from the steps that are ordered."""
        return CoordinatorState(
            step=self.step,
            start=self.spec.start,
            ledger=self.ledger.state(),
            modes=self.modes.state(),
            clock=self.clock.state(),
            data_staleness=self.data_staleness.state(),
            parameter_staleness=self.parameter_staleness.state(),
            loss_sum=self.progress.loss_sum,
            loss_samples=self.progress.loss_samples,
            evaluations=tuple(self.progress.evaluations),
            # Of a job that is trained somebody asks for the evaluation again.
            evaluating=self.evaluation is not None and not self.ledger.exhausted,
            train_seconds=self.train_seconds,
            paused=self.paused,
            num_workers=self.num_workers,
            plan=self.ledger.plan.state(),
            workers_automatic=self.workers_automatic,
            histories=self._histories,
        )

    def handle(self, event: Event, now: float) -> list[Command]:
        """Take one event at time `now`, in seconds of any steady clock; return what to do."""
        match event:
            case WorkerReported():
                commands, grants = self._reported((event.report,), now)
                return [*commands, Answer(grants[0])]
            case WorkersReported():
                commands, grants = self._reported(event.reports, now)
                return [*commands, Answers(grants)]
            case WorkerLost():
                return self._lost(event.worker, event.incarnation)
            case RecordsApplied():
                return self._applied(event.shard, event.step, now)
            case DenseNormMeasured():
                sent = self.dense_norms.measured(event.step, event.parts)
                return sent + self._order_steps(now)
            case PlanGrown():
                if event.extension is not None:
                    self.ledger.plan.grow(event.extension)
                self.windows.grows(event.extension, event.at)
                return self._order_steps(now)
            case TimePassed():
                return self._order_steps(now) + self._look_at_time(now)
            case ShiftWanted():
                self.modes.set_automatic(event.mode == "auto")
                if event.mode != "auto":
                    return self._shift(Wish(event.mode, "control", "asked for"), now)
            case PauseWanted(paused):
                self.time.hold_if(paused, "pause", now)
            case HoldWanted(held):
                self.time.hold_if(held, "move", now)
                return self._order_steps(now)
            case WorkersWanted(count, by_policy) if self.workers_automatic or not by_policy:
                self.workers_automatic = by_policy or count is None
                self.num_workers = count or self.num_workers
                self.allowance.grow(self.num_workers)
            case CutWanted(full):
                self.cuts.ask(full=full)
                return self._order_steps(now)
            case DeltasWanted(only):
                self.cuts.want_deltas(only=only)
            case CutFrozen(step):
                self.cuts.frozen(step)
            case CutTaken():
                self.cuts.taken(event.step, failed=event.failed)
                return self._order_steps(now)
            case EndOfTrainingWanted():
                self.time.go_on("pause", now)
                self.ledger.stop()
            case EvaluationWanted():
                assert self.trained, "training is not complete"
                self._start_evaluation(now)
            case StopWanted():
                self.stopping = True
        return []

    # Questions --------------------------------------------------------------------------------

    @property
    def rule(self) -> ModeRule:
        """The rule of the mode that the job is in."""
        return self.modes.rule

    @property
    def applied_step(self) -> int:
        """The step that every copy of every shard has reached."""
        return self._shards.step

    @property
    def applied_samples(self) -> int:
        """The samples that every shard has applied: those of the steps below `applied_step`."""
        return self.ledger.samples.applied - self._shards.unapplied_samples

    @property
    def shard_lag(self) -> tuple[int, ...]:
        """How many of the ordered steps each shard's primary has not yet applied."""
        return tuple(self.step - self._shards.steps[n] for n in self.spec.copies.primaries)

    @property
    def trained(self) -> bool:
        """Whether every batch is resolved and every shard has applied the last step."""
        return self.ledger.exhausted and self.applied_step == self.step

    @property
    def train_seconds(self) -> float:
        """From the first lease to the last apply, without the time in which training was held."""
        return self.time.at_last_apply

    @property
    def paused(self) -> bool:
        return self.time.is_held_by("pause")

    @property
    def credits(self) -> int:
        """Most batches that may be leased, or done and not applied on every shard."""
        return self.allowance.credits

    @property
    def attempt_steps(self) -> int:
        """How many steps an attempt lasts that does not end, from when it was given out."""
        batches = self.spec.attempt_lasts * self.credits
        return -(-batches // (1 if self.rule.batch_is_step else self.spec.group_size))

    # Workers ----------------------------------------------------------------------------------

    def _reported(self, reports: Sequence[Report], now: float) -> tuple[list[Command], list[Grant]]:
        """Take reports; return what to do and the answers, in their order."""
        commands: list[Command] = []
        grants: list[Grant] = []
        # A worker's next report comes after the answer to the one before.
        for group in of_different_workers(reports):
            answers = [self._take(report, commands, now) for report in group]
            if None in answers:
                commands += self._order_steps(now)
            for report, answer in zip(group, answers, strict=True):
                grants.append(self._answered(report, now) if answer is None else answer)
        return commands, grants

    def _take(self, report: Report, commands: list[Command], now: float) -> Grant | None:
        """Take what a report says; return its answer, None: it is to be granted something.

        Args:
            commands: what to do about it is added.
        """
        if report.recovery_epoch != self.spec.recovery_epoch:
            # Batches of this history have the same names as those that it speaks of.
            return self._answer(report)
        worker, incarnation = report.worker, report.incarnation
        state = self.workers.get(worker)
        if state is None:
            state = self.workers[worker] = WorkerState(lost=True)
        if incarnation < state.incarnation or (state.lost and incarnation == state.incarnation):
            # Nobody would ever take back what it was given now.
            return self._answer(report, stop=True)
        if incarnation > state.incarnation:
            self._lost(worker, state.incarnation)
            state = self.workers[worker] = WorkerState(incarnation=incarnation)
            self.allowance.joined(worker)
        state.last_seen = now
        if state.last_grant is not None and report.sequence <= state.last_grant.sequence:
            return state.last_grant
        state.note(report)
        for finished in report.finished:
            commands += self._finish(worker, finished, now)
        return None

    def _answered(self, report: Report, now: float) -> Grant:
        """Grant a worker something for a report that was taken."""
        if report.worker >= self.num_workers:
            self._lost(report.worker, report.incarnation)
            grant = self._answer(report, revoked=report.held, stop=True)
        else:
            grant = self._grant(report, now)
            self._lease_watch.works_at(report, self._work_of(report.worker), now)
        self.workers[report.worker].last_grant = grant
        return grant

    def _finish(self, worker: int, finished: Finished, now: float) -> list[Command]:
        if finished.token.kind == "eval":
            if self.evaluation is not None and self.evaluation.finish(finished):
                self._lease_watch.ended(worker, "eval", finished.token.batch_id, now)
                self._stall_watch.progress(now)
                self._end_evaluation_if_complete(now)
            return []
        if not self.ledger.finish(finished):
            return []
        self._lease_watch.ended(worker, "train", finished.token.batch_id, now)
        self.allowance.ended(worker, finished)
        if finished.outcome == "done":
            state = self.workers[worker]
            state.batches += 1
            state.samples += finished.samples
            state.seconds += finished.seconds
            if self.modes.policy is not None:
                self.modes.finished(worker, finished, now)
        return self._skip_watch.ended(finished)

    def _lost(self, worker: int, incarnation: int) -> list[Command]:
        state = self.workers.get(worker)
        if state is None or state.incarnation != incarnation:
            return []
        if not state.lost:
            self.allowance.left(worker)
        state.lost = True
        self.modes.gone(worker)
        self._lease_watch.gone(worker)
        self.ledger.reclaim(self.ledger.leases_of(worker))
        if self.evaluation is not None:
            self.evaluation.ledger.reclaim(self.evaluation.ledger.leases_of(worker))
        return []

    def _grant(self, report: Report, now: float) -> Grant:
        worker = report.worker
        revoked: tuple[tuple[TokenKind, int, int], ...] = ()
        # Nothing got lost, as a rule.
        if self.evaluation is not None or not self.ledger.holds_just(worker, report.held):
            revoked = self._settle_leases(report)
        tokens: list[Token] = []
        for _ in range(report.want):
            if (token := self._lease(worker, now)) is None:
                break
            tokens.append(token)
        if report.waiting and not tokens:
            urgent = self._lease_urgent(report, now)
            tokens += [urgent] if urgent is not None else []
        few = self.allowance.live_workers <= FEW_WORKERS
        rows: tuple[BatchRows, ...] = ()
        if self.spec.plan is None:
            train = [token.batch_id for token in tokens if token.kind == "train"]
            rows = self.ledger.plan.granted(train)
        return Grant(
            report.sequence,
            tuple(tokens),
            revoked,
            self.stopping,
            self.step if few else ANY_STEP,
            self.spec.recovery_epoch,
            rows,
        )

    def _settle_leases(self, report: Report) -> tuple[tuple[TokenKind, int, int], ...]:
        """Take back what a worker does not know that it has; return what it has no more."""
        held, expected = set(report.held), self._leases_of(report.worker)
        self._reclaim(expected - held)
        return tuple(sorted(held - expected))

    def _answer(self, report: Report, **fields: Any) -> Grant:
        return Grant(report.sequence, recovery_epoch=self.spec.recovery_epoch, **fields)

    def _work_of(self, worker: int) -> tuple[TokenKind, Batch] | None:
        return work_of(worker, self.ledger, self.evaluation, applied_step=self._shards.step)

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
        if not self.allowance.has_room(worker, unapplied=self._shards.unapplied):
            return None
        return self._lease_train(worker, now)

    def _lease_urgent(self, report: Report, now: float) -> Token | None:
        """What a waiting worker takes beyond its depth, because nothing can go on without it.

        A batch of a step before all those that it waits with: it was counted in the credits before
        it was taken back. Or a batch of an evaluation, which holds the steps that it waits for.
        """
        if self.evaluation is not None:
            return self.evaluation.lease(report.worker)
        steps = [batch.step for batch in self.ledger.leased_to(report.worker)]
        pending = self.ledger.lowest_pending_step()
        if not steps or pending is None or pending >= min(steps):
            return None
        return self._lease_train(report.worker, now)

    def _lease_train(self, worker: int, now: float) -> Token | None:
        if self.time.is_held_by("pause", "move"):
            return None
        modes = self.modes
        token = self.ledger.lease(
            worker,
            step_now=self._shards.step,
            at_step=modes.rule.at_step,
            mode_epoch=modes.epoch,
        )
        if token is not None:
            if self.time.begun is None and self.time.begin(now):
                self._stall_watch.progress(now)
            if modes.policy is not None:
                modes.leased(worker, self.ledger, now)
        return token

    # Steps ------------------------------------------------------------------------------------

    def _order_steps(self, now: float) -> list[Command]:
        """Order the steps that are complete, and cuts between them."""
        commands = self.dense_norms.order(self._form_steps(now))
        # A cut waits for the norms of the steps before it: shards take it in their order.
        while self._cut_is_due(now) and self.dense_norms.idle:
            cut = self.cuts.take(self.state(), now=now)
            commands.append(TakeCut(cut.number, cut.step, changed_only=cut.kind == "delta"))
            commands += self.dense_norms.order(self._form_steps(now))
        self.windows.pass_until(self.ledger.arrived_until(self.windows.said_until), step=self.step)
        return commands

    def _cut_is_due(self, now: float) -> bool:
        ends, clock = self.ledger.exhausted, self.clock.value
        return self.cuts.is_due(step=self.step, clock=clock, now=now, ends=ends)

    def _form_steps(self, now: float) -> list[Record]:
        """Order every step that is complete, unless something holds the state as it is."""
        records: list[Record] = []
        while not (self.time.is_held_by("evaluation", "move") or self._cut_is_due(now)):
            batches = self.rule.next_step(self.ledger, self.step)
            if batches is None:
                break
            records.append(self._make_record(batches))
            settled = self.modes.formed(self.step)
            wish = self.modes.planned(self.clock.value - self.spec.start.clock.value) or settled
            if wish is not None and self._shift_mode(wish, now):
                records[-1] = replace(
                    records[-1],
                    totals=totals_of(self.ledger, self.clock, self.modes, self.progress),
                )
            self._evaluate_if_due(records[-1], now)
        return records

    def _make_record(self, batches: list[Batch]) -> Record:
        step, clock = self.step, self.clock.value
        discard = self.ledger.take_discards()
        made = contributions_of(
            batches, step=step, weight_of=self.rule.weight, progress=self.progress
        )
        for batch in made.scored:
            self.windows.resolved(batch, self.ledger.plan.arrived(batch.batch_id))
        self.data_staleness.add_all(made.data_staleness)
        self.parameter_staleness.add_all(made.parameter_staleness)
        self.ledger.resolve_all(made.resolved)
        self._shards.ordered(step, len(batches), made.applied)
        self.clock.advance(made.applied, next_step=step + 1)
        self.step += 1
        self.allowance.formed(before=self.step)
        for batch in self.rule.outdated(self.ledger, self.step):
            self.ledger.give_again(batch, step=self.step)
        self._give_up_the_oldest()
        oldest = self.ledger.oldest_lease_step
        return Record(
            step=step,
            recovery_epoch=self.spec.recovery_epoch,
            mode_epoch=self.modes.epoch,
            entries=tuple(made.entries),
            divisor=made.divisor,
            scalars=scalars_of_step(
                self.spec.store,
                step=self.spec.start.optimizer_steps + step - self.spec.start.step,
                clock=clock,
                learning_rate_scale=self.rule.learning_rate_scale,
            ),
            clock=clock,
            evict=evictions_due(self.spec.store.tables, self.clock, clock_before=clock),
            skipped=tuple(made.skipped),
            discard=tuple(discard),
            low_water=self.ledger.low_water,
            oldest_pull_step=self.applied_step if oldest is None else oldest,
            applied_step=self.applied_step,
            totals=totals_of(self.ledger, self.clock, self.modes, self.progress),
        )

    def _give_up_the_oldest(self) -> None:
        """Give out again what has lasted too long without an end."""
        for batch in self.ledger.given_out_before(self.step - self.attempt_steps):
            # One of a later step keeps it: others wait for it there.
            self.ledger.give_again(batch, step=max(batch.step, self.step))

    def _applied(self, shard: int, step: int, now: float) -> list[Command]:
        if self._shards.applied(shard, step):
            self.time.applied(now)
            self.modes.applied(self.applied_step, seconds=self.time.at_last_apply, now=now)
            self._stall_watch.progress(now)
        return []

    # Evaluation -------------------------------------------------------------------------------

    def _evaluate_if_due(self, record: Record, now: float) -> None:
        every, now_at = self.spec.eval_every_steps, self.clock.value
        due = is_evaluation_due(every, before=record.clock, now=now_at)
        if due and not self.ledger.exhausted:
            self._start_evaluation(now)

    def _start_evaluation(self, now: float) -> None:
        spec, plan = self.spec, self.spec.evaluation_plan
        if plan is not None:
            step, clock = self.step, self.clock.value
            self.evaluation = round_of(spec, plan, step=step, clock=clock)
            self.time.hold("evaluation", now)
            self._end_evaluation_if_complete(now)

    def _end_evaluation_if_complete(self, now: float) -> None:
        if self.evaluation is not None and self.evaluation.complete:
            self.progress.evaluations.append(self.evaluation.result())
            self.time.go_on("evaluation", now)
            self.evaluation = None

    # What people and policies want ------------------------------------------------------------

    def _shift(self, wish: Wish, now: float) -> list[Command]:
        """Go on in another mode; the steps that can be formed by its rule are ordered at once."""
        return self._order_steps(now) if self._shift_mode(wish, now) else []

    def _shift_mode(self, wish: Wish, now: float) -> bool:
        seconds = self.time.elapsed(now)
        return self.modes.shift(wish, self.ledger, step=self.step, seconds=seconds, now=now)

    # Time -------------------------------------------------------------------------------------

    def _look_at_time(self, now: float) -> list[Command]:
        commands: list[Command] = []
        limit = self.spec.max_seconds
        if limit is not None and self.evaluation is None and self.time.elapsed(now) >= limit:
            self.ledger.stop()
        for worker, state in self.workers.items():
            silent = now - state.last_seen
            if not state.lost and silent > self.spec.heartbeat_timeout_seconds:
                self._lost(worker, state.incarnation)
                text = f"worker {worker} has said nothing for {silent:.0f} s"
                commands.append(GiveUpWorker(worker, state.incarnation, text))
        commands += self._end_late_lease(now)
        applied = self.applied_step == self.step and self.evaluation is None
        if (applied and (self.ledger.exhausted or self.ledger.idle)) or self.time.is_held_by(
            "pause", "move"
        ):
            self._stall_watch.progress(now)
        held = self.time.is_held_by("evaluation", "pause", "move")
        wish = self.modes.advice(self.ledger, now, applied_step=self.applied_step, held=held)
        if wish is not None:
            commands += self._shift(wish, now)
        up, wanted = self.allowance.live_workers, self.num_workers
        return commands + self._stall_watch.look(now, self.who_waits, workers=up, wanted=wanted)

    def _end_late_lease(self, now: float) -> list[Command]:
        """Give up a worker that reports, but is far too long at one batch, as if it were silent."""
        worker = self._lease_watch.look(
            now,
            step=self.step,
            applied_step=self.applied_step,
            held=self.time.is_held_by("pause", "move"),
        )
        if worker is None:
            return []
        state = self.workers[worker]
        text = self._lease_watch.give_up(worker, now, state.stage)
        self._lost(worker, state.incarnation)
        self._stall_watch.progress(now)  # others have the batch from now on
        return [GiveUpWorker(worker, state.incarnation, text)]

    def who_waits(self, now: float) -> str:
        """Say who waits for whom, for a person who wonders why nothing moves."""
        return who_waits(
            self.evaluation.ledger if self.evaluation is not None else self.ledger,
            waited=self._stall_watch.waited(now),
            step=self.step,
            shard_steps={self.spec.copies.name_of(n): s for n, s in self._shards.steps.items()},
            norms=self.dense_norms.awaited,
        )
