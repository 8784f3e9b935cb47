"""The coordinator with its threads: everything that process does, but for being a Ray actor."""

import os
import signal
import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby
from types import MappingProxyType

from ps.client.client import Open, PsClient, ShardLostError
from ps.client.faults import ConnectionFaults, with_faults
from ps.messages.records import Record
from ps.messages.wire import in_messages
from ps.net.cancellation import Cancellation, CancelledError
from ps.net.sockets import COORDINATOR, Address, connect
from ps.net.wake import Wake
from runtime.memory import peak_rss_bytes
from runtime.tail import Tail
from scheduler.coordinator.batch_trace import BatchSpan, BatchTrace
from scheduler.coordinator.coordinator import Coordinator
from scheduler.coordinator.coordinator_state import CoordinatorState
from scheduler.coordinator.events import (
    Answers,
    Command,
    CutTaken,
    EvaluationWanted,
    Event,
    FailJob,
    FinishWanted,
    GiveUpWorker,
    MeasureDenseNorm,
    PauseWanted,
    PlanGrown,
    SendRecords,
    ServersWanted,
    ShiftWanted,
    StopWanted,
    TakeCut,
    TimePassed,
    Wanted,
    Warn,
    WorkerLost,
    WorkersReported,
    WorkersWanted,
    events_of,
)
from scheduler.coordinator.growing_plan import Extension
from scheduler.coordinator.history import NOTHING, Told
from scheduler.coordinator.modes.shift import check_shift
from scheduler.coordinator.shard_watch import ShardWatch
from scheduler.coordinator.spec import CoordinatorSpec
from scheduler.coordinator.status import CutResult, ServersView, Status, status_of
from scheduler.scaling.decisions import ScalingView
from worker.protocol import Grant, Report

TICK_SECONDS = 0.2


@dataclass(slots=True)
class _Notices:
    """Commands that are for the driver: all since the start, a handful a lost worker."""

    give_up: list[tuple[int, int, str]] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    silent_shards: list[tuple[int, str]] = field(default_factory=list)
    gone: dict[int, str] = field(default_factory=dict)
    failure: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class CoordinatorFaults:
    """What befalls the coordinator on purpose.

    Args:
        dies_at_step: its process kills itself once it has sent that step's record to every shard.
        connections: what befalls its connections to the shards.
    """

    dies_at_step: int | None = None
    connections: ConnectionFaults = field(default_factory=ConnectionFaults)


class CoordinatorServer:
    """Runs the state machine under a lock, and sends its records to the shards in order.

    Args:
        spec: of the state machine.
        addresses: of the shards' primaries, in their order.
        standbys: the addresses of standbys, by shard.
        secret: that the shards ask for.
        node_id: of this process.
        retry_seconds: how long a shard may be out of reach.
        faults: what befalls it on purpose.
        state: of an earlier coordinator, to go on from; None: the job begins.

    Raises:
        ValueError: the state is of another plan.
    """

    def __init__(
        self,
        spec: CoordinatorSpec,
        addresses: tuple[Address, ...],
        *,
        secret: bytes,
        node_id: str,
        retry_seconds: float,
        standbys: Mapping[int, Address] = MappingProxyType({}),
        faults: CoordinatorFaults = CoordinatorFaults(),
        state: CoordinatorState | None = None,
    ) -> None:
        copies = spec.copies
        places = dict(enumerate(addresses))
        places |= {copies.standby_of(shard): place for shard, place in standbys.items()}
        self._faults = faults
        self._coordinator = Coordinator(spec, state)
        self._clock = time.monotonic
        self._lock = threading.Lock()
        self._notices = _Notices()
        self._cuts: Tail[CutResult] = Tail()
        self._server_orders: list[int | None] = []
        self._servers: ServersView | None = None
        self._scaling: ScalingView | None = None
        self._trace = BatchTrace()
        self._outbox: list[Record | TakeCut] = []  # in the order in which shards take it
        self._to_measure: list[MeasureDenseNorm] = []
        self._closing = False
        self._cpu_seconds_before = time.process_time()
        self._wakes = Wake()
        self._cancellation = Cancellation()
        self._is_up = False
        self._is_to_finish = False
        self._client = PsClient(
            spec.store,
            with_faults(
                lambda number: connect(
                    places[number],
                    node_id=node_id,
                    secret=secret,
                    name=COORDINATOR,
                    cancellation=self._cancellation,
                ),
                faults.connections,
                process=(1, 0, 0),  # workers have 0 first
            ),
            recovery_epoch=spec.recovery_epoch,
            standbys=spec.standbys,
            retry_seconds=retry_seconds,
            refused=self._note_gone,
            cancellation=self._cancellation,
        )
        self._is_up = True
        self._client.watch(self._wakes.sock)
        self._client.heard = lambda number: self._shards.heard(number, self._clock())
        self._shards = ShardWatch(copies.numbers, limit=spec.server_timeout_seconds)
        self._thread = threading.Thread(target=self._speak_to_shards, daemon=True)
        self._thread.start()

    def exchange(self, reports: Sequence[Report]) -> Sequence[Grant]:
        """Take reports of workers and return their answers, in their order."""
        with self._lock:
            for report in reports:
                if report.finished:
                    self._trace.add(report)
        for command in self._handle(WorkersReported(reports)):
            if isinstance(command, Answers):
                return command.grants
        raise AssertionError("reports have answers")

    def fail(self, error: Exception) -> None:
        """Something went wrong that nobody else would see: the job can't go on."""
        with self._lock:
            self._notices.failure = f"the coordinator can't go on: {error}"

    def worker_lost(self, worker: int, incarnation: int) -> None:
        """A worker's process is gone: take back what it held."""
        self._handle(WorkerLost(worker, incarnation))

    def order(self, wanted: Wanted) -> None:
        """Somebody wants something of the running job.

        Raises:
            ValueError: it can't be had.
        """
        self._check_in_time(wanted)
        if isinstance(wanted, ShiftWanted):
            check_shift(self._coordinator.rule.name, wanted.mode)
        if isinstance(wanted, WorkersWanted) and wanted.count is not None:
            self._coordinator.spec.check_workers(wanted.count)
        if isinstance(wanted, ServersWanted):
            self._want_servers(wanted.count)
        elif isinstance(wanted, FinishWanted):
            if self._coordinator.spec.plan is not None:
                raise ValueError(
                    "finish is for jobs on a stream; a job of files ends by itself, and"
                    " `synchromesh control RUN stop` ends it early"
                )
            self._is_to_finish = True
        else:
            self._handle(wanted)

    def _check_in_time(self, wanted: Wanted) -> None:
        """Raise ValueError where it is about a training that is over."""
        of_training = isinstance(wanted, ShiftWanted | PauseWanted | ServersWanted)
        if isinstance(wanted, WorkersWanted):
            of_training = not wanted.by_policy
        with self._lock:
            ended = self._coordinator.ledger.exhausted
        if of_training and ended:
            raise ValueError(
                "this comes too late: training has ended, and nothing was changed. What is left of"
                " the job is its last evaluation and checkpoint"
            )

    def _want_servers(self, count: int | None) -> None:
        """Tell the driver, which has them, at its next look."""
        self._coordinator.spec.check_servers(count)
        with self._lock:
            self._server_orders.append(count)
            before = self._servers or ServersView(wanted=self._coordinator.spec.store.num_shards)
            wanted = count or before.wanted
            self._servers = replace(before, wanted=wanted, automatic=count is None)

    def grow_plan(self, recovery_epoch: int, extension: Extension | None, at: float) -> int | None:
        """Let the plan grow, see `PlanGrown`; return None where another epoch is meant.

        Returns:
            The batch id below which all are resolved.
        """
        if recovery_epoch != self._coordinator.spec.recovery_epoch:
            return None
        self._handle(PlanGrown(extension, at))
        with self._lock:
            return self._coordinator.ledger.low_water

    def cut_state(self, step: int) -> CoordinatorState:
        """Return the state of the job at the cut that is to be written, or of one that is trained.

        Raises:
            ValueError: it is of another step.
        """
        with self._lock:
            coordinator = self._coordinator
            if coordinator.ledger.exhausted and coordinator.step == step:
                return coordinator.state()
            return coordinator.cuts.state_of(step)

    def cut_taken(self, step: int, path: str | None, error: str | None) -> None:
        """The cut of a step is written, or could not be."""
        with self._lock:
            cut = self._coordinator.cuts.running
            asked = cut is not None and cut.step == step and cut.asked and cut.kind == "full"
            self._cuts.append(CutResult(step, path, error, asked))
        self._handle(CutTaken(step, failed=path is None))

    def evaluate(self) -> None:
        """Evaluate the trained model; `status` tells when that is over."""
        self._handle(EvaluationWanted())

    def stop_workers(self) -> None:
        """Tell every worker to end at its next report."""
        self._handle(StopWanted())

    def status(self, told: Told = NOTHING) -> Status:
        """Return a copy of what reports need.

        Args:
            told: what the caller has been told already; an answer that got lost is given again.
        """
        with self._lock:
            return self._status(told)

    def show_scaling(self, view: ScalingView) -> None:
        """Keep what whoever asks for the status is told of scaling."""
        with self._lock:
            self._scaling = view

    def show_servers(self, view: ServersView) -> None:
        """Keep what whoever asks for the status is told of the servers that are wanted."""
        with self._lock:
            self._servers = view

    def take_batches(self) -> list[BatchSpan]:
        """Return the batches that were computed since the last call; bounded."""
        with self._lock:
            return self._trace.take()

    def close(self, *, patience: float = 5.0) -> None:
        """Say no more to the shards; wait at most so many seconds for what is being said."""
        self._closing = True
        self._cancellation.set()
        self._wakes.set()
        self._thread.join(timeout=patience)
        self._client.close()
        self._wakes.close()

    # Inside -----------------------------------------------------------------------------------

    def _handle(self, event: Event) -> list[Command]:
        with self._lock:
            commands = self._coordinator.handle(event, self._clock())
            for command in commands:
                self._carry_out(command)
        return commands

    def _carry_out(self, command: Command) -> None:
        match command:
            case SendRecords():
                self._outbox.extend(command.records)
                self._wakes.set()
            case TakeCut():
                self._outbox.append(command)
                self._wakes.set()
            case MeasureDenseNorm():
                self._to_measure.append(command)
                self._wakes.set()
            case GiveUpWorker():
                self._notices.give_up.append((command.worker, command.incarnation, command.text))
            case Warn():
                self._notices.warnings.append(command.text)
            case FailJob():
                self._notices.failure = command.text

    def _speak_to_shards(self) -> None:
        """Send records and cuts to every shard as they come; many small steps share a message."""
        last_tick = self._clock()
        try:
            while not self._closing:
                with self._lock:
                    outbox, self._outbox = self._outbox, []
                    to_measure, self._to_measure = self._to_measure, []
                for norm in to_measure:
                    self._asks(self._coordinator.spec.copies.primaries)
                    self._client.start_dense_norm(norm.step, norm.entries, norm.divisor)
                self._send(outbox)
                for shard in self._shards.due(self._clock()):
                    self._shards.asks(shard, self._clock())
                    self._client.start_apply(shard, ())
                for request in self._client.poll(TICK_SECONDS):
                    self._acknowledge(request)
                self._shards.read(self._clock())
                self._wakes.clear()
                if self._clock() - last_tick > TICK_SECONDS:
                    last_tick = self._clock()
                    self._handle(TimePassed())
        except CancelledError:
            pass  # it is closed
        except ShardLostError as error:
            with self._lock:
                self._notices.silent_shards.append((error.shard, str(error)))
            self.fail(error)
        except Exception as error:
            self.fail(error)

    def _asks(self, numbers: Iterable[int]) -> None:
        for number in numbers:
            self._shards.asks(number, self._clock())

    def _note_gone(self, number: int, error: OSError) -> None:
        """Nobody listens at a copy's address any more, which another try will not change.

        Raises:
            ShardLostError: this coordinator has not begun yet.
        """
        name = self._coordinator.spec.copies.name_of(number)
        if not self._is_up:
            raise ShardLostError(number, 0.0, str(error), name) from error
        with self._lock:
            self._notices.gone.setdefault(number, f"nobody listens there any more: {error}")

    def _send(self, outbox: list[Record | TakeCut]) -> None:
        copies = self._coordinator.spec.copies
        if outbox:
            self._asks(copies.numbers)
        for is_cut, run in groupby(outbox, lambda each: isinstance(each, TakeCut)):
            if is_cut:
                for cut in run:
                    assert isinstance(cut, TakeCut)
                    self._client.start_freeze(cut.number, cut.step, changed_only=cut.changed_only)
                continue
            records = [each for each in run if isinstance(each, Record)]
            for message in in_messages(records):
                for number in copies.numbers:
                    self._client.start_apply(number, message)
            self._die_if_due(records[-1].step)

    def _die_if_due(self, step: int) -> None:
        if self._faults.dies_at_step is not None and step >= self._faults.dies_at_step:
            os.kill(os.getpid(), signal.SIGKILL)

    def _acknowledge(self, request: Open) -> None:
        for refusal in request.refusals.values():
            raise RuntimeError(refusal.text)
        for event in events_of(request, self._client.routing):
            self._handle(event)

    def _look_at_shards(self) -> None:
        held_up_by = self._client.held_up_by
        for shard, seconds in self._shards.newly_silent(self._clock(), held_up_by=held_up_by):
            name = self._coordinator.spec.copies.name_of(shard)
            text = f"{name} has answered nothing for {seconds:.0f} s"
            self._notices.silent_shards.append((shard, text))

    def _status(self, told: Told) -> Status:
        c, notices = self._coordinator, self._notices
        self._look_at_shards()
        told = told.known_in(c.spec.recovery_epoch)
        status = status_of(c, told)
        cut = status.cut
        if cut is not None:
            cut = replace(cut, at=time.time() - (self._clock() - cut.at))
        return replace(
            status,
            cut=cut,
            cuts=self._cuts.since(told.cuts),
            give_up=tuple(notices.give_up[told.give_up :]),
            warnings=tuple(notices.warnings[told.warnings :]),
            silent_shards=tuple(notices.silent_shards[told.silent_shards :]),
            gone_shards=tuple(notices.gone.items()),
            server_orders=tuple(self._server_orders[told.server_orders :]),
            failure=notices.failure,
            scaling=self._scaling,
            is_to_finish=self._is_to_finish,
            servers_view=self._servers,
            peak_rss_bytes=peak_rss_bytes(),
            cpu_seconds=time.process_time() - self._cpu_seconds_before,
            pid=os.getpid(),
            told=replace(
                status.told,
                cuts=self._cuts.count,
                give_up=len(notices.give_up),
                warnings=len(notices.warnings),
                silent_shards=len(notices.silent_shards),
                server_orders=len(self._server_orders),
            ),
        )
