"""DLRM in PyTorch: bottom layers on the dense features, pairwise dot products, top layers.

The model of `worker.models.dlrm`, which is faster; this one can be taken and changed.

Source: Naumov et al. 2019, "Deep Learning Recommendation Model for Personalization and
Recommendation Systems".
"""

from collections.abc import Sequence

import torch
from torch import nn

from worker.models.layers import read_widths
from worker.models.torch import ModuleInputs
from worker.models.torch.histories import no_sequences
from worker.models.torch.kernels import PairwiseDots
from worker.models.torch.layers import Layers, one_dim


class Dlrm(nn.Module):
    """The top layers see the bottom's output, then its dot products with the vectors, and theirs.

    Args:
        inputs: all vectors of one dim. Without dense features there is no bottom.
        bottom_mlp: widths of the bottom layers; one more, as wide as a vector, follows.
        top_mlp: widths of the top layers; one more, the logit, follows.

    Raises:
        ValueError: an option is not legal, or there are fewer than two vectors.
    """

    def __init__(
        self,
        inputs: ModuleInputs,
        bottom_mlp: Sequence[int] = (512, 256, 64),
        top_mlp: Sequence[int] = (512, 256),
    ) -> None:
        super().__init__()
        no_sequences(inputs, "dlrm")
        given = {"bottom_mlp": bottom_mlp, "top_mlp": top_mlp}
        widths = read_widths("dlrm", given, dict.fromkeys(given, ()))
        dim = one_dim(inputs.dims, "dlrm")
        count = len(inputs.dims) + (inputs.num_dense > 0)
        if count < 2:
            raise ValueError("dlrm needs dense features and a sparse one, or two sparse ones")
        bottom = (inputs.num_dense, *widths["bottom_mlp"], dim) if inputs.num_dense else ()
        self.bottom = Layers(bottom, relu_last=True)
        self.interaction = PairwiseDots(count)
        width = count * (count - 1) // 2 + (dim if bottom else 0)
        self.top = Layers((width, *widths["top_mlp"], 1), relu_last=False)

    def forward(self, dense: torch.Tensor, embeddings: dict[str, torch.Tensor]) -> torch.Tensor:
        """Return the logits, [n]."""
        first = self.bottom(dense) if len(self.bottom._modules) else None
        return self.top(self.interaction(first, list(embeddings.values()))).squeeze(1)
