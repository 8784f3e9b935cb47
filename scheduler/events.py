"""What the coordinator is told, and what it wants done."""

from dataclasses import dataclass

from ps.messages import Record
from worker.protocol import Grant, Report

# Events -------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class WorkerReported:
    report: Report


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


@dataclass(frozen=True, slots=True)
class TimePassed:
    """Nothing happened; look at the time."""


@dataclass(frozen=True, slots=True)
class EvaluationWanted:
    """Evaluate the state as it is, once training is complete."""


@dataclass(frozen=True, slots=True)
class StopWanted:
    """End the workers."""


Event = WorkerReported | WorkerLost | RecordsApplied | TimePassed | EvaluationWanted | StopWanted


# Commands -----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Answer:
    """Answer the report that is being handled."""

    grant: Grant


@dataclass(frozen=True, slots=True)
class SendRecords:
    """Send records to every shard, in order."""

    records: tuple[Record, ...]


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


Command = Answer | SendRecords | GiveUpWorker | Warn | FailJob
