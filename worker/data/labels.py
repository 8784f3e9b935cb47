"""Labels of samples: one, or one for each of several tasks."""

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from worker.data.key_hash import exact_integers, valid_of, values_of
from worker.errors import DataError
from worker.spec import TaskLabel

_Floats = npt.NDArray[np.float32]
_Mask = npt.NDArray[np.bool_]


def labels_of(array: pa.Array, name: str, where: tuple[str, int | None]) -> _Floats:
    """Return the labels of a column, float32[n] of 0 and 1.

    Args:
        name: of the column.
        where: file and row group, for messages.

    Raises:
        DataError: one is null or not 0 or 1.
    """
    values, legal = _values(array)
    valid = valid_of(array)
    if valid is not None:
        legal &= valid
    _check(legal, array, name, where, "leave out rows without one")
    return values


def task_labels(
    column: Callable[[str], pa.Array],
    rows: int,
    tasks: Sequence[TaskLabel],
    where: tuple[str, int | None],
) -> _Floats:
    """Return the labels of several tasks.

    Args:
        column: returns the column of a name, of `rows` values.
        tasks: in the order of the result's columns.
        where: file and row group, for messages.

    Returns:
        float32[n, tasks], C-contiguous, of 0 and 1, and NaN where a sample is masked: its label of
        the task that `where` names is 0 or masked itself, or its own is null and may be.

    Raises:
        DataError: a label is neither 0 nor 1, or null where it may not be.
    """
    labels = np.empty((rows, len(tasks)), np.float32)
    places = {task.name: place for place, task in enumerate(tasks)}
    for place in in_order(tasks):
        task = tasks[place]
        array = column(task.column)
        values, legal = _values(array)
        counts = np.ones(rows, np.bool_)
        if task.where is not None:
            counts = labels[:, places[task.where]] == 1
        valid = valid_of(array)
        if valid is not None:
            legal = np.where(valid, legal, (task.missing == "mask") | ~counts)
            counts &= valid
        remedy = f"leave out rows without one, or set data.labels.{task.name}.missing: mask"
        _check(legal, array, task.column, where, remedy)
        labels[:, place] = np.where(counts, values, np.float32(np.nan))
    return labels


def in_order(tasks: Sequence[TaskLabel]) -> list[int]:
    """Return the places of tasks, each after the one that its `where` names.

    Raises:
        ValueError: `where` names no other task, or tasks name one another in a circle.
    """
    names = [task.name for task in tasks]
    found: list[int] = []
    left = list(range(len(tasks)))
    for task in tasks:
        if task.where is not None and (task.where == task.name or task.where not in names):
            others = [name for name in names if name != task.name]
            raise ValueError(
                f"data.labels.{task.name}.where must name another task"
                f"{', one of ' + ', '.join(others) if others else ''}, got {task.where!r}"
            )
    while left:
        known = {names[place] for place in found}
        ready = [p for p in left if tasks[p].where is None or tasks[p].where in known]
        if not ready:
            circle = ", ".join(names[place] for place in left)
            raise ValueError(f"data.labels: where of {circle} name one another in a circle")
        found += ready
        left = [place for place in left if place not in ready]
    return found


def _values(array: pa.Array) -> tuple[_Floats, _Mask]:
    """Return the numbers of a column, and which of them are 0 or 1; both unspecified where null."""
    if pa.types.is_decimal(array.type):
        values, legal = exact_integers(array)
        legal &= (values == 0) | (values == 1)
    else:
        values = values_of(array)
        legal = (values == 0) | (values == 1)
    return values.astype(np.float32), legal


def _check(
    legal: _Mask, array: pa.Array, name: str, where: tuple[str, int | None], remedy: str
) -> None:
    if legal.all():
        return
    file, row_group = where
    row = int(np.argmin(legal))
    value = array[row].as_py()
    raise DataError(
        what="a label is not 0 or 1",
        file=file,
        column=name,
        row_group=row_group,
        row=row,
        got=f"got {'null' if value is None else repr(value)}, expected 0 or 1",
        remedy=f"Map the labels to 0 and 1 and {remedy}",
    )
