"""What a job file says by role: what each asks for, and how many there may be."""

from pydantic import BaseModel, ConfigDict, model_validator

from scheduler.job.quantities import Cpus


class _ByRole(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class ResourcesConfig(_ByRole):
    """Named Ray resources that a role asks for, beside its CPUs."""

    server: dict[str, Cpus] = {}
    worker: dict[str, Cpus] = {}
    coordinator: dict[str, Cpus] = {}

    @model_validator(mode="after")
    def _others_than_cpus_and_gpus(self) -> "ResourcesConfig":
        for role in type(self).model_fields:
            for name in sorted({"CPU", "GPU"} & getattr(self, role).keys()):
                key = f"cluster.{role}_{name.lower()}s"
                remedy = f"write {key}" if (role, name) in _KEYS else "leave it out"
                raise ValueError(f"{role} names {name}, which is no resource of its own: {remedy}")
        return self


_KEYS = {("server", "CPU"), ("worker", "CPU"), ("worker", "GPU"), ("coordinator", "CPU")}


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
