"""Activations that have parameters of their own, and hidden layers with them."""

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import nn

from worker.models.protocol import name_hint

ACTIVATIONS = ("dice", "prelu", "relu")


class Dice(nn.Module):
    """f(s) = p s + (1 - p) alpha s, p = sigmoid((s - mean) * scale), for each unit.

    Mean and scale are trained, begun as 0 and 1. Published is a p of the mean and the variance of
    the mini-batch, sigmoid((s - E[s]) / sqrt(Var[s] + eps)), and in prediction of their running
    averages: what is kept from batch to batch no other worker has. In prediction both are constants
    of the unit; here their values come by gradients.

    Args:
        units: how many.

    Source: Zhou et al. 2018, "Deep Interest Network for Click-Through Rate Prediction", (3).
    """

    def __init__(self, units: int) -> None:
        super().__init__()
        self.alpha = nn.Parameter(torch.zeros(units))
        self.mean = nn.Parameter(torch.zeros(units))
        self.scale = nn.Parameter(torch.ones(units))

    def forward(self, s: torch.Tensor) -> torch.Tensor:
        """Return f(s), [..., units], of s alike."""
        p = torch.sigmoid((s - self.mean) * self.scale)
        return p * s + (1 - p) * self.alpha * s


class Prelu(nn.Module):
    """s where it is positive, else s times a slope of the unit; begun as 0.25.

    `torch.nn.PReLU` has the units in the second axis, whatever the others are.

    Args:
        units: how many.

    Source: He et al. 2015, "Delving Deep into Rectifiers", (1).
    """

    def __init__(self, units: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.full((units,), 0.25))

    def forward(self, s: torch.Tensor) -> torch.Tensor:
        """Return values alike, [..., units]."""
        return torch.clamp(s, min=0) + self.weight * torch.clamp(s, max=0)


def activation_of(name: str, units: int) -> nn.Module:
    """Return an activation of so many units; raises ValueError where the name is not known."""
    if name == "dice":
        return Dice(units)
    if name == "prelu":
        return Prelu(units)
    if name == "relu":
        return nn.ReLU()
    raise ValueError(f"model.activation {name!r} is not known; {name_hint(name, ACTIVATIONS)}")


class Hidden(nn.Sequential):
    """Fully connected layers, each with the activation behind it; [..., width] to [..., width].

    Begun as Glorot and Bengio 2010 have it.

    Args:
        widths: of the input and of each layer's output.
        activation: one of ACTIVATIONS.
    """

    def __init__(self, widths: Sequence[int], activation: str) -> None:
        modules: list[nn.Module] = []
        for before, after in pairwise(widths):
            linear = nn.Linear(before, after)
            nn.init.xavier_uniform_(linear.weight)
            nn.init.zeros_(linear.bias)
            modules += [linear, activation_of(activation, after)]
        super().__init__(*modules)
