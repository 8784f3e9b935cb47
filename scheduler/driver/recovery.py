"""A job goes on after the loss of a server or of the coordinator: how often, and from where."""

import time
from collections.abc import Callable
from typing import TypeVar

from ray.exceptions import RayTaskError

from ps.checkpoint.manifest import CheckpointError
from runtime.places import Place
from scheduler.driver.epochs import Epochs
from scheduler.driver.moves import MoveReadyError
from scheduler.driver.points import Point
from scheduler.driver.processes import COORDINATOR, ProcessLostError
from scheduler.driver.resizing import ServersReadyError
from scheduler.driver.standbys import StandbysMadeError
from scheduler.driver.supervisor import Supervisor
from scheduler.run.recoveries import Recoveries

T = TypeVar("T")

# Processes of one node die together, and are not noticed at the same moment.
TOGETHER_SECONDS = 0.2


class Recovery:
    """Does the work of a job, and goes on with it whenever a process is lost.

    Where a server is lost that has no standby, all of them go back to a cut. Else, and where only
    the coordinator is lost, they go on where they are. What moves from a node that will
    be taken away does so at a step at which all stand still.

    Args:
        epochs: begins recovery epochs.
        supervisor: of the job.
        recoveries: counts them, and says when it is enough.
        newest_point: returns the newest point to go back to, leaving out checkpoints that turned
            out to be damaged.
        note: tells a person something.
    """

    def __init__(
        self,
        *,
        epochs: Epochs,
        supervisor: Supervisor,
        recoveries: Recoveries,
        newest_point: Callable[[set[Place]], Point],
        note: Callable[[str], None],
    ) -> None:
        self._epochs = epochs
        self._supervisor = supervisor
        self._recoveries = recoveries
        self._newest_point = newest_point
        self._note = note
        self._damaged: set[Place] = set()

    def run(self, first: Point, work: Callable[[], T]) -> T:
        """Begin at a point and do the work; return what it returns.

        Args:
            work: what is done once all processes work; done anew after a loss.

        Raises:
            TrainingError: the job can't go on.
        """
        point: Point | None = first
        stays = moved = False
        while True:
            entering = True
            try:
                state = self._epochs.begin(
                    point, self._supervisor.last_status, stays=stays, other_routing=moved
                )
                stays = moved = False
                self._recoveries.goes_back(state.step, state.ledger.samples.applied)
                self._supervisor.begin_epoch(state, self._epochs.parent)
                entering = False
                return work()
            except StandbysMadeError:
                point, stays = None, False
            except MoveReadyError as move:
                point, stays = self._after_move(move), True
            except ServersReadyError as ready:
                point, stays, moved = self._after_resizing(ready), True, True
            except ProcessLostError as loss:
                restoring = entering and point is not None
                point = self._after(loss, entering=entering, restoring=restoring)
                stays = moved = False
            except (RayTaskError, ValueError) as error:
                point = self._instead_of(point, error) if entering else None
                stays = moved = False
                if point is None:
                    raise

    def _after_move(self, move: MoveReadyError) -> Point:
        """What moves takes its place; return the point at which all servers stand still."""
        what = f"{move.what}: moved before the node was taken away"
        self._stand_still(what, step=move.step, now=time.time())
        self._note(f"{move.what} moves at step {move.step}")
        self._epochs.take_over(move.new)
        return self._newest_point(self._damaged)

    def _after_resizing(self, ready: ServersReadyError) -> Point:
        """Have other servers from here on; return the point at which all stand still."""
        self._stand_still(ready.what, step=ready.point.step, now=ready.since)
        if self._epochs.resize(ready.new, ready.routing):
            self._note("the servers' standbys are made again: theirs are other buckets now")
        self._supervisor.resizing.took_over(ready.new)
        return ready.point

    def _stand_still(self, what: str, *, step: int, now: float) -> None:
        """Begin what is no loss: the job stands still at a step since then, and goes on there."""
        last = self._supervisor.last_status
        assert last is not None, "it was told that all stands still"
        self._recoveries.moves(what, step=step, samples=last.applied_samples, now=now)

    def _after(self, loss: ProcessLostError, *, entering: bool, restoring: bool) -> Point | None:
        """Replace what is lost; return where the job goes on, None: where the servers are.

        Args:
            entering: whether all were about to enter a recovery epoch.
            restoring: whether they were on their way back, some of them perhaps there.
        """
        time.sleep(TOGETHER_SECONDS)
        lost = {**self._supervisor.lost_servers(), **loss.lost}
        if not entering and COORDINATOR not in lost:
            try:
                self._supervisor.status()  # what was trained since it was asked last is lost, too
            except ProcessLostError as another:
                lost |= another.lost
        last = self._supervisor.last_status
        self._recoveries.failed(
            lost,
            step=0 if last is None else last.applied_step,
            samples=0 if last is None else last.applied_samples,
            now=time.time(),
            entering=entering,
            preempted=all(map(self._supervisor.moves.is_on_drained_node, lost)),
        )
        self._note("; ".join(lost.values()))
        promoted = self._epochs.replace(lost)
        if promoted is None or restoring:
            return self._back()
        self._recoveries.promotes(promoted)
        for index in promoted:
            self._note(f"the standby of server {index} takes its place")
        self._note("the servers have all that was applied: the job goes on from there")
        return None

    def _instead_of(self, point: Point | None, error: RayTaskError | ValueError) -> Point | None:
        """Return where the job goes back to where it can't begin at a point; None: nowhere."""
        if point is None:
            self._note(f"the servers don't hold one state of the job: {_cause(error)}")
            return self._back()
        if point.checkpoint is None or not isinstance(_cause(error), CheckpointError | OSError):
            return None
        self._damaged.add(point.checkpoint)
        self._note(f"{point.checkpoint} can't be used: {_cause(error)}")
        return self._back()

    def _back(self) -> Point:
        point = self._newest_point(self._damaged)
        self._note(f"the job goes back to {point.described}")
        return point


def _cause(error: BaseException) -> BaseException:
    """Return what a process raised, of an error that Ray wraps."""
    return getattr(error, "cause", None) or error
