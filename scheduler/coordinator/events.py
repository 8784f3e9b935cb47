"""What the coordinator is told, and what it wants done."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from ps.client.client import Open
from ps.messages.records import ApplyReply, DenseNorm, DenseNormReply, Entry, Freeze, Record
from ps.routing import Routing
from scheduler.coordinator.growing_plan import Extension
from scheduler.coordinator.modes.rules import Mode
from worker.protocol import Grant, Report

# Events -------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class WorkerReported:
    """A worker has reported; the last command is the `Answer`."""

    report: Report


@dataclass(frozen=True, slots=True)
class WorkersReported:
    """Workers have, at about the same time; the last command is the `Answers`.

    What all of them have ended is taken first, steps are ordered once, then each is granted
    something, in the order of the reports.
    """

    reports: Sequence[Report]


@dataclass(frozen=True, slots=True)
class WorkerLost:
    """A worker's process is gone."""

    worker: int
    incarnation: int


@dataclass(frozen=True, slots=True)
class RecordsApplied:
    """A shard is at `step`."""

    shard: int
    step: int


@dataclass(frozen=True, slots=True, eq=False)
class DenseNormMeasured:
    """Every shard has answered: sums of squares of blocks, float64[blocks], in their order."""

    step: int
    parts: tuple[npt.NDArray[np.float64], ...]


@dataclass(frozen=True, slots=True)
class PlanGrown:
    """More of a stream has arrived, or an epoch of it is closed; told again it changes nothing.

    Args:
        extension: None: nothing has arrived.
        at: now, seconds since 1970; infinity: nothing arrives any more.
    """

    extension: Extension | None
    at: float


@dataclass(frozen=True, slots=True)
class TimePassed:
    """Nothing happened; look at the time."""


@dataclass(frozen=True, slots=True)
class ShiftWanted:
    """Go on in another mode, which is kept; `auto` lets the policy choose from now on."""

    mode: Mode | Literal["auto"]


@dataclass(frozen=True, slots=True)
class PauseWanted:
    """Give out no batch for now, or go on."""

    paused: bool


@dataclass(frozen=True, slots=True)
class HoldWanted:
    """Order no further step and give out no batch, as the job is about to move, or go on."""

    held: bool


@dataclass(frozen=True, slots=True)
class WorkersWanted:
    """So many workers, numbered from 0, are to train.

    Args:
        count: None: as many as the policy of scaling finds, from now on.
        by_policy: it is the policy that wants them, and nobody who has taken over.
    """

    count: int | None
    by_policy: bool = False


@dataclass(frozen=True, slots=True)
class ServersWanted:
    """So many servers are to share the model out.

    Args:
        count: None: as many as the policy of scaling finds, from now on.
    """

    count: int | None


@dataclass(frozen=True, slots=True)
class DeltasWanted:
    """Of every cut only what has changed since the one before, for now: others follow them.

    A full one that somebody asks for comes once that is over.
    """

    only: bool


@dataclass(frozen=True, slots=True)
class CutWanted:
    """Take a cut now: a full one, or what the schedule's next one would be."""

    full: bool = True


@dataclass(frozen=True, slots=True)
class CutFrozen:
    """Every shard holds its state of a step."""

    step: int


@dataclass(frozen=True, slots=True)
class CutTaken:
    """The cut of a step is written, or (`failed`) could not be."""

    step: int
    failed: bool = False


@dataclass(frozen=True, slots=True)
class EndOfTrainingWanted:
    """Give out no further batch."""


@dataclass(frozen=True, slots=True)
class FinishWanted:
    """Train what has arrived of a stream by now, and end: the driver sees to it."""


@dataclass(frozen=True, slots=True)
class EvaluationWanted:
    """Evaluate the state as it is, once training is complete."""


@dataclass(frozen=True, slots=True)
class StopWanted:
    """End the workers."""


Wanted = (
    ShiftWanted
    | PauseWanted
    | HoldWanted
    | WorkersWanted
    | ServersWanted
    | CutWanted
    | DeltasWanted
    | EndOfTrainingWanted
    | FinishWanted
)
"""What people, a cluster that scales and the driver want of a running job."""

Event = (
    WorkerReported
    | WorkersReported
    | WorkerLost
    | RecordsApplied
    | DenseNormMeasured
    | PlanGrown
    | TimePassed
    | Wanted
    | CutFrozen
    | CutTaken
    | EvaluationWanted
    | StopWanted
)


def of_different_workers(reports: Sequence[Report]) -> list[Sequence[Report]]:
    """Divide reports, in their order, into groups that have none of a worker twice."""
    if len(reports) == 1 or len({report.worker for report in reports}) == len(reports):
        return [reports]
    groups: list[Sequence[Report]] = []
    group: dict[int, Report] = {}
    for report in reports:
        if report.worker in group:
            groups.append(list(group.values()))
            group.clear()
        group[report.worker] = report
    return [*groups, list(group.values())]


def events_of(request: Open, routing: Routing) -> list[Event]:
    """Return what the answers to a request of the coordinator tell it; refusals are not looked at.

    Args:
        request: records to one shard, or a measurement or a freeze by all; answered.
        routing: of the shards.
    """
    events: list[Event] = []
    parts = {}
    for shard, reply in sorted(request.replies.items()):
        if isinstance(reply, ApplyReply):
            events.append(RecordsApplied(shard, reply.step))
        elif isinstance(reply, DenseNormReply):
            parts[shard] = reply.sums
    message = next(iter(request.messages.values()))
    if isinstance(message, DenseNorm):
        in_order = tuple(parts[shard] for shard in routing.by_block if shard in parts)
        events.append(DenseNormMeasured(message.step, in_order))
    if isinstance(message, Freeze):
        events.append(CutFrozen(message.step))
    return events


# Commands -----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Answer:
    """Answer the report that is being handled."""

    grant: Grant


@dataclass(frozen=True, slots=True)
class Answers:
    """Answer the reports that are being handled, in their order."""

    grants: Sequence[Grant]


@dataclass(frozen=True, slots=True)
class SendRecords:
    """Send records to every shard, in order."""

    records: tuple[Record, ...]


@dataclass(frozen=True, slots=True)
class MeasureDenseNorm:
    """Ask every shard for its part of the norm of a step's dense gradient."""

    step: int
    entries: tuple[Entry, ...]
    divisor: int


@dataclass(frozen=True, slots=True)
class TakeCut:
    """Have every shard freeze its state, behind the records that were sent before."""

    number: int
    step: int
    changed_only: bool


@dataclass(frozen=True, slots=True)
class GiveUpWorker:
    """Replace a worker that has been silent for too long."""

    worker: int
    incarnation: int
    text: str


@dataclass(frozen=True, slots=True)
class Warn:
    text: str


@dataclass(frozen=True, slots=True)
class FailJob:
    text: str


Command = (
    Answer | Answers | SendRecords | MeasureDenseNorm | TakeCut | GiveUpWorker | Warn | FailJob
)
