"""What a module of several tasks gives: a logit for each, and losses where it has its own."""

from collections.abc import Callable, Sequence
from typing import Any

import torch

from worker.models.user_code import UserCodeError

Check = Callable[[Any, int, str, str, str], torch.Tensor]


def stacked(
    result: Any, tasks: Sequence[str], n: int, path: str, method: str, check: Check
) -> torch.Tensor:
    """Return what a method gave of each task side by side, float32[n, tasks].

    Args:
        check: returns one task's if it is a number for each of n samples, else raises.

    Raises:
        UserCodeError: it is no dict of the job's tasks, or one of them is not as it should be.
    """
    what = "the logits" if method == "forward" else "each sample's loss"
    expected = f"{{{', '.join(f'{name!r}: ...' for name in tasks)}}}"
    if not isinstance(result, dict):
        shape = list(result.shape) if isinstance(result, torch.Tensor) else type(result).__name__
        raise UserCodeError(
            f"model.class {path!r}: {method} must return a dict with {what} of each task,"
            f" {expected}, as data.labels names {len(tasks)}, got {shape}"
        )
    if set(result) != set(tasks):
        raise UserCodeError(
            f"model.class {path!r}: {method} must return {what} of the tasks that data.labels"
            f" names, {expected}, got those of {', '.join(map(repr, result)) or 'none'};"
            " inputs.tasks has their names"
        )
    return torch.stack(
        [check(result[name], n, path, method, f"{what} of {name!r}").float() for name in tasks], 1
    )


def tasks_without_gradient(result: Any) -> list[str]:
    """Return the names of the tasks whose logits depend on nothing that is trained."""
    return [name for name, logits in result.items() if not logits.requires_grad]


def own_loss(
    loss: Callable[..., Any],
    logits: torch.Tensor,
    labels: torch.Tensor,
    tasks: Sequence[str],
) -> Any:
    """Return what `loss(logits, labels, known)` of a module gives, each a dict by task.

    Args:
        logits: float32[n, tasks].
        labels: float32[n, tasks], NaN where a sample does not count; it is given as 0, and `known`
            is false there.
    """
    known = ~labels.isnan()
    filled = labels.nan_to_num(0.0)
    by_name = (dict(zip(tasks, each.unbind(1), strict=True)) for each in (logits, filled, known))
    return loss(*by_name)
