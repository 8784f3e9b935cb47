"""The sections of the job file that are about samples that arrive."""

from collections.abc import Iterable
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    StrictStr,
    field_validator,
    model_validator,
)

from runtime.storage import is_known_scheme, split_url
from scheduler.job.names import Name
from scheduler.job.quantities import PathText
from worker.data.messages import COLUMN_TYPES, MessageFormat, column_type
from worker.data.segments import MOST_NAMED
from worker.protocol import MAX_SCORES

# Below it a driver does nothing but look; above it samples are found when nobody waits any more.
PollSeconds = Annotated[float, Field(ge=0.001, le=3600)]
WaitSeconds = Annotated[float, Field(ge=0.001, le=86400)]
WindowSeconds = Annotated[float, Field(ge=0.1, le=31 * 86400)]


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class DirectoryConfig(_Section):
    """A folder in which files of samples appear."""

    type: Literal["directory"] = "directory"
    dir: PathText
    start: Literal["beginning", "now"] = "beginning"
    after: StrictStr | None = None
    close_seconds: WaitSeconds = 1
    late_seconds: float = Field(60, ge=0, le=86400)
    settle_seconds: WaitSeconds = 10
    poll_seconds: PollSeconds = 0.1
    trained_files: Literal["keep", "remove"] = "keep"
    archive: PathText | None = None

    @field_validator("dir")
    @classmethod
    def _can_be_opened(cls, value: str) -> str:
        scheme, *_ = split_url(value)
        if scheme and not is_known_scheme(scheme):
            raise ValueError(
                f"nothing opens {scheme}:// (of {value!r}); give a path, or the URL of a store such"
                " as s3://BUCKET/FOLDER"
            )
        return value

    @field_validator("after")
    @classmethod
    def _lies_in_the_folder(cls, value: str | None) -> str | None:
        parts = [] if value is None else value.split("/")
        if value is not None and ("\0" in value or {"", ".", ".."} & set(parts)):
            raise ValueError(
                f"must be the path of a file from data.stream.dir on, such as"
                f" 2026-11-29/17/part-000123.parquet, got {value!r}"
            )
        return value

    @model_validator(mode="after")
    def _begins_somewhere(self) -> "DirectoryConfig":
        if self.after is not None and self.start == "now":
            raise ValueError(
                f"after is {self.after!r}, a file to begin after, and start: now begins after the"
                " newest one; leave one of them out"
            )
        return self

    @model_validator(mode="after")
    def _moves_within_a_store(self) -> "DirectoryConfig":
        if self.archive is None:
            return self
        if self.trained_files == "keep":
            raise ValueError(
                f"archive is {self.archive!r}, a folder for files that are trained; write"
                " trained_files: remove beside it, which moves them there"
            )
        here, there = split_url(self.dir), split_url(self.archive)
        if here[:2] != there[:2]:
            raise ValueError(
                f"archive must be in the same store as dir, {self.dir!r}, got {self.archive!r}"
            )
        inside, outside = f"{here[2].rstrip('/')}/", f"{there[2].rstrip('/')}/"
        hidden = outside.removeprefix(inside).startswith((".", "_"))
        if outside.startswith(inside) and not hidden:
            raise ValueError(
                f"archive {self.archive!r} lies in dir {self.dir!r}, where its files would be found"
                " again; choose a folder beside it, or one whose name begins with _"
            )
        return self


class KafkaConfig(_Section):
    """A topic of Kafka into which somebody writes samples."""

    type: Literal["kafka"]
    brokers: StrictStr = Field(min_length=1)
    topic: StrictStr = Field(pattern=r"^[a-zA-Z0-9._-]{1,249}$")
    format: MessageFormat
    columns: dict[Name, StrictStr] = {}
    avro_schema: PathText | None = None
    avro_framing: Literal["plain", "confluent"] = "plain"
    start: Literal["beginning", "now", "committed"] = "beginning"
    group: StrictStr | None = Field(None, min_length=1, max_length=249)
    on_lost: Literal["fail", "skip"] = "fail"
    client_file: PathText | None = None
    close_seconds: WaitSeconds = 1
    poll_seconds: PollSeconds = 0.1

    @field_validator("brokers")
    @classmethod
    def _are_addresses(cls, value: str) -> str:
        for broker in value.split(","):
            host, _, port = broker.strip().rpartition(":")
            if not host or not port.isdecimal() or not 0 < int(port) < 65536:
                raise ValueError(
                    f"must be HOST:PORT, or several with commas between, got {value!r}"
                )
        return value

    @field_validator("columns")
    @classmethod
    def _have_types(cls, value: dict[str, str]) -> dict[str, str]:
        for name, text in value.items():
            try:
                column_type(text)
            except ValueError as error:
                raise ValueError(f"{name} {error}") from None
        return value

    @model_validator(mode="after")
    def _says_what_messages_hold(self) -> "KafkaConfig":
        needed = {"json": "columns", "avro": "avro_schema"}.get(self.format)
        for name in ("columns", "avro_schema"):
            given = bool(getattr(self, name))
            if name == needed and not given:
                example = "{label: float32, id: int64}" if name == "columns" else "clicks.avsc"
                raise ValueError(
                    f"{name} must say what messages of format {self.format} hold, such as"
                    f" {name}: {example}"
                )
            if name != needed and given:
                raise ValueError(f"{name} is not for format {self.format}; leave it out")
        if self.avro_framing != "plain" and self.format != "avro":
            raise ValueError(f"avro_framing is not for format {self.format}; leave it out")
        return self

    def check_columns(self, names: Iterable[str]) -> None:
        """Raise ValueError where a column that is trained is not declared."""
        missing = [name for name in names if name not in self.columns]
        if self.format == "json" and missing:
            raise ValueError(
                f"data.stream.columns lacks {', '.join(missing)}, which the job reads; give each a"
                f" type: {COLUMN_TYPES}"
            )


def _directory_by_default(value: Any) -> Any:
    return {"type": "directory", **value} if isinstance(value, dict) else value


StreamConfig = Annotated[
    Annotated[DirectoryConfig | KafkaConfig, Field(discriminator="type")],
    BeforeValidator(_directory_by_default),
]


def check_scored(what: str, rows: int, *beside: str | None) -> None:
    """Raise ValueError where the scores of a batch would not fit into a worker's report.

    Args:
        beside: names of keys that make scores longer; None: such a one is not given.
    """
    given = [each for each in beside if each is not None]
    most = MAX_SCORES // (2 if given else 1)
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
) -> None:
    """Raise ValueError where something needs a stream, or the scores of a batch are too many.

    Args:
        weight: the key that names the weights of samples; None: they have none.
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
        check_scored("data.batch_size", batch_size, weight, segment)
