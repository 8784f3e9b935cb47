"""The labels of samples that have several: the section of the job file."""

import re
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field

from scheduler.job.names import Name
from scheduler.job.sources import JoinSeconds, LabelFolderConfig, LabelTopicConfig
from worker.data.labels import in_order
from worker.spec import TaskLabel

MAX_TASKS = 64
# As tables may be called: names of tasks are those of columns, outputs and metrics.
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,63}")


class LabelConfig(BaseModel):
    """The label of one task. A plain column name in the job file is short for {column: NAME}."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    column: Name
    where: Name | None = None
    missing: Literal["refuse", "mask"] = "refuse"
    weight: float = Field(1.0, ge=0, le=1e6)
    window_seconds: JoinSeconds | None = None


def _from_name(value: Any) -> Any:
    return value if isinstance(value, dict | LabelConfig) else {"column": value}


def _task_name(value: str) -> str:
    if _NAME.fullmatch(value):
        return value
    ours = re.sub(r"[^A-Za-z0-9_.-]", "_", value).lstrip(".-")[:64]
    remedy = f"; write {ours}, say" if ours else ""
    raise ValueError(
        f"{value!r} is no name of a task: letters of English, digits, '_', '.' and '-', 64 at most"
        f" and the first of them no '.' or '-'{remedy}"
    )


TaskName = Annotated[Name, AfterValidator(_task_name)]
TasksConfig = Annotated[
    dict[TaskName, Annotated[LabelConfig, BeforeValidator(_from_name)]],
    Field(min_length=1, max_length=MAX_TASKS),
]


def one_kind_of_label(data: dict[str, Any]) -> dict[str, Any]:
    """Return the section `data` without `label` where it names several labels.

    Raises:
        ValueError: it has both, or neither.
    """
    if data.get("labels") is None:
        if "label" in data and data["label"] is None:
            raise ValueError("data.label: a name is missing; data.labels may name several labels")
        return data
    if data.get("label") is not None:
        raise ValueError(
            f"data.label is {data['label']!r}, and data.labels names the labels of several tasks;"
            " leave one of them out"
        )
    return {**data, "label": None}


def task_labels(labels: dict[str, LabelConfig] | None) -> tuple[TaskLabel, ...]:
    """Return the labels of the tasks, in their order.

    Raises:
        ValueError: `where` of one names no other task, or they name one another in a circle.
    """
    tasks = tuple(
        TaskLabel(name=name, column=each.column, where=each.where, missing=each.missing)
        for name, each in (labels or {}).items()
    )
    in_order(tasks)
    return tasks


def check_labels(labels: dict[str, LabelConfig], *, inputs: set[str], weight: str | None) -> None:
    """Raise ValueError where the labels of several tasks can't be used.

    Args:
        inputs: columns of features, and of their weights.
        weight: column of the samples' weights.
    """
    task_labels(labels)
    for name, each in labels.items():
        if each.column in inputs:
            raise ValueError(
                f"data.labels.{name} is {each.column!r}, which is a feature or its weights too: a"
                " model that is given its answers learns nothing else; leave it out there"
            )
        if each.column == weight:
            raise ValueError(
                f"data.labels.{name} is {each.column!r}, which data.weight names too; leave it out"
                " in one of the two places"
            )
    if not any(each.weight for each in labels.values()):
        raise ValueError("data.labels gives every task weight 0: nothing would be learnt")


def check_windows(
    labels: dict[str, LabelConfig], stream: LabelFolderConfig | LabelTopicConfig | None
) -> None:
    """Raise ValueError where tasks can't wait for their labels as the job file says.

    Args:
        stream: where labels come later; None: samples hold them.
    """
    windows: dict[str, tuple[str, float | None]] = {}
    if stream is not None and stream.label is not None:
        raise ValueError(
            f"data.label_stream.label is {stream.label!r}, and data.labels names the labels of"
            " several tasks; leave it out"
        )
    for name, each in labels.items():
        window, where = each.window_seconds, f"data.labels.{name}"
        if stream is None:
            if window is not None:
                raise ValueError(
                    f"{where}.window_seconds is for labels that come later, in data.label_stream;"
                    " leave it out"
                )
            continue
        if each.missing == "mask":
            raise ValueError(
                f"{where}.missing is mask, and of data.label_stream a task without a label is a"
                " negative once its window is over; leave it out"
            )
        if window is not None and window + stream.remembered_seconds(window) == 0:
            raise ValueError(
                f"{where}.window_seconds is 0 and data.label_stream.remember_seconds too: no label"
                " would find its sample. Give one of them"
            )
        other, its = windows.setdefault(each.column, (name, window))
        if its != window:
            raise ValueError(
                f"{where}.window_seconds is not that of data.labels.{other}, and both are of the"
                f" column {each.column!r}; give both the same"
            )
