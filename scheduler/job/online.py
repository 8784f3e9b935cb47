"""The sections of the job file that are about samples that arrive."""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, StrictStr, model_validator

from scheduler.job.quantities import PathText, Seconds


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class StreamConfig(_Section):
    """A folder in which files of samples appear."""

    type: Literal["directory"] = "directory"
    dir: PathText
    start: Literal["beginning", "now"] = "beginning"
    after: StrictStr | None = None
    close_seconds: Seconds = 1
    late_seconds: float = Field(60, ge=0, le=86400)
    settle_seconds: Seconds = 10
    poll_seconds: Seconds = 0.1

    @model_validator(mode="after")
    def _begins_somewhere(self) -> "StreamConfig":
        if self.after is not None and self.start == "now":
            raise ValueError("after names a file to begin after, and start: now the newest one")
        return self


class UntilConfig(_Section):
    """When a job on a stream ends by itself."""

    idle_seconds: Seconds


class OnlineConfig(_Section):
    """How a job trains on a stream."""

    window_seconds: Seconds = 60
    evaluate: Literal["progressive", "none"] = "progressive"
    until: UntilConfig | None = None
