"""What models of torch are put together from."""

from collections.abc import Mapping, Sequence
from itertools import pairwise

import torch
from torch import nn

from worker.models.torch.kernels import linear_relu


class Layers(nn.Module):
    """Fully connected layers with ReLU between them, begun as Glorot and Bengio 2010 have it.

    Without ReLU after it the last layer is that of a logit, and computed in float32 whatever the
    others are: rounded to bfloat16, many samples would have the same one.

    Parameters are named as those of `worker.models.layers.Mlp`, `0.weight`, `0.bias`, `1.weight`,
    ...; a weight here is [outputs, inputs].

    Args:
        widths: of the input and of each layer's output.
        relu_last: whether ReLU follows the last layer too.
    """

    def __init__(self, widths: Sequence[int], *, relu_last: bool) -> None:
        super().__init__()
        self._relu_last = relu_last
        for number, (before, after) in enumerate(pairwise(widths)):
            layer = nn.Linear(before, after)
            nn.init.xavier_uniform_(layer.weight)
            nn.init.zeros_(layer.bias)
            self.add_module(str(number), layer)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the last layer's output, [n, width]."""
        last = len(self._modules) - 1
        for number, layer in enumerate(self.children()):
            if self._relu_last or number < last:
                x = linear_relu(x, layer)
            else:
                with torch.autocast(x.device.type, enabled=False):
                    x = layer(x.float())
        return x


def one_dim(dims: Mapping[str, int], model: str) -> int:
    """Return the width of all vectors; raises ValueError where they differ, or there are none."""
    if len(set(dims.values())) != 1:
        text = ", ".join(f"{name} {dim}" for name, dim in dims.items()) or "no sparse feature"
        raise ValueError(f"{model} needs vectors of one dim for all features, got {text}")
    return next(iter(dims.values()))
