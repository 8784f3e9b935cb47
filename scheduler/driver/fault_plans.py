"""From the faults of a job file to what each process is told of them."""

from ps.client.faults import ConnectionFault, ConnectionFaults
from scheduler.coordinator.server import CoordinatorFaults
from scheduler.job.config import JobConfig
from scheduler.job.faults import DelayConfig, HangConfig, KillConfig, LossConfig, Role, SlowConfig
from worker.faults import FaultPlan, Hang, Kill, Slow


def yet_to_come(config: JobConfig, *, reached: int, first_step: int) -> JobConfig:
    """Return the job of a run that is gone on with, without the deaths and hangs that have been.

    Each befalls a run once: whoever is started anew would die at a step that has come before.

    Args:
        reached: the step that the run is known to have come to.
        first_step: of the job.
    """
    left = [
        fault
        for fault in config.cluster.inject
        if not isinstance(fault, KillConfig | HangConfig) or first_step + fault.at_step > reached
    ]
    return config.model_copy(update={"cluster": config.cluster.model_copy(update={"inject": left})})


def worker_faults(config: JobConfig, *, started: float, first_step: int = 0) -> FaultPlan:
    """The faults that befall workers on purpose, counted from `started`, as `time.time()`.

    Steps count from the job's first one, here and below.
    """
    faults: list[Slow | Kill | Hang] = []
    for fault in config.cluster.inject:
        if isinstance(fault, KillConfig) and fault.role == "worker":
            faults.append(Kill(workers=tuple(fault.index), at_step=first_step + fault.at_step))
        elif isinstance(fault, HangConfig):
            at_step = first_step + fault.at_step
            faults.append(Hang(workers=tuple(fault.index), at_step=at_step, stage=fault.stage))
        elif isinstance(fault, SlowConfig):
            workers = tuple(fault.index)
            faults.append(
                Slow(
                    workers=workers,
                    factor=fault.factor,
                    least_seconds=fault.least_seconds,
                    jitter=fault.jitter,
                    **fault.times,
                )
            )
    return FaultPlan(
        faults=tuple(faults),
        seed=config.seed,
        started=started,
        connections=_connection_faults(config, "worker", started=started),
    )


def coordinator_faults(
    config: JobConfig, incarnation: int = 0, *, started: float, first_step: int = 0
) -> CoordinatorFaults:
    """The faults that befall the coordinator on purpose, counted from `started`."""
    return CoordinatorFaults(
        dies_at_step=kill_step(config, "coordinator", 0, incarnation, first_step=first_step),
        connections=_connection_faults(config, "coordinator", started=started),
    )


def _connection_faults(config: JobConfig, role: Role, *, started: float) -> ConnectionFaults:
    """The faults of connections between processes of a role and the servers."""
    faults = tuple(
        ConnectionFault(
            kind=fault.kind,
            probability=fault.probability,
            seconds=fault.seconds if isinstance(fault, DelayConfig) else 0.0,
            **fault.times,
        )
        for fault in config.cluster.inject
        if isinstance(fault, DelayConfig | LossConfig) and role in fault.between
    )
    return ConnectionFaults(faults=faults, seed=config.seed, started=started)


def kill_step(
    config: JobConfig, role: Role, index: int, incarnation: int = 0, *, first_step: int = 0
) -> int | None:
    """The step at which a process that is no worker kills itself, if it does.

    The first process with its number has the first kill of the job file, its successor the second.
    """
    steps = sorted(
        first_step + fault.at_step
        for fault in config.cluster.inject
        if isinstance(fault, KillConfig) and fault.role == role and index in fault.index
    )
    return steps[incarnation] if incarnation < len(steps) else None
