"""The entries of `cluster.inject` in the job file: faults on purpose."""

import math
from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, field_validator, model_validator

from worker.faults import HangStage

Role = Literal["worker", "server", "coordinator"]


def _listed(value: Any) -> Any:
    return value if isinstance(value, list) else [value]


Indexes = Annotated[
    list[Annotated[int, Field(ge=0)]], BeforeValidator(_listed), Field(min_length=1)
]


class _FaultConfig(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class _TimedConfig(_FaultConfig):
    from_seconds: float = Field(0.0, ge=0)
    to_seconds: float | None = Field(None, gt=0)

    @property
    def times(self) -> dict[str, float]:
        """From when until when, as the fault's class takes them."""
        to_seconds = math.inf if self.to_seconds is None else self.to_seconds
        return {"from_seconds": self.from_seconds, "to_seconds": to_seconds}


class SlowConfig(_TimedConfig):
    """Workers that take longer for each batch; see `worker.faults.Slow`."""

    kind: Literal["slow"]
    role: Literal["worker"] = "worker"
    index: Indexes
    factor: float = Field(1.0, ge=1)
    least_seconds: float = Field(0.0, ge=0)
    jitter: float = Field(0.0, ge=0, lt=1)

    @model_validator(mode="after")
    def _is_slow(self) -> "SlowConfig":
        if self.factor == 1 and self.least_seconds == 0:
            raise ValueError("a slow worker needs a factor above 1 or least_seconds")
        return self


class KillConfig(_FaultConfig):
    """Processes of one role that die once, by SIGKILL, when the job is at a step."""

    kind: Literal["kill"]
    role: Role = "worker"
    index: Indexes
    at_step: int = Field(ge=0)


class HangConfig(_FaultConfig):
    """Workers of which a thread stops for ever, once each; see `worker.faults.Hang`."""

    kind: Literal["hang"]
    role: Literal["worker"] = "worker"
    index: Indexes
    at_step: int = Field(ge=0)
    stage: HangStage = "compute"


class _MessageFaultConfig(_TimedConfig):
    between: list[Role]
    probability: float = Field(gt=0, le=1)

    @field_validator("between")
    @classmethod
    def _connected(cls, value: list[Role]) -> list[Role]:
        if sorted(value) not in (["server", "worker"], ["coordinator", "server"]):
            raise ValueError(f"must be [worker, server] or [coordinator, server], got {value}")
        return value


class DelayConfig(_MessageFaultConfig):
    """Messages that are held back; see `ps.client.faults.ConnectionFault`."""

    kind: Literal["delay"]
    seconds: float = Field(gt=0)


class LossConfig(_MessageFaultConfig):
    """Messages that are lost or come twice; see `ps.client.faults.ConnectionFault`."""

    kind: Literal["drop", "duplicate"]


InjectConfig = Annotated[
    SlowConfig | KillConfig | HangConfig | DelayConfig | LossConfig, Field(discriminator="kind")
]


def check_targets(
    faults: Sequence[InjectConfig], *, workers: int, servers: int, scales: bool = False
) -> None:
    """Refuse faults of processes that the job does not have; raises ValueError.

    Args:
        workers: the most that it may have, where it scales.
    """
    limits = {
        "worker": f"below cluster.{'max_workers' if scales else 'workers'} ({workers})",
        "server": f"below cluster.servers ({servers})",
        "coordinator": "0, as there is one coordinator",
    }
    counts = {"worker": workers, "server": servers, "coordinator": 1}
    for number, fault in enumerate(faults):
        if isinstance(fault, DelayConfig | LossConfig):
            continue
        if max(fault.index) >= counts[fault.role]:
            raise ValueError(
                f"cluster.inject.{number}.index must be {limits[fault.role]},"
                f" got {max(fault.index)}"
            )
