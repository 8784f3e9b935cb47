"""The entries of `cluster.inject` in the job file: faults on purpose."""

from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

Role = Literal["worker", "server", "coordinator"]


def _listed(value: Any) -> Any:
    return value if isinstance(value, list) else [value]


Indexes = Annotated[
    list[Annotated[int, Field(ge=0)]], BeforeValidator(_listed), Field(min_length=1)
]


class _FaultConfig(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class SlowConfig(_FaultConfig):
    """Workers that take longer for each batch; see `worker.faults.Slow`."""

    kind: Literal["slow"]
    role: Literal["worker"] = "worker"
    index: Indexes
    factor: float = Field(gt=1)
    jitter: float = Field(0.0, ge=0, lt=1)
    from_seconds: float = Field(0.0, ge=0)
    to_seconds: float | None = Field(None, gt=0)


class KillConfig(_FaultConfig):
    """Processes of one role that die once, by SIGKILL, when the job is at a step."""

    kind: Literal["kill"]
    role: Role = "worker"
    index: Indexes
    at_step: int = Field(ge=0)


InjectConfig = Annotated[SlowConfig | KillConfig, Field(discriminator="kind")]


def check_targets(faults: Sequence[InjectConfig], *, workers: int, servers: int) -> None:
    """Refuse faults of processes that the job does not have; raises ValueError."""
    limits = {
        "worker": f"below cluster.workers ({workers})",
        "server": f"below cluster.servers ({servers})",
        "coordinator": "0, as there is one coordinator",
    }
    counts = {"worker": workers, "server": servers, "coordinator": 1}
    for number, fault in enumerate(faults):
        if max(fault.index) >= counts[fault.role]:
            raise ValueError(
                f"cluster.inject.{number}.index must be {limits[fault.role]},"
                f" got {max(fault.index)}"
            )
