"""The labels of samples that have several: the section of the job file."""

import re
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field

from scheduler.job.names import Name
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


def check_labels(
    labels: dict[str, LabelConfig], *, label_stream: bool, inputs: set[str], weight: str | None
) -> None:
    """Raise ValueError where the labels of several tasks can't be used.

    Args:
        label_stream: whether labels come later.
        inputs: columns of features, and of their weights.
        weight: column of the samples' weights.
    """
    task_labels(labels)
    if label_stream:
        raise ValueError(
            "data.labels names several labels, and data.label_stream brings one; samples of several"
            " tasks hold their labels: write them into data.stream, or name one in data.label"
        )
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
