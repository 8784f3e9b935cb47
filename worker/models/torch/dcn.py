"""DCN v2 in PyTorch: cross layers, which multiply all inputs with one another, and deep layers.

Source: Wang et al. 2021, "DCN V2: Improved Deep & Cross Network and Practical Lessons for Web-scale
Learning to Rank Systems": cross layers (1), of low rank (2), stacked and parallel.
"""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import nn

from worker.models.layers import read_widths
from worker.models.torch import ModuleInputs
from worker.models.torch.histories import no_sequences
from worker.models.torch.layers import Layers

STRUCTURES = ("stacked", "parallel")


class DcnV2(nn.Module):
    """Cross layers x' = x0 * (W x + b) + x on all inputs side by side, x0, and deep layers.

    Args:
        inputs: vectors may differ in dim; dense features come first in x0.
        cross_layers: how many.
        rank: of W, which is then U V; None: W is a whole matrix.
        mlp: widths of the deep layers; an empty list leaves them out.
        structure: `stacked`: the deep layers see what the cross layers give; `parallel`: they see
            x0, and the logit is of both side by side.

    Raises:
        ValueError: an option is not legal.
    """

    def __init__(
        self,
        inputs: ModuleInputs,
        cross_layers: int = 3,
        rank: int | None = None,
        mlp: Sequence[int] = (512, 256),
        structure: Literal["stacked", "parallel"] = "stacked",
    ) -> None:
        super().__init__()
        no_sequences(inputs, "dcn")
        if type(cross_layers) is not int or cross_layers < 1:
            raise ValueError(f"model.cross_layers must be a whole number >= 1, got {cross_layers}")
        if rank is not None and (type(rank) is not int or not 1 <= rank <= inputs.width):
            raise ValueError(
                f"model.rank must be from 1 to the {inputs.width} columns of the inputs, got {rank}"
            )
        if structure not in STRUCTURES:
            raise ValueError(f"model.structure must be one of {STRUCTURES}, got {structure!r}")
        widths = read_widths("dcn", {"mlp": mlp}, {"mlp": ()})["mlp"]
        width, self._stacked = inputs.width, structure == "stacked"
        self.cross = nn.ModuleList(_Cross(width, rank) for _ in range(cross_layers))
        self.deep = Layers((width, *widths), relu_last=True)
        last = widths[-1] if widths else width
        # Beside cross layers without deep ones there is nothing in parallel.
        self._deep_too = bool(widths)
        if not self._stacked and self._deep_too:
            last += width
        self.logit = Layers((last, 1), relu_last=False)

    def forward(self, dense: torch.Tensor, embeddings: dict[str, torch.Tensor]) -> torch.Tensor:
        """Return the logits, [n]."""
        first = torch.cat([dense, *embeddings.values()], dim=1)
        crossed = first
        for cross in self.cross:
            crossed = cross(first, crossed)
        if self._deep_too and self._stacked:
            crossed = self.deep(crossed)
        elif self._deep_too:
            crossed = torch.cat([crossed, self.deep(first)], dim=1)
        return self.logit(crossed).squeeze(1)


class _Cross(nn.Module):
    """One cross layer."""

    def __init__(self, width: int, rank: int | None) -> None:
        super().__init__()
        self.down = None if rank is None else nn.Linear(width, rank, bias=False)
        self.linear = nn.Linear(width if rank is None else rank, width)
        nn.init.zeros_(self.linear.bias)

    def forward(self, first: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        low = x if self.down is None else self.down(x)
        return first * self.linear(low) + x
