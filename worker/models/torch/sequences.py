"""What a module gets of a feature whose vectors are not pooled."""

from typing import NamedTuple

import torch


class Sequence(NamedTuple):
    """The vectors of each sample of a batch, in the order of its keys.

    Args:
        vectors: float32[n, L, dim]; zeros behind a sample's length. What gradient comes to these
            goes nowhere.
        lengths: int64[n], from 0 to L.
    """

    vectors: torch.Tensor
    lengths: torch.Tensor

    @property
    def mask(self) -> torch.Tensor:
        """Whether there is a key at each place, bool[n, L]."""
        places = torch.arange(self.vectors.shape[1], device=self.lengths.device)
        return places < self.lengths.unsqueeze(1)
