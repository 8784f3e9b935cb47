"""What a job file says by role: what each asks for, and how many there may be."""

from pydantic import BaseModel, ConfigDict

from scheduler.job.quantities import Cpus


class _ByRole(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class ResourcesConfig(_ByRole):
    """Named Ray resources that a role asks for, beside its CPUs."""

    server: dict[str, Cpus] = {}
    worker: dict[str, Cpus] = {}
    coordinator: dict[str, Cpus] = {}


class LabelsConfig(_ByRole):
    """Labels that the nodes of a role have to have, as selectors of Ray."""

    server: dict[str, str] = {}
    worker: dict[str, str] = {}
    coordinator: dict[str, str] = {}


def check_bounds(role: str, count: int, *, least: int, most: int) -> None:
    """Refuse a number of processes beyond its bounds; raises ValueError.

    Args:
        role: `workers` or `servers`.
    """
    if count > most:
        raise ValueError(
            f"cluster.max_{role} must be at least cluster.{role} ({count}), got {most}"
        )
    if least > most:
        raise ValueError(
            f"cluster.min_{role} must be at most cluster.max_{role} ({most}), got {least}"
        )
    if count < least:
        raise ValueError(
            f"cluster.min_{role} must be at most cluster.{role} ({count}), got {least}"
        )
