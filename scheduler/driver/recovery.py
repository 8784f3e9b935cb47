"""A job goes on after the loss of a server or of the coordinator: how often, and from where."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from ray.exceptions import RayTaskError

from ps.checkpoint.manifest import CheckpointError
from scheduler.driver.epochs import Epochs
from scheduler.driver.points import Point
from scheduler.driver.processes import ProcessLostError
from scheduler.driver.supervisor import Supervisor
from scheduler.run.recoveries import Recoveries

T = TypeVar("T")

# Processes of one node die together, and are not noticed at the same moment.
TOGETHER_SECONDS = 0.2


class Recovery:
    """Does the work of a job, and does it again from a cut whenever a process is lost.

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
        newest_point: Callable[[set[Path]], Point],
        note: Callable[[str], None],
    ) -> None:
        self._epochs = epochs
        self._supervisor = supervisor
        self._recoveries = recoveries
        self._newest_point = newest_point
        self._note = note
        self._damaged: set[Path] = set()

    def run(self, point: Point, work: Callable[[], T]) -> T:
        """Begin at a point and do the work; return what it returns.

        Args:
            work: what is done once all processes work; done anew, from a cut on, after a loss.

        Raises:
            TrainingError: the job can't go on.
        """
        while True:
            entering = True
            try:
                self._epochs.begin(point, self._supervisor.last_status)
                self._supervisor.begin_epoch(point)
                entering = False
                return work()
            except ProcessLostError as loss:
                point = self._after(loss, entering=entering)
            except RayTaskError as error:
                damaged = isinstance(error.cause, CheckpointError | OSError)
                if not (entering and damaged and point.checkpoint is not None):
                    raise
                self._damaged.add(point.checkpoint)
                self._note(f"{point.checkpoint} can't be used: {error.cause}")
                point = self._back()

    def _after(self, loss: ProcessLostError, *, entering: bool) -> Point:
        """Replace what is lost; return the point at which the job goes on."""
        time.sleep(TOGETHER_SECONDS)
        lost = {**self._supervisor.lost_servers(), **loss.lost}
        last = self._supervisor.last_status
        self._recoveries.failed(
            lost,
            step=0 if last is None else last.applied_step,
            samples=0 if last is None else last.samples.applied,
            now=time.time(),
            entering=entering,
        )
        self._note("; ".join(lost.values()))
        self._epochs.replace(sorted(lost))
        return self._back()

    def _back(self) -> Point:
        point = self._newest_point(self._damaged)
        self._recoveries.goes_back(point.step, point.samples)
        self._note(f"the job goes back to {point.described}")
        return point
