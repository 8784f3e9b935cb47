"""DIN in PyTorch: what a user did counts by how it fits what he is offered.

Source: Zhou et al. 2018, "Deep Interest Network for Click-Through Rate Prediction": the user's
vector is sum_j a(e_j, v) e_j over what he did, without a softmax (4.3), a is the activation unit,
layers over a pair of vectors; Dice (5.2).
"""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import nn

from worker.models.layers import read_widths
from worker.models.torch import ModuleInputs
from worker.models.torch.activations import Hidden
from worker.models.torch.histories import Embeddings, Histories, Names, pooled_inputs
from worker.models.torch.layers import Layers


class Din(nn.Module):
    """Layers over all inputs and the user's vector, which is made for each target.

    Args:
        inputs: vectors may differ in dim, but those of a history and its target.
        history: the sequence of what the user did, or several of the same places.
        target: what he is offered, for each history the feature that it is held against.
        attention_mlp: widths of the activation unit's layers; one more, the weight, follows.
        mlp: widths of the layers; one more, the logit, follows.
        activation: `dice`, whose mean and scale are parameters here, `prelu` or `relu`.

    Raises:
        ValueError: an option is not legal, or a feature is not there or of another kind.
    """

    def __init__(
        self,
        inputs: ModuleInputs,
        history: Names,
        target: Names,
        attention_mlp: Sequence[int] = (80, 40),
        mlp: Sequence[int] = (200, 80),
        activation: Literal["dice", "prelu", "relu"] = "dice",
    ) -> None:
        super().__init__()
        given = {"attention_mlp": attention_mlp, "mlp": mlp}
        widths = read_widths("din", given, dict.fromkeys(given, ()))
        self._histories = Histories(inputs, "din", history, target)
        width = self._histories.width
        self.attention = ActivationUnit(width, widths["attention_mlp"], activation)
        first = inputs.width + width
        self.hidden = Hidden((first, *widths["mlp"]), activation)
        self.logit = Layers(((first, *widths["mlp"])[-1], 1), relu_last=False)

    def forward(self, dense: torch.Tensor, embeddings: Embeddings) -> torch.Tensor:
        """Return the logits, [n]."""
        seen, target = self._histories.read(embeddings)
        weights = self.attention(seen.vectors, target) * seen.mask
        user = (weights.unsqueeze(2) * seen.vectors).sum(1)
        x = torch.cat([*pooled_inputs(dense, embeddings), user], dim=1)
        logits: torch.Tensor = self.logit(self.hidden(x)).squeeze(1)
        return logits


class ActivationUnit(nn.Module):
    """a(k, q): layers over [k, q, k - q, k * q]; nothing limits what it gives.

    Args:
        width: of k and of q.
        widths: of the hidden layers.
        activation: of these.
    """

    def __init__(self, width: int, widths: Sequence[int], activation: str) -> None:
        super().__init__()
        self.hidden = Hidden((4 * width, *widths), activation)
        self.weight = Layers(((4 * width, *widths)[-1], 1), relu_last=False)

    def forward(self, keys: torch.Tensor, query: torch.Tensor) -> torch.Tensor:
        """Return the weight of each place, [n, L], of keys, [n, L, width], for [n, width]."""
        query = query.unsqueeze(1).expand_as(keys)
        pairs = torch.cat([keys, query, keys - query, keys * query], dim=2)
        weights: torch.Tensor = self.weight(self.hidden(pairs)).squeeze(2)
        return weights
