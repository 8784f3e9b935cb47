"""One simulated job: the processes around the real state machines, and the driver that supervises.

`engine` runs it and says whether what came out is right.
"""

from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache
from itertools import groupby

import numpy as np
import numpy.typing as npt

from ps.checkpoint.restore import start_shard_from
from ps.client.client import Open
from ps.copies import Copies
from ps.messages.exchange import Request
from ps.messages.records import Apply, DenseNorm, Freeze, Record
from ps.shard.shard import Shard
from ps.spec import StoreSpec
from scheduler.coordinator.coordinator_state import CoordinatorState
from scheduler.coordinator.events import (
    Answer,
    Command,
    EvaluationWanted,
    Event,
    FailJob,
    GiveUpWorker,
    MeasureDenseNorm,
    PauseWanted,
    SendRecords,
    StopWanted,
    TakeCut,
    TimePassed,
    WorkerReported,
    WorkersReported,
    events_of,
    of_different_workers,
)
from scheduler.coordinator.spec import CoordinatorSpec
from scheduler.coordinator.start import Start
from simulation.arrivals import Arrivals
from simulation.cuts import KeptCut
from simulation.data import Workload
from simulation.network import Client, Network
from simulation.outcome import Outcome
from simulation.parts import Parts
from simulation.recovery import Driver, Unwatched
from simulation.referee import CutOffReferee, Referee, Violation
from simulation.relays import SimulatedRelays
from simulation.saved import SavedJob
from simulation.scenario import Scenario
from simulation.seen import Seen
from simulation.staff import Staff
from simulation.told import grants_of
from simulation.verdict import check_begun, check_ended, digest_of
from simulation.worker import SimulatedWorker
from simulation.world import AGAIN_SECONDS, Action, World
from worker.protocol import Grant, Report
from worker.session import Session

FIRST_RECOVERY_EPOCH = 3
HEARTBEAT_TIMEOUT_SECONDS = 1.0
LEASE_TIMEOUT_SECONDS = 1.5
STALL_SECONDS = 20.0
TICK_SECONDS = 0.1
# Far more than any job of this size needs once faults have stopped.
END_SECONDS = 120.0
MOST_EVENTS = 400_000


class Simulation:
    """One job: the processes around the state machines, and the driver that supervises them."""

    def __init__(self, scenario: Scenario, parts: Parts) -> None:
        self.scenario = scenario
        self.world = World(scenario)
        self.workload = Workload(scenario, shards=scenario.shards)
        self.earlier = _end_of(scenario.earlier_job) if scenario.earlier else None
        self.recovery_epoch = FIRST_RECOVERY_EPOCH
        self.begins_with: KeptCut | None = None  # of this epoch, if all went back to one
        self._parts = parts
        self.incoming_class = parts.incoming
        self.standbys: dict[int, Shard] = {}
        self.coordinator = parts.coordinator(self.spec())
        self.shards = [self._new_shard(index) for index in range(scenario.shards)]
        if scenario.standby:
            self.standbys |= {index: self._new_shard(index) for index in range(scenario.shards)}
            self.coordinator = parts.coordinator(self.spec())  # whose copies these are
        self.referee = self._new_referee(None)
        copies = self.shards, self.standbys
        self._network = Network(self.world, *copies, self.referee, parts.lease)
        self._network.cut_off_observer = CutOffReferee(self.world)
        self._client = self._new_client()
        self._outbox: list[Record | TakeCut] = []
        self.is_down = False  # the coordinator: it is dead, or another one is about to begin
        self._staff = Staff(self)
        self._relays = SimulatedRelays(
            self.world, scenario.relays, gathering=parts.gathering, tell=self._take_reports
        )
        self._evaluated = False
        faults = scenario.faults
        self.driver = Driver(self, parts, cut_fails=faults.cut_fails, copy_fails=faults.copy_fails)
        self._arrivals = Arrivals(scenario, self.world, self.handle)

    def run(self) -> Outcome:
        """Run to the end."""
        faults, queue = self.world.faults, self.world.queue
        for index in range(self.scenario.workers):
            self._staff.start(index, 0)
        for seconds, event in self.scenario.orders:
            queue.at(seconds, self._orderer(event))
        for happens, action in (
            (faults.recoveries, self.driver.go_back),
            (faults.moves, self.driver.move),
            (faults.resizes, self.driver.resize),
            (faults.shard_deaths, self._kill_shard),
            (faults.cut_off_shards, self._cut_off_shard),
            (faults.coordinator_deaths, self._kill_coordinator),
        ):
            for seconds in happens:
                queue.at(seconds, self._unless_over(action))
        self._arrivals.begin()
        self._tick()
        while queue.step():
            if queue.now > END_SECONDS or queue.done > MOST_EVENTS:
                raise Violation(f"no end in sight: {self.coordinator.who_waits(queue.now)}")
        check_ended(
            self.scenario,
            self.referee.seen,
            self.coordinator,
            self.shards,
            self.standbys,
            earlier=self.earlier,
            histories=not self.driver.rebuilt,
        )
        return self._outcome()

    def _outcome(self) -> Outcome:
        tallies = self.coordinator.ledger.tallies
        return Outcome(
            digest=digest_of(self.shards),
            evaluations=tuple(self.coordinator.progress.evaluations),
            steps=self.coordinator.step,
            batches=self.coordinator.ledger.low_water,
            kills=self.world.num_kills,
            hangs=self.world.num_hangs,
            dropped=tallies.dropped,
            reissued=tallies.reissued,
            superseded=tallies.superseded,
            late_gradients=sum(shard.counts.gradients_of_evicted_keys for shard in self.shards),
            recoveries=self.recovery_epoch - FIRST_RECOVERY_EPOCH,
            cuts=len(self.driver.cuts),
            failed_cuts=self.driver.failed,
            promotions=self.driver.promotions,
            copies=self.driver.copying.made,
            moves=self.driver.moved,
            resizes=self.driver.resizing.done,
            given_up=self.driver.resizing.given_up,
            seconds=self.world.queue.now,
        )

    # One history ------------------------------------------------------------------------------

    def spec(self) -> CoordinatorSpec:
        """Return what the coordinator of this recovery epoch is told."""
        start = Start() if self.earlier is None else self.earlier.start
        spec = _coordinator_spec(self.scenario, self.workload, start, self.recovery_epoch)
        standbys = tuple(sorted(self.standbys))
        below = None if self.begins_with is None else self.begins_with.num_deltas
        return replace(spec, standbys=standbys, deltas_below=below)

    def _new_shard(self, index: int) -> Shard:
        shard = self.fenced_shard(index)
        self.begin_shard(shard)
        return shard

    def fenced_shard(self, index: int) -> Shard:
        """Return a new process of a shard."""
        return self._parts.shard(
            self.workload.store,
            index,
            max_contributions=self.scenario.buffered or 2 * self.coordinator.credits + 16,
            always_buffered=self.scenario.group_size + self.scenario.mode_options.backup_batches,
        )

    @property
    def store(self) -> StoreSpec:
        """The store of this recovery epoch."""
        return self.workload.store

    def go_by(self, store: StoreSpec) -> None:
        """Who begins from now on goes by another routing."""
        self.workload = Workload(self.scenario, shards=store.num_shards, routing=store.routing)

    def begin_shard(self, shard: Shard) -> None:
        """Give a shard the state in which the job began."""
        epoch = self.recovery_epoch
        if shard.routing != self.store.routing:
            shard.fence()
            shard.go_by(self.store)
        if self.earlier is None:
            part = slice(*self.workload.store.routing.dense_range(shard.index))
            shard.initialize(epoch, dense=self.workload.initial_dense[part])
        else:
            start_shard_from(shard, self.earlier, recovery_epoch=epoch, goes_on=True)

    def _new_referee(self, before: Seen | None) -> Referee:
        if before is None:
            before = Seen(() if self.earlier is None else self.earlier.records)
        copies = self.shards, self.standbys
        return Referee(
            self.scenario, self.coordinator, *copies, self.world.story, before, self.begins_with
        )

    def _new_client(self) -> Client:
        copies = self.coordinator.spec.copies
        return Client(self._network, copies, answered=self._acknowledged, run=lambda act: act())

    # What the driver does -----------------------------------------------------------------------

    def stop_coordinator(self) -> None:
        """The coordinator takes and sends nothing any more, and nobody is watched."""
        self.is_down = True
        self._client.close()
        self._outbox = []
        self._network.observer = Unwatched()

    def replace_shard(self, index: int) -> None:
        """A new process takes the place of a shard, which is lost or ends; it is fenced."""
        if index not in self._network.dead:
            self._network.kill_shard(index)
        self.shards[index] = self.fenced_shard(index)
        self._network.revive(index)

    def promote(self, index: int) -> None:
        """A shard's standby takes the place of its primary, which is lost."""
        self.world.story.tell("the standby of shard %s takes its place", index)
        self.shards[index] = self.standbys.pop(index)
        self._network.revive(index)

    def end_standby(self, index: int) -> None:
        """A shard has no standby any more."""
        number = len(self.shards) + index
        if number not in self._network.dead:
            self._network.kill_shard(number)
        del self.standbys[index]

    def join(self, index: int, standby: Shard) -> None:
        """A process is the standby of a shard from now on."""
        self.world.story.tell("shard %s has a standby again", index)
        self.standbys[index] = standby
        self._network.revive(len(self.shards) + index)

    def begin_coordinator(self, state: CoordinatorState, step: int) -> None:
        """A coordinator goes on from a state; shards and workers have gone on, too.

        These are told some time later, and do until then what they were doing.
        """
        self.is_down, self._evaluated = False, False
        self.coordinator = self._parts.coordinator(self.spec(), self._arrivals.taken_up(state))
        self.referee = self._network.observer = self._new_referee(self.referee.seen.until(step))
        self._client = self._new_client()
        check_begun(self.shards, self.standbys, self.store.routing)
        self._network.beat(self.recovery_epoch)  # the first that it says
        for shard in self.shards:
            self._network.take_ready(shard)
        for worker in self._staff.current.values():
            self.world.queue.later(self.world.random.uniform(0.0, 0.3), self._teller(worker))
        self._arrivals.tell_again()
        self._staff.hire()

    def _teller(self, worker: SimulatedWorker) -> Action:
        def tell() -> None:
            session = self._new_session(worker.index, worker.incarnation)
            worker.told(session, self.coordinator.spec.copies, self.workload)

        return tell

    def _new_session(self, index: int, incarnation: int) -> Session:
        epoch = self.coordinator.spec.recovery_epoch  # of the next one nobody is told yet
        return self._parts.session(
            index, incarnation, depth=self.scenario.depth, recovery_epoch=epoch
        )

    # The coordinator's process ----------------------------------------------------------------

    def handle(self, event: Event) -> list[Command]:
        """Tell the coordinator something; where none is there it is lost."""
        if self.is_down:
            return []
        step = self.coordinator.step
        commands = self.coordinator.handle(event, self.world.queue.now)
        self.referee.coordinator_took(event, commands, step_before=step, now=self.world.queue.now)
        for command in commands:
            match command:
                case SendRecords():
                    if not self._outbox:
                        self.world.queue.later(self.world.delay(), self._send_records)
                    self._outbox.extend(command.records)
                case TakeCut():
                    self.world.story.tell("%s", command)
                    if not self._outbox:
                        self.world.queue.later(self.world.delay(), self._send_records)
                    self._outbox.append(command)
                case MeasureDenseNorm():
                    self.world.queue.later(self.world.delay(), self._measurer(command))
                case GiveUpWorker():
                    self.world.story.tell("%s", command.text)
                    self._staff.give_up(command.worker, command.incarnation)
                case FailJob():
                    raise Violation(command.text)
        return commands

    def _send_records(self) -> None:
        """Send records and cuts in their order, as `CoordinatorServer` does."""
        outbox, self._outbox = self._outbox, []
        if self.is_down:
            return
        for is_cut, run in groupby(outbox, lambda each: isinstance(each, TakeCut)):
            said = list(run)
            for cut in [each for each in said if isinstance(each, TakeCut)]:
                self._freeze(cut)
            if not is_cut:
                self._apply(tuple(each for each in said if isinstance(each, Record)))

    def _apply(self, records: tuple[Record, ...]) -> None:
        for number in self.coordinator.spec.copies.numbers:
            request_id = self._client.new_id()
            message = Apply(request_id, self.recovery_epoch, records)
            self._client.start({number: message}, survives=lambda: True)

    def _freeze(self, cut: TakeCut) -> None:
        request_id, epoch = self._client.new_id(), self.recovery_epoch
        message = Freeze(request_id, epoch, cut.number, cut.step, cut.changed_only)
        messages: dict[int, Request] = dict.fromkeys(range(self.scenario.shards), message)
        self._client.start(messages, survives=lambda: True)

    def _measurer(self, norm: MeasureDenseNorm) -> Action:
        epoch = self.recovery_epoch

        def measure() -> None:
            if not self.is_down and self.recovery_epoch == epoch:
                request_id = self._client.new_id()
                message = DenseNorm(request_id, epoch, norm.step, norm.entries, norm.divisor)
                messages: dict[int, Request] = dict.fromkeys(range(self.scenario.shards), message)
                self._client.start(messages, survives=lambda: True)

        return measure

    def _acknowledged(self, request: Open) -> None:
        for event in events_of(request, self.store.routing):
            self.handle(event)

    def exchange(self, worker: SimulatedWorker, report: Report) -> None:
        """Carry a report, by a relay perhaps: it can be lost, repeated or late."""

        def handed(grant: Grant) -> None:
            self.referee.handed((worker.index, worker.incarnation), grant)
            worker.answered(grant)

        if not self._relays.takes(report, handed):
            self._carry(lambda: self._take_report(worker, report))

    def _take_reports(self, reports: Sequence[Report]) -> list[Grant] | None:
        """Take what a relay passes on; return the answers, None: nobody is there to answer."""
        grants: list[Grant] = []
        for group in of_different_workers(reports):
            grants += grants_of(self.handle(WorkersReported(group)))
        for grant in grants:
            self._arrivals.check(grant)
        return grants if len(grants) == len(reports) else None

    def _take_report(self, worker: SimulatedWorker, report: Report) -> None:
        for command in self.handle(WorkerReported(report)):
            if isinstance(command, Answer):
                self._answer(worker, command.grant)

    def _answer(self, worker: SimulatedWorker, grant: Grant) -> None:
        self._arrivals.check(grant)
        self._carry(lambda: worker.answered(grant))

    def _carry(self, arrive: Action) -> None:
        """Carry half of a call: it can be late, be lost, or arrive once more later on."""
        world = self.world
        if not world.strikes("lose"):
            world.queue.later(world.delay(), arrive)
        if world.strikes("duplicate"):
            world.queue.later(world.random.uniform(0.0, AGAIN_SECONDS), arrive)

    def _orderer(self, event: Event) -> Action:
        def order() -> None:
            if self.is_down:  # who wants it asks again
                self.world.queue.later(0.1, order)
            elif not self.coordinator.stopping:
                self.world.story.tell("%s", event)
                self.handle(event)
                self._staff.hire()
                if event == PauseWanted(False):
                    # Of a job that has gone back to before that, it is wanted again.
                    self.world.queue.later(1.0, order)

        return order

    # The driver's process ---------------------------------------------------------------------

    def _tick(self) -> None:
        """Look at the time; end the job in the order in which the driver does."""
        self.handle(TimePassed())
        if not self.is_down:
            self._network.beat(self.recovery_epoch)
        if not self.driver.is_busy:
            self.driver.look()
            self._end_if_trained()
        if self._staff.current or not self.coordinator.stopping or self.driver.is_busy:
            self.world.queue.later(TICK_SECONDS, self._tick)
        else:
            self._client.close()
            self.driver.copying.end()

    def _end_if_trained(self) -> None:
        coordinator = self.coordinator
        if not coordinator.trained or coordinator.evaluation is not None or coordinator.stopping:
            return
        if self._evaluated or self.scenario.eval_batches == 0:
            self.handle(StopWanted())
        else:
            self._evaluated = True
            self.handle(EvaluationWanted())

    def new_worker(self, index: int, incarnation: int) -> SimulatedWorker:
        """Return a process that does nothing yet."""
        rng = self.world.random
        return self._parts.worker(
            self.world,
            self._network,
            self.workload,
            self,
            self._new_session(index, incarnation),
            self.coordinator.spec.copies,
            slowness=rng.choice([1.0, 1.0, 1.0, 3.0]) if self.scenario.workers > 1 else 1.0,
        )

    def worker_read(
        self, worker: SimulatedWorker, steps: Sequence[int], dense: npt.NDArray[np.float32]
    ) -> None:
        """See what a worker computes with, unless it has yet to hear of this recovery epoch."""
        if worker.epoch == self.recovery_epoch:
            self.referee.worker_read(steps, dense)

    def worker_ended(self, worker: SimulatedWorker) -> None:
        """A worker has died, or has ended as it was told to."""
        self._staff.ended(worker)

    # Deaths of servers and of the coordinator ---------------------------------------------------

    def _unless_over(self, action: Action) -> Action:
        """Return what does something unless the workers are told to end."""
        return lambda: None if self.coordinator.stopping else action()

    def _kill_shard(self) -> None:
        rng = self.world.random
        shard = rng.choice(self._numbers()) if self.standbys else rng.randrange(len(self.shards))
        if shard not in self._network.dead:
            self._network.kill_shard(shard)
            self.driver.lost_shard(shard)

    def _cut_off_shard(self) -> None:
        """A shard lives on where neither the coordinator nor the driver can reach it."""
        rng = self.world.partitions
        shard = rng.choice(self._numbers()) if self.standbys else rng.randrange(len(self.shards))
        if shard not in self._network.dead:
            self._network.cut_off_shard(shard, self._client)
            self.driver.unreachable_shard(shard)

    def _numbers(self) -> tuple[int, ...]:
        return Copies(len(self.shards), tuple(sorted(self.standbys))).numbers

    def _kill_coordinator(self) -> None:
        self.world.story.tell("the coordinator dies")
        self.stop_coordinator()
        self.driver.lost_coordinator()


@lru_cache(maxsize=1024)
def _end_of(scenario: Scenario) -> SavedJob:
    simulation = Simulation(scenario, Parts())
    simulation.run()
    (shard,) = simulation.shards
    return SavedJob(shard, simulation.coordinator, simulation.referee.seen.records)


def _coordinator_spec(
    scenario: Scenario, workload: Workload, start: Start, recovery_epoch: int
) -> CoordinatorSpec:
    return CoordinatorSpec(
        store=workload.store,
        plan=None if scenario.arrives else scenario.plan,
        evaluation_plan=scenario.evaluation_plan,
        mode=scenario.mode,
        options=scenario.mode_options,
        group_size=scenario.group_size,
        global_batch=scenario.global_batch,
        workers=scenario.workers,
        depth=scenario.depth,
        buffer_bytes=scenario.buffered,
        start=start,
        recovery_epoch=recovery_epoch,
        attempt_lasts=scenario.attempt_lasts,
        cuts=scenario.cuts,
        eval_every_steps=scenario.eval_every_steps,
        max_seconds=scenario.max_seconds,
        heartbeat_timeout_seconds=HEARTBEAT_TIMEOUT_SECONDS,
        lease_timeout_seconds=LEASE_TIMEOUT_SECONDS,
        stall_seconds=STALL_SECONDS,
    )
