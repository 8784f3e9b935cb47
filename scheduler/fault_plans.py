"""From the faults of a job file to what each process is told of them."""

from scheduler.config import JobConfig
from scheduler.coordinating import CoordinatorFaults
from scheduler.fault_config import KillConfig, Role, SlowConfig
from worker.faults import FaultPlan, Kill, Slow


def worker_faults(config: JobConfig, *, started: float) -> FaultPlan:
    """The faults that befall workers on purpose, counted from `started`, as `time.time()`."""
    faults: list[Slow | Kill] = []
    for fault in config.cluster.inject:
        if isinstance(fault, KillConfig) and fault.role == "worker":
            faults.append(Kill(workers=tuple(fault.index), at_step=fault.at_step))
        elif isinstance(fault, SlowConfig):
            faults.append(
                Slow(
                    workers=tuple(fault.index),
                    factor=fault.factor,
                    jitter=fault.jitter,
                    from_seconds=fault.from_seconds,
                    to_seconds=fault.to_seconds,
                )
            )
    return FaultPlan(faults=tuple(faults), seed=config.seed, started=started)


def coordinator_faults(config: JobConfig) -> CoordinatorFaults:
    """The faults that befall the coordinator on purpose."""
    return CoordinatorFaults(dies_at_step=kill_step(config, "coordinator", 0))


def kill_step(config: JobConfig, role: Role, index: int) -> int | None:
    """The step at which a process that is no worker kills itself, if it does."""
    steps = [
        fault.at_step
        for fault in config.cluster.inject
        if isinstance(fault, KillConfig) and fault.role == role and index in fault.index
    ]
    return min(steps, default=None)
