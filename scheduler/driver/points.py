"""Where the processes of a job begin in a recovery epoch: at the job's beginning, or at a cut."""

from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path

from ps.checkpoint.manifest import Parent
from ps.checkpoint.read import CheckpointReader
from runtime.places import Place
from scheduler.coordinator.coordinator_state import CoordinatorState, beginning_of
from scheduler.driver.resolved import JobSpecs
from scheduler.errors import TrainingError
from scheduler.run.saved_cuts import SavedCut, saved_cuts


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """A state of all shards and of the coordinator after the same step.

    Args:
        state: of the coordinator.
        checkpoint: of this run, that has the shards' state; None: the job's beginning.
        num_bytes: of what the shards read.
        bears: a delta may lie on the checkpoint, which has so many on one another; None: none may.
        seal: of its manifest.
    """

    state: CoordinatorState
    checkpoint: Place | None = None
    num_bytes: int = 0
    bears: int | None = None
    seal: str = ""

    @property
    def parent(self) -> Parent | None:
        """What the first cut from here on may lie on."""
        if self.checkpoint is None or self.bears is None:
            return None
        return Parent(self.checkpoint.name, self.seal)

    @property
    def step(self) -> int:
        return self.state.step

    @property
    def described(self) -> str:
        """How a person is told of it."""
        if self.checkpoint is None:
            return f"the job's beginning (step {self.step})"
        return f"{self.checkpoint} (step {self.step})"


def point_of(cut: SavedCut, specs: JobSpecs) -> Point:
    """Return a cut of the job itself as a point."""
    reader = cut.reader
    return Point(
        state=cut.state,
        checkpoint=cut.path,
        num_bytes=reader.num_bytes,
        bears=reader.num_deltas if reader.can_bear(specs.store) else None,
        seal=reader.seal,
    )


def newest_point(
    run: Path, specs: JobSpecs, damaged: Collection[Place], note: Callable[[str], None]
) -> Point:
    """Return the newest point that a job can go on from.

    Args:
        damaged: checkpoints that turned out to be.
        note: tells a person what is passed over.

    Raises:
        TrainingError: there is none.
    """
    for cut in saved_cuts(run, note, without=damaged):
        return point_of(cut, specs)
    return job_beginning(specs)


def job_beginning(specs: JobSpecs) -> Point:
    """Return the point at which a job begins that goes on from nothing.

    Raises:
        TrainingError: the job went on from a cut, and how it began is not known for sure.
    """
    if specs.beginning.is_over:
        raise TrainingError(
            "none of the run's checkpoints can be read any more, so the job can't go on"
        )
    num_bytes = 0
    if specs.beginning.checkpoint is not None:
        num_bytes = CheckpointReader(specs.beginning.checkpoint).num_bytes
    return Point(state=beginning_of(specs.coordinator), num_bytes=num_bytes)
