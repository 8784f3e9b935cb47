"""DSSM in PyTorch: a tower for the user and one for the item, told apart from others of the batch.

Source: Huang et al. 2013, "Learning Deep Structured Semantic Models for Web Search using
Clickthrough Data": layers with tanh (3), the cosine of both vectors (4), and the softmax of it,
times a smoothing factor, over candidates (5). Yi et al. 2019, "Sampling-Bias-Corrected Neural
Modeling for Large Corpus Item Recommendations": the candidates are the items of the batch, and from
each one's score the logarithm of its share of samples is taken (section 3).
"""

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import nn
from torch.nn.functional import normalize

from worker.models.layers import read_widths
from worker.models.protocol import name_hint
from worker.models.torch import ModuleInputs
from worker.models.torch.histories import Embeddings

Names = str | Sequence[str]


class Dssm(nn.Module):
    """The logit is the smoothing factor times the cosine of the user's and the item's vector.

    The loss of a sample i with label 1 is

        -log (exp(s_ii - log q_i) / sum over j of exp(s_ij - log q_j))

    with s_ij of its user and the item of sample j, over all samples of the local batch whose weight
    is not 0, and q_j the share of samples that have j's item. That of a sample with label 0 is 0.
    So the negatives of a sample are what the plan put into its batch: the same on any worker.

    Args:
        inputs: vectors may differ in dim; of a sequence the mean goes into its tower.
        item: the item's features, sparse and dense; all others are the user's.
        log_share: a dense feature that is log q, up to a number that is the same for all items; no
            tower has it. None: items are taken to be equally frequent.
        mlp: widths of the layers of each tower; vectors are as wide as the last.
        smoothing: the factor, > 0.

    Raises:
        ValueError: an option is not legal, a feature is not there, or a tower has none.
    """

    def __init__(
        self,
        inputs: ModuleInputs,
        item: Names,
        log_share: str | None = None,
        mlp: Sequence[int] = (128, 64),
        smoothing: float = 10.0,
    ) -> None:
        super().__init__()
        widths = read_widths("dssm", {"mlp": mlp}, {"mlp": ()})["mlp"]
        if not widths:
            raise ValueError("model.mlp must have at least one width")
        if not isinstance(smoothing, int | float) or not 0 < smoothing < 1e6:
            raise ValueError(f"model.smoothing must be a number > 0, got {smoothing}")
        self._smoothing = float(smoothing)
        items = {item} if isinstance(item, str) else set(item)
        known = [*inputs.dense, *inputs.dims]
        for name in sorted(items - set(known)):
            raise ValueError(f"model.item names {name!r}, no feature; {name_hint(name, known)}")
        if log_share is not None and (log_share not in inputs.dense or log_share in items):
            raise ValueError(
                f"model.log_share must be a dense feature that is not in model.item, got"
                f" {log_share!r}; {name_hint(log_share, inputs.dense)}"
            )
        self._share = None if log_share is None else inputs.dense.index(log_share)
        self.item = _Tower(inputs, [n for n in known if n in items], widths, "item")
        others = [name for name in known if name not in items and name != log_share]
        self.user = _Tower(inputs, others, widths, "user")

    def forward(self, dense: torch.Tensor, embeddings: Embeddings) -> torch.Tensor:
        """Return the logits, [n]."""
        user, item = self.user(dense, embeddings), self.item(dense, embeddings)
        logits: torch.Tensor = self._smoothing * (user * item).sum(1)
        return logits

    def batch_loss(
        self,
        dense: torch.Tensor,
        embeddings: Embeddings,
        labels: torch.Tensor,
        weights: torch.Tensor,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the logits and each sample's loss, [n]."""
        user, item = self.user(dense, embeddings), self.item(dense, embeddings)
        logits = self._smoothing * (user * item).sum(1)
        with torch.autocast(dense.device.type, enabled=False):
            scores = self._smoothing * (user.float() @ item.float().T)
            if self._share is not None:
                scores = scores - dense[:, self._share]
            # One that counts for nothing is no candidate, but the sample's own always is.
            candidates = (weights > 0) | torch.eye(
                len(labels), dtype=torch.bool, device=dense.device
            )
            scores = scores.masked_fill(~candidates, -1e30)
            losses = torch.logsumexp(scores, dim=1) - scores.diagonal()
        return logits, losses * (labels > 0.5)


class _Tower(nn.Module):
    """Layers with tanh over some of the inputs; gives vectors of length 1."""

    def __init__(
        self, inputs: ModuleInputs, names: Sequence[str], widths: Sequence[int], what: str
    ) -> None:
        super().__init__()
        self._dense = [inputs.dense.index(name) for name in names if name in inputs.dense]
        self._sparse = [name for name in names if name in inputs.dims]
        width = len(self._dense) + sum(inputs.dims[name] for name in self._sparse)
        if not width:
            raise ValueError(f"dssm has no feature for the {what}'s tower; model.item says which"
                             " ones are the item's")  # fmt: skip
        self.layers = nn.ModuleList(nn.Linear(*each) for each in pairwise((width, *widths)))
        for layer in self.layers:
            nn.init.xavier_uniform_(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(self, dense: torch.Tensor, embeddings: Embeddings) -> torch.Tensor:
        parts = [dense[:, self._dense]] if self._dense else []
        for name in self._sparse:
            found = embeddings[name]
            if not isinstance(found, torch.Tensor):
                found = found.vectors.sum(1) / found.lengths.clamp(min=1).unsqueeze(1)
            parts.append(found)
        x = torch.cat(parts, dim=1)
        for layer in self.layers:
            x = torch.tanh(layer(x))
        return normalize(x.float(), dim=1)
