"""How a job trains samples that arrive: the section of the job file."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from scheduler.job.names import Name
from scheduler.job.sources import DirectoryConfig, KafkaConfig, WaitSeconds
from worker.data.segments import MOST_NAMED
from worker.protocol import MAX_SCORES

WindowSeconds = Annotated[float, Field(ge=0.1, le=31 * 86400)]


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


def check_scored(
    what: str, rows: int, *beside: str | None, group: str | None = None, tasks: int = 1
) -> None:
    """Raise ValueError where the scores of a batch would not fit into a worker's report.

    Args:
        beside: names of keys that make scores longer; None: such a one is not given.
        group: name of the key that makes them longest, likewise.
        tasks: that are scored, each by itself.
    """
    given = [each for each in (group, *beside) if each is not None]
    most = MAX_SCORES // (tasks * (4 if group else 2 if given else 1))
    given += ["data.labels"] if tasks > 1 else []
    if rows > most:
        with_it = f" beside {given[0]}" if given else ""
        raise ValueError(
            f"{what} may be at most {most}{with_it}, as the scores of a batch are told at once, got"
            f" {rows}"
        )


class UntilConfig(_Section):
    """When a job on a stream ends by itself."""

    idle_seconds: WaitSeconds


class SegmentConfig(_Section):
    """By which column windows are told apart. A plain name is short for {column: NAME}."""

    column: Name
    most: int = Field(20, ge=1, le=MOST_NAMED)

    @model_validator(mode="before")
    @classmethod
    def _from_name(cls, value: Any) -> Any:
        return value if isinstance(value, dict | SegmentConfig) else {"column": value}


class OnlineConfig(_Section):
    """How a job trains on a stream."""

    window_seconds: WindowSeconds = 60
    evaluate: Literal["progressive", "none"] = "progressive"
    segment: SegmentConfig | None = None
    until: UntilConfig | None = None

    @model_validator(mode="after")
    def _scores_something(self) -> "OnlineConfig":
        if self.segment is not None and self.evaluate == "none":
            raise ValueError(
                "segment tells the scores of windows apart, and evaluate: none has none; leave one"
                " of them out"
            )
        return self


def check_online(
    online: OnlineConfig,
    stream: DirectoryConfig | KafkaConfig | None,
    batch_size: int,
    weight: str | None,
    tasks: int = 1,
) -> None:
    """Raise ValueError where something needs a stream, or the scores of a batch are too many.

    Args:
        weight: the key that names the weights of samples; None: they have none.
        tasks: that are scored.
    """
    segment = None if online.segment is None else "training.online.segment"
    if stream is None:
        for key in (online.until and "training.online.until", segment):
            if key is not None:
                raise ValueError(f"{key} needs data.stream")
        return
    if isinstance(stream, KafkaConfig) and online.segment is not None:
        stream.check_columns([online.segment.column])
    if online.evaluate != "none":
        check_scored("data.batch_size", batch_size, weight, segment, tasks=tasks)
