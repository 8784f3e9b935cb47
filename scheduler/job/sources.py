"""Where samples, and their labels, arrive: the sections of the job file."""

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

from runtime.storage import is_known_scheme, lie_in_one_another, split_url
from scheduler.job.names import Name
from scheduler.job.quantities import Count, PathText
from worker.data.messages import COLUMN_TYPES, MessageFormat, column_type

# Below it a driver does nothing but look; above it samples are found when nobody waits any more.
PollSeconds = Annotated[float, Field(ge=0.001, le=3600)]
WaitSeconds = Annotated[float, Field(ge=0.001, le=86400)]
JoinSeconds = Annotated[float, Field(ge=0, le=31 * 86400)]


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class FolderSource(_Section):
    """A folder in which files appear."""

    type: Literal["directory"] = "directory"
    dir: PathText
    start: Literal["beginning", "now"] = "beginning"
    after: StrictStr | None = None
    late_seconds: float = Field(60, ge=0, le=86400)
    settle_seconds: WaitSeconds = 10
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
                f"must be the path of a file from dir on, such as"
                f" 2026-11-29/17/part-000123.parquet, got {value!r}"
            )
        return value

    @model_validator(mode="after")
    def _begins_somewhere(self) -> "FolderSource":
        if self.after is not None and self.start == "now":
            raise ValueError(
                f"after is {self.after!r}, a file to begin after, and start: now begins after the"
                " newest one; leave one of them out"
            )
        return self

    @model_validator(mode="after")
    def _moves_within_a_store(self) -> "FolderSource":
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


class TopicSource(_Section):
    """A topic of Kafka into which somebody writes."""

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
    def _says_what_messages_hold(self) -> "TopicSource":
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

    def check_columns(self, names: Iterable[str], where: str = "data.stream") -> None:
        """Raise ValueError where a column that is read is not declared."""
        missing = [name for name in names if name not in self.columns]
        if self.format == "json" and missing:
            raise ValueError(
                f"{where}.columns lacks {', '.join(missing)}, which the job reads; give each a"
                f" type: {COLUMN_TYPES}"
            )


def _directory_by_default(value: Any) -> Any:
    return {"type": "directory", **value} if isinstance(value, dict) else value


class _Looked(_Section):
    """How often somebody looks what has come, and how long a batch waits for the rest of it."""

    close_seconds: WaitSeconds = 1
    poll_seconds: PollSeconds = 0.1


class DirectoryConfig(FolderSource, _Looked):
    """A folder in which files of samples appear."""


class KafkaConfig(TopicSource, _Looked):
    """A topic of Kafka into which somebody writes samples."""


StreamConfig = Annotated[
    Annotated[DirectoryConfig | KafkaConfig, Field(discriminator="type")],
    BeforeValidator(_directory_by_default),
]


class _Joined(_Section):
    """How samples find their labels."""

    key: Name
    label: Name | None = None
    window_seconds: JoinSeconds
    remember_seconds: JoinSeconds | None = None
    max_waiting: Count = 10_000_000
    tasks: Literal["together", "apart"] = "together"

    def remembered_seconds(self, window_seconds: float | None = None) -> float:
        """For how long a sample is remembered that waits no more; by default a window.

        Args:
            window_seconds: of a task that has one of its own.
        """
        window = self.window_seconds if window_seconds is None else window_seconds
        return window if self.remember_seconds is None else self.remember_seconds

    @model_validator(mode="after")
    def _finds_something(self) -> "_Joined":
        if self.window_seconds + self.remembered_seconds() == 0:
            raise ValueError(
                "window_seconds is 0, so that samples don't wait, and they are not remembered"
                " either: no label would find its sample. Give remember_seconds beside it"
            )
        return self


class LabelFolderConfig(FolderSource, _Joined):
    """A folder in which files of labels appear."""


class LabelTopicConfig(TopicSource, _Joined):
    """A topic of Kafka into which somebody writes labels."""


LabelStreamConfig = Annotated[
    Annotated[LabelFolderConfig | LabelTopicConfig, Field(discriminator="type")],
    BeforeValidator(_directory_by_default),
]


def check_label_stream(
    labels: LabelFolderConfig | LabelTopicConfig,
    stream: DirectoryConfig | KafkaConfig | None,
    columns: list[str],
) -> None:
    """Raise ValueError where samples can't find their labels there.

    Args:
        columns: of the labels.
    """
    if stream is None:
        raise ValueError(
            "data.label_stream needs data.stream: the files of data.train hold their labels"
        )
    if labels.key in columns:
        raise ValueError(
            f"data.label_stream.key is {labels.key!r}, a label; name the column by which a sample"
            " finds its label"
        )
    if isinstance(labels, LabelTopicConfig):
        labels.check_columns((labels.key, *columns), "data.label_stream")
    if (
        isinstance(labels, LabelFolderConfig)
        and isinstance(stream, DirectoryConfig)
        and lie_in_one_another(labels.dir, stream.dir)
    ):
        raise ValueError(
            f"data.label_stream.dir {labels.dir!r} and data.stream.dir {stream.dir!r} lie in"
            " one another, so files of one would be taken for the other; choose folders beside"
            " each other"
        )
    topics = [
        (each.brokers, each.topic) for each in (labels, stream) if isinstance(each, TopicSource)
    ]
    if len(set(topics)) < len(topics):
        raise ValueError(
            f"data.label_stream and data.stream are one topic, {topics[0][1]!r}; labels have one of"
            " their own"
        )
