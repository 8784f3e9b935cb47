"""What a coordinator says of its job: every figure once, and every view reads it from here.

A figure that a process measures of itself is a field of `runtime.process_figures`, one of a server
of `ps.server.figures`, one of samples or batches of the ledger's `Samples` and `Tallies`.
"""

from dataclasses import dataclass, field, replace

from scheduler.coordinator.coordinator import Coordinator
from scheduler.coordinator.cuts import Cut
from scheduler.coordinator.evaluation import EvaluationResult
from scheduler.coordinator.history import NOTHING, Told
from scheduler.coordinator.ledger_state import Samples, Tallies
from scheduler.coordinator.modes.policy import Prediction
from scheduler.coordinator.modes.rules import Mode
from scheduler.coordinator.modes.shift import Shift
from scheduler.coordinator.progressive import WindowResult
from scheduler.coordinator.staleness import Histogram
from scheduler.coordinator.state import WorkerFigures
from scheduler.scaling.decisions import ScalingView


@dataclass(frozen=True, slots=True)
class CutResult:
    """What came of a cut: the path of its checkpoint, or what went wrong.

    Args:
        asked: whether somebody asked for it.
    """

    step: int
    path: str | None
    error: str | None
    asked: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class ServersView:
    """What is known of having another number of servers.

    Args:
        wanted: how many are.
        automatic: whether the policy of scaling decides that.
        doing: what is done to that end, for people; empty: nothing has to be.
    """

    wanted: int
    automatic: bool = False
    doing: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Status:
    """What the driver sees of a job; sums run from its start.

    Args:
        num_workers: that are wanted; `workers` has those that ever reported, by number.
        mode_epoch: how often the mode has changed.
        workers_automatic: whether the policy of scaling decides that; `scaling` is what it says.
        num_servers: that there are; `server_orders`: how many somebody has wanted, None: as many as
            the policy finds; `servers_view`: what is known of that.
        held: whether steps and batches stay as they are, since the job is about to move.
        limit: batches given out at most, where that is less than all; None: all.
        step, applied_step: that is ordered next, and that every shard has reached; `samples` are of
            the steps below the first, `applied_samples` of those below the second.
        shifts, cuts, evaluations, windows, give_up, warnings, silent_shards, server_orders: what
            was not told before, see `told`.
        last_evaluation, last_window: told before or not.
        silent_shards, gone_shards: copies of shards, by number: that answer nothing, and at whose
            address nobody listens any more.
        cut: that every shard holds frozen and that is to be written now; None: there is none.
        cut_is_awaited: whether somebody asked for one that is not written yet.
        recovery_epoch: that the coordinator is in.
        is_to_finish: whether a job on a stream is to end with what has arrived.
        standbys: the shards that have one.
        shard_lag: by shard, steps that are ordered and not applied there.
        peak_rss_bytes, cpu_seconds, pid: of the coordinator's process.
        told: what to say when the next status is asked for.
    """

    mode: Mode = "sync"
    mode_epoch: int = 0
    limit: int | None = None
    automatic: bool = False
    paused: bool = False
    held: bool = False
    cut: Cut | None = None
    cut_is_awaited: bool = False
    recovery_epoch: int = 0
    trained: bool = False
    evaluating: bool = False
    num_workers: int = 0
    workers_automatic: bool = False
    num_servers: int = 1
    server_orders: tuple[int | None, ...] = ()
    servers_view: ServersView | None = None
    scaling: ScalingView | None = None
    first_step: int = 0
    step: int = 0
    applied_step: int = 0
    applied_samples: int = 0
    clock: int = 0
    train_seconds: float = 0.0
    learning_rate_scale: float = 1.0
    prediction: Prediction | None = None
    samples: Samples = field(default_factory=Samples)
    batches: Tallies = field(default_factory=Tallies)
    loss_sum: float = 0.0
    loss_samples: int = 0
    data_staleness: Histogram = field(default_factory=Histogram)
    parameter_staleness: Histogram = field(default_factory=Histogram)
    workers: dict[int, WorkerFigures] = field(default_factory=dict)
    shard_lag: tuple[int, ...] = ()
    standbys: tuple[int, ...] = ()
    shifts: tuple[Shift, ...] = ()
    cuts: tuple[CutResult, ...] = ()
    evaluations: tuple[EvaluationResult, ...] = ()
    last_evaluation: EvaluationResult | None = None
    windows: tuple[WindowResult, ...] = ()
    last_window: WindowResult | None = None
    give_up: tuple[tuple[int, int, str], ...] = ()
    warnings: tuple[str, ...] = ()
    silent_shards: tuple[tuple[int, str], ...] = ()
    gone_shards: tuple[tuple[int, str], ...] = ()
    failure: str | None = None
    is_to_finish: bool = False
    peak_rss_bytes: int = 0
    cpu_seconds: float = 0.0
    pid: int = 0
    told: Told = NOTHING


def status_of(coordinator: Coordinator, told: Told = NOTHING) -> Status:
    """Return what a coordinator says of its job; what it measures of its process is left out.

    Args:
        told: what the asker was told before by a coordinator of this recovery epoch.
    """
    c, ledger = coordinator, coordinator.ledger
    evaluations, shifts = c.progress.evaluations, c.modes.shifts
    return Status(
        mode=c.rule.name,
        mode_epoch=c.modes.epoch,
        limit=ledger.limit,
        paused=c.paused,
        held=c.time.is_held_by("move"),
        cut=c.cuts.to_write,
        cut_is_awaited=c.cuts.is_awaited,
        recovery_epoch=c.spec.recovery_epoch,
        num_workers=c.num_workers,
        workers_automatic=c.workers_automatic,
        num_servers=c.spec.store.num_shards,
        first_step=c.spec.start.step,
        shifts=tuple(shifts[told.whole_shifts :]),
        automatic=c.modes.automatic,
        learning_rate_scale=c.rule.learning_rate_scale,
        prediction=c.modes.prediction,
        step=c.step,
        applied_step=c.applied_step,
        applied_samples=c.applied_samples,
        clock=c.clock.value,
        trained=c.trained,
        evaluating=c.evaluation is not None,
        samples=ledger.samples.copy(),
        batches=replace(ledger.tallies),
        loss_sum=c.progress.loss_sum,
        loss_samples=c.progress.loss_samples,
        train_seconds=c.train_seconds,
        data_staleness=c.data_staleness.copy(),
        parameter_staleness=c.parameter_staleness.copy(),
        shard_lag=c.shard_lag,
        standbys=c.spec.standbys,
        evaluations=tuple(evaluations[told.evaluations :]),
        last_evaluation=evaluations[-1] if evaluations else None,
        windows=c.windows.results.since(told.windows),
        last_window=c.windows.results.last,
        workers={number: state.figures() for number, state in c.workers.items()},
        told=Told(
            evaluations=len(evaluations),
            shifts=len(shifts),
            windows=c.windows.results.count,
            recovery_epoch=c.spec.recovery_epoch,
        ),
    )


def stands_still(status: Status, saved_step: int | None) -> bool:
    """Whether a job that was told to stand still does, and is saved as it is.

    Args:
        saved_step: of the newest checkpoint that was written in this recovery epoch.
    """
    return status.held and status.step == status.applied_step == saved_step


def joined(before: Status | None, new: Status) -> Status:
    """Return a status with all evaluations and shifts, of one that has those since `before`."""
    if before is None or before.recovery_epoch != new.recovery_epoch:
        return new
    evaluations = before.evaluations
    if new.evaluations:
        evaluations += new.evaluations
    shifts = before.shifts[: before.told.whole_shifts] + new.shifts
    return replace(new, evaluations=evaluations, shifts=shifts)
