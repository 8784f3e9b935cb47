"""Where a job's steps and clock begin: at 0, or where the job that it goes on from ended."""

import logging
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from ps.checkpoint.manifest import CheckpointError
from ps.checkpoint.read import CheckpointReader
from runtime.first_steps import check_first_steps
from runtime.typed import decoder_of, field_values
from scheduler.coordinator.clock import ClockState

_log = logging.getLogger(__name__)

InitClock = Literal["continue", "anew"]


@dataclass(frozen=True, slots=True, kw_only=True)
class InitFeatures:
    """How the features of a job may differ from those of the checkpoint that it starts from.

    Args:
        added, removed: names of features.
        changed: sparse features of which an option is another, or `dense_transform`.
        moved: whether their order is another.
    """

    added: list[str] = field(default_factory=list)
    removed: list[str] = field(default_factory=list)
    changed: list[str] = field(default_factory=list)
    moved: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class InitTables:
    """How tables of a job may differ from those of the checkpoint that it starts from.

    Args:
        optimizer: names of tables whose slots begin anew, as their optimizer is of another type.
        dim: names of tables whose vectors are cut, or filled with initial values.
    """

    optimizer: list[str] = field(default_factory=list)
    dim: list[str] = field(default_factory=list)


@dataclass(frozen=True, slots=True, kw_only=True)
class Start:
    """The time at which a job begins.

    Args:
        step: the first global step; also of the rows' versions.
        clock: of the schedules.
        optimizer_steps: steps that the optimizers' state has seen, which bias corrections count.
        goes_on: whether versions, and slots that count time, of an earlier job are kept.
    """

    step: int = 0
    clock: ClockState = field(default_factory=ClockState)
    optimizer_steps: int = 0
    goes_on: bool = False


@dataclass(frozen=True, slots=True)
class SavedTime:
    """What a manifest says of the time at which its checkpoint was taken, beside the step."""

    optimizer_steps: int
    global_batch: int
    clock: int
    samples_since_tick: int
    first_steps: tuple[tuple[int, int, int, int], ...]


_decoded = decoder_of(SavedTime)


def time_to_json(
    start: Start, clock: ClockState, *, step: int, global_batch: int
) -> dict[str, Any]:
    """Return what a manifest says of a job that began at `start` and has come to `step`."""
    return asdict(
        SavedTime(
            optimizer_steps=start.optimizer_steps + step - start.step,
            global_batch=global_batch,
            clock=clock.value,
            samples_since_tick=clock.samples,
            first_steps=clock.first_steps,
        )
    )


def start_from(reader: CheckpointReader, *, global_batch: int, init_clock: InitClock) -> Start:
    """Return where a job begins that starts from a checkpoint.

    Where the job has another G, the clock keeps its value, and the samples since its last tick
    count as the same part of a tick.

    Raises:
        CheckpointError: what the manifest says of time is damaged.
    """
    step = reader.manifest.step
    saved = _saved_time(reader)
    if saved is None:
        if init_clock == "continue":
            _log.warning(
                "%s was written by a version that did not keep the clock: steps, clock and"
                " schedules start anew, and no row is older than this job",
                reader.directory,
            )
        return Start(optimizer_steps=step)
    if init_clock == "anew":
        return Start(optimizer_steps=saved.optimizer_steps)
    clock = ClockState(
        value=saved.clock,
        samples=saved.samples_since_tick * global_batch // saved.global_batch,
        first_steps=saved.first_steps,
    )
    return Start(step=step, clock=clock, optimizer_steps=saved.optimizer_steps, goes_on=True)


def _saved_time(reader: CheckpointReader) -> SavedTime | None:
    data = reader.manifest.time
    if not data:
        return None
    try:
        saved: SavedTime = _decoded(field_values(SavedTime(**data)))
        if not 0 <= saved.samples_since_tick < saved.global_batch:
            raise ValueError(
                f"{saved.samples_since_tick} samples since the last tick of {saved.global_batch}"
            )
        if min(saved.optimizer_steps, saved.clock) < 0:
            raise ValueError("a count is negative")
        check_first_steps(saved.first_steps, value=saved.clock, step=reader.manifest.step)
    except (TypeError, ValueError) as error:
        raise CheckpointError(
            f"the manifest of {reader.directory} does not say the time: {error}"
        ) from error
    return saved
