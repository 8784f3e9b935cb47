"""A fleet of simulated workers around the real coordinator: what it costs, and when it saturates.

Workers are real sessions on a virtual clock; their batches take drawn times, and a batch is ready
as soon as its token is there. The coordinator is the real one. It serves one report after the
other, and each takes it the CPU time that handling it really takes, and a fixed time for the call.
Faults are the business of `engine`; here everyone lives.
"""

import heapq
import math
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from embedding.spec.optimizers import Sgd
from embedding.spec.table import TableSpec
from ps.messages.pull_push import ANY_STEP
from ps.messages.records import Record
from ps.spec import StoreSpec
from scheduler.coordinator.coordinator import Coordinator
from scheduler.coordinator.events import (
    Answer,
    Event,
    RecordsApplied,
    SendRecords,
    TimePassed,
    WorkerReported,
)
from scheduler.coordinator.ledger_plan import LedgerPlan
from scheduler.coordinator.modes.rules import Mode, ModeOptions
from scheduler.coordinator.spec import CoordinatorSpec
from worker.protocol import Finished, Grant, Token
from worker.session import Session

POLL_SECONDS = 0.05
HEARTBEAT_SECONDS = 1.0
TICK_SECONDS = 0.2
# Batches vary by so much: the standard deviation of the logarithm of their times.
SPREAD = 0.15
_FAR = 10**9


@dataclass(frozen=True, slots=True, kw_only=True)
class FleetSpec:
    """What is simulated.

    Args:
        mode, options: of training.
        workers: W.
        group_size: M, local batches of a step.
        depth: batches that a worker holds beside the one that it pushes (`prefetch_batches`).
        batch_seconds: median of a batch's time; they are log-normal.
        stragglers: share of the workers that are `slower` times as slow.
        report_seconds: a worker leaves at least so long between two reports.
        call_seconds: of the coordinator's time that a call takes beside handling its report.
        handle_seconds: that it takes to handle an event; None: what it took this time, measured.
        apply_seconds: from sending a message of records to the shards' acknowledgement.
        shards: that acknowledge it, each on its own.
        seed: of all that is drawn.
    """

    mode: Mode
    workers: int
    group_size: int
    depth: int = 2
    options: ModeOptions = field(default_factory=lambda: ModeOptions(staleness_bound=_FAR))
    batch_seconds: float = 0.05
    stragglers: float = 0.01
    slower: float = 4.0
    report_seconds: float = 0.0
    call_seconds: float = 0.0
    handle_seconds: float | None = None
    apply_seconds: float = 0.005
    shards: int = 4
    seed: int = 1


@dataclass(slots=True)
class Costs:
    """CPU seconds of the coordinator, and what it did for them."""

    reports: list[float] = field(default_factory=list)
    acknowledgements: float = 0.0
    ticks: list[float] = field(default_factory=list)
    batches: int = 0
    steps: int = 0
    began: float = 0.0
    busy: float = 0.0

    @property
    def cpu(self) -> float:
        """All of it, but for ticks: those do not grow with the reports."""
        return sum(self.reports) + self.acknowledgements


@dataclass(slots=True)
class _Worker:
    """One worker: its session, and what its threads are at.

    Args:
        typical: median seconds of its batches.
        pulling, computing: the tokens whose pull is open, and whose batch is computed.
        waits_for: the step that the open pull needs.
        talks: whether a report of it has no answer yet.
        reports_at: when it reports next, unless it has news before; None: it is not known yet.
        reported_at: when it reported last.
    """

    session: Session
    typical: float
    pulling: Token | None = None
    waits_for: int = 0
    computing: Token | None = None
    computing_seconds: float = 0.0
    pull_step: int = 0
    talks: bool = False
    reports_at: float | None = None
    reported_at: float = float("-inf")


_Kind = Literal["report", "answer", "end", "applied", "tick"]


class Fleet:
    """Workers, the coordinator that serves them, and shards that apply what it orders."""

    def __init__(self, spec: FleetSpec, job: CoordinatorSpec | None = None) -> None:
        self.spec = spec
        self.coordinator = Coordinator(job or coordinator_spec(spec))
        self.costs = Costs()
        self.now = 0.0
        self._rng = random.Random(spec.seed)
        slow = max(1, round(spec.stragglers * spec.workers)) if spec.stragglers else 0
        self._workers = [
            _Worker(
                session=Session(number, 0, depth=spec.depth),
                typical=spec.batch_seconds * (spec.slower if number < slow else 1.0),
            )
            for number in range(spec.workers)
        ]
        self._queue: list[tuple[float, int, _Kind, int, Grant | None]] = []
        self._order = 0
        # The coordinator serves the next report from then on.
        self._free_at = 0.0
        # Of which those before `_in_flight` are under way, where it is not 0.
        self._records: list[Record] = []
        self._in_flight = self._applied = 0
        self._parked: dict[int, set[int]] = {}
        for number in range(spec.workers):
            # They don't begin in the same instant, but don't keep the distance of a batch either.
            self._report_at(number, self._rng.random() * spec.batch_seconds)
        self._push(TICK_SECONDS, "tick", 0)

    @property
    def batches_at_full_rate(self) -> float:
        """Batches per second of workers that never wait."""
        # The mean of a log-normal time is above its median.
        return sum(1 / (w.typical * math.exp(SPREAD**2 / 2)) for w in self._workers)

    def train(self, batches: int) -> None:
        """Go on until so many further batches were applied; `costs` begin anew."""
        self.costs = Costs(began=self.now)
        self.coordinator.data_staleness.counts.clear()
        self.coordinator.parameter_staleness.counts.clear()
        samples, step = self.coordinator.ledger.samples.total, self.coordinator.step
        while self.coordinator.ledger.samples.total < samples + batches:
            self._next_event()
        self.costs.batches = self.coordinator.ledger.samples.total - samples
        self.costs.steps = self.coordinator.step - step

    def finish(self) -> None:
        """Go on until the job ends."""
        while not self.coordinator.trained:
            self._next_event()

    def _next_event(self) -> None:
        self.now, _, kind, number, grant = heapq.heappop(self._queue)
        match kind:
            case "report":
                if self._workers[number].reports_at == self.now:
                    self._talk(number)
            case "answer":
                assert grant is not None, "every report has an answer"
                self._answered(number, grant)
            case "end":
                self._ended(number)
            case "applied":
                self._acknowledged(number)
            case "tick":
                self.costs.ticks.append(self._handle(TimePassed())[1])
                self._push(self.now + TICK_SECONDS, "tick", 0)

    # What batches and steps do: here nothing --------------------------------------------------

    def _read(self, number: int, token: Token) -> None:
        """A worker's pull is answered now."""

    def _computed(self, number: int, token: Token) -> Finished:
        """A worker has computed what it read last, and shards have it."""
        return Finished(token, "done", samples=1)

    def _apply(self, records: Sequence[Record]) -> None:
        """All shards have these records now."""

    # The coordinator --------------------------------------------------------------------------

    def _handle(self, event: Event) -> tuple[Grant | None, float]:
        """Let the coordinator handle an event; return its answer and the CPU seconds that counts.

        The time of a thread does not run while others have the processor.
        """
        began = time.thread_time()
        commands = self.coordinator.handle(event, self.now)
        measured, fixed = time.thread_time() - began, self.spec.handle_seconds
        seconds = measured if fixed is None else fixed
        answer = None
        for command in commands:
            if isinstance(command, Answer):
                answer = command.grant
            elif isinstance(command, SendRecords):
                self._records += command.records
        return answer, seconds

    def _serve(self, seconds: float) -> float:
        """Return when the coordinator is through with what takes it so long."""
        self._free_at = max(self._free_at, self.now) + seconds
        self.costs.busy += seconds
        return self._free_at

    def _send_records(self) -> None:
        """What was ordered while the last message was under way goes with the next one."""
        if self._records and not self._in_flight:
            self._in_flight = self._records[-1].step + 1
            self._push(max(self._free_at, self.now) + self.spec.apply_seconds, "applied", 0)

    def _acknowledged(self, shard: int) -> None:
        if not shard:
            under_way = self._in_flight - self._records[0].step
            self._apply(self._records[:under_way])
            del self._records[:under_way]
        _, seconds = self._handle(RecordsApplied(shard, self._in_flight))
        self._serve(seconds)
        self.costs.acknowledgements += seconds
        if shard + 1 < self.spec.shards:
            self._push(self.now, "applied", shard + 1)
            return
        self._applied, self._in_flight = self._in_flight, 0
        for step in [step for step in self._parked if step <= self._applied]:
            for number in sorted(self._parked.pop(step)):
                self._advance(number)
        self._send_records()

    # Workers ----------------------------------------------------------------------------------

    def _talk(self, number: int) -> None:
        worker = self._workers[number]
        worker.talks, worker.reports_at, worker.reported_at = True, None, self.now
        grant, seconds = self._handle(WorkerReported(worker.session.report()))
        self.costs.reports.append(seconds)
        self._push(self._serve(seconds + self.spec.call_seconds), "answer", number, grant)
        self._send_records()

    def _answered(self, number: int, grant: Grant) -> None:
        worker = self._workers[number]
        worker.talks = False
        tokens = worker.session.granted(grant)
        for token in tokens:
            worker.session.prepared(token)
        if worker.pulling is not None and not worker.session.holds(worker.pulling):
            worker.pulling = None
        self._advance(number)
        session = worker.session
        if session.has_news or (tokens and (session.want or session.waiting)):
            pause = 0.0
        else:
            pause = POLL_SECONDS if session.want or session.waiting else HEARTBEAT_SECONDS
        self._report_at(number, self.now + pause)

    def _ended(self, number: int) -> None:
        worker = self._workers[number]
        token = worker.computing
        assert token is not None, "a batch that ends was computed"
        worker.computing = None
        finished = self._computed(number, token)
        worker.session.finished(
            replace(finished, pull_step=worker.pull_step, seconds=worker.computing_seconds)
        )
        self._advance(number)
        if not worker.talks:
            self._report_at(number, self.now)

    def _report_at(self, number: int, when: float) -> None:
        """Let a worker report then, or as soon after as it may; news do not wait for a poll."""
        worker = self._workers[number]
        when = max(when, worker.reported_at + self.spec.report_seconds)
        if worker.reports_at is None or when < worker.reports_at:
            worker.reports_at = when
            self._push(when, "report", number)

    def _advance(self, number: int) -> None:
        """Pull and compute what can be."""
        worker = self._workers[number]
        if worker.computing is not None:
            return
        pulling = worker.session.next_pull()
        if pulling is not None:
            worker.pulling = pulling
            worker.waits_for = max(pulling.at_step, worker.session.not_before(pulling))
        elif worker.pulling is None:
            return
        assert worker.pulling is not None, "it was set with what it waits for"
        over = worker.pulling.at_step != ANY_STEP and worker.pulling.at_step < self._applied
        if worker.waits_for > self._applied or over:
            self._parked.setdefault(worker.waits_for, set()).add(number)
            return
        worker.session.pulled(worker.pulling)
        self._read(number, worker.pulling)
        worker.pulling = None
        worker.computing = worker.session.next_compute()
        if worker.computing is None:
            return
        worker.pull_step = self._applied
        worker.computing_seconds = worker.typical * self._rng.lognormvariate(0.0, SPREAD)
        self._push(self.now + worker.computing_seconds, "end", number)

    def _push(self, when: float, kind: _Kind, number: int, grant: Grant | None = None) -> None:
        self._order += 1
        heapq.heappush(self._queue, (when, self._order, kind, number, grant))


def coordinator_spec(spec: FleetSpec) -> CoordinatorSpec:
    """Return the job of a fleet, which does not end: every batch is a sample."""
    store = StoreSpec(
        tables=(TableSpec(name="t", dim=1),),
        dense_size=1,
        dense_optimizer=Sgd(learning_rate=1.0),
        num_shards=spec.shards,
    )
    plan = LedgerPlan(
        batches_per_epoch=_FAR, epochs=1, rows_of=lambda batch_id: 1, lanes=spec.group_size
    )
    return CoordinatorSpec(
        store=store,
        plan=plan,
        evaluation_plan=None,
        mode=spec.mode,
        options=spec.options,
        group_size=spec.group_size,
        global_batch=spec.group_size,
        workers=spec.workers,
        depth=spec.depth,
    )
