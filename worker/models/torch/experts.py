"""What models of several tasks are put together from: experts, gates among them, and towers."""

from collections.abc import Sequence

import torch
from torch import nn

from worker.models.torch import ModuleInputs
from worker.models.torch.layers import Layers


class Experts(nn.Module):
    """Networks side by side, each of which sees the same input.

    Args:
        count: how many.
        widths: of the input and of each layer's output; ReLU follows each.
    """

    def __init__(self, count: int, widths: Sequence[int]) -> None:
        super().__init__()
        self.experts = nn.ModuleList(Layers(widths, relu_last=True) for _ in range(count))

    def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
        """Return what each makes of the input, [n, width]."""
        return [expert(x) for expert in self.experts]


class Gate(nn.Module):
    """How much of each expert one task sees: the softmax of a linear map of its input.

    Args:
        width: of the input.
        experts: that it chooses among.
    """

    def __init__(self, width: int, experts: int) -> None:
        super().__init__()
        self.linear = nn.Linear(width, experts, bias=False)
        nn.init.xavier_uniform_(self.linear.weight)

    def forward(self, x: torch.Tensor, made: Sequence[torch.Tensor]) -> torch.Tensor:
        """Return the experts' outputs, [n, width] each, added up by their shares."""
        with torch.autocast(x.device.type, enabled=False):
            shares = torch.softmax(self.linear(x.float()), dim=1)
        return (shares.unsqueeze(2) * torch.stack(list(made), dim=1)).sum(dim=1)


class Towers(nn.Module):
    """Layers of each task by itself, and its logit.

    Args:
        tasks: their names.
        widths: of the input and of each layer's output; one more, the logit, follows.
    """

    def __init__(self, tasks: Sequence[str], widths: Sequence[int]) -> None:
        super().__init__()
        self._tasks = tuple(tasks)
        self.towers = nn.ModuleList(Layers((*widths, 1), relu_last=False) for _ in tasks)

    def forward(self, inputs: Sequence[torch.Tensor]) -> dict[str, torch.Tensor]:
        """Return the logits of each task, [n], by its name; inputs: of each, [n, width]."""
        each = zip(self._tasks, self.towers, inputs, strict=True)
        return {task: tower(x).squeeze(1) for task, tower, x in each}


def check_inputs(inputs: ModuleInputs, model: str, least: int = 1) -> None:
    """Raise ValueError where a job has not what a model needs.

    Args:
        least: tasks, at least.
    """
    if len(inputs.tasks) < least:
        named = ", ".join(inputs.tasks) or "none"
        raise ValueError(
            f"{model} is a model of several tasks, at least {least}; data.labels names {named}"
        )
    if inputs.sequences:
        raise ValueError(
            f"{model} takes one vector of each feature, and {', '.join(inputs.sequences)} has"
            " combiner none; choose another combiner"
        )


def check_count(name: str, value: object, least: int, most: int = 256) -> None:
    """Raise ValueError where an option is no whole number in a range."""
    if type(value) is not int or not least <= value <= most:
        raise ValueError(f"model.{name} must be a whole number from {least} to {most}, got {value}")
