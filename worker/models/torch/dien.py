"""DIEN in PyTorch: interests that follow from what a user did, as they lead to what he is offered.

Source: Zhou et al. 2019, "Deep Interest Evolution Network for Click-Through Rate Prediction": a GRU
over what he did (2-5), attention of its states to the target (7), and a GRU whose update gate is
multiplied by it, AUGRU (14-16); the auxiliary loss of what he did next (6).
"""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import nn
from torch.nn.functional import binary_cross_entropy_with_logits, softplus

from worker.models.layers import read_widths
from worker.models.torch import ModuleInputs
from worker.models.torch.activations import Hidden
from worker.models.torch.histories import Embeddings, Histories, Names, pooled_inputs
from worker.models.torch.layers import Layers
from worker.models.torch.sequences import Sequence as VectorSequence


class Dien(nn.Module):
    """Layers over all inputs and the last state of interests that evolve towards the target.

    With `negatives` each state is to tell, too, what the user did next from what he did not: to a
    sample's log loss comes, times the auxiliary weight, the sum over places t of

        -log sigmoid(h_t . e_(t+1)) - log(1 - sigmoid(h_t . n_(t+1)))

    Without them the loss is the job's. States are as wide as the vectors of a place.

    Args:
        inputs: vectors may differ in dim, but those of a history and its target.
        history: the sequence of what the user did, the latest last, or several of the same places.
        target: what he is offered, for each history the feature that it is held against.
        mlp: widths of the layers; one more, the logit, follows.
        activation: of these layers: `dice`, whose mean and scale are parameters here, `prelu` or
            `relu`.
        negatives: for each history a sequence of what he might have done in its place, as long.
        auxiliary_weight: >= 0; None: 1.

    Raises:
        ValueError: an option is not legal, or a feature is not there or of another kind.
    """

    def __init__(
        self,
        inputs: ModuleInputs,
        history: Names,
        target: Names,
        mlp: Sequence[int] = (200, 80),
        activation: Literal["dice", "prelu", "relu"] = "dice",
        negatives: Names = (),
        auxiliary_weight: float | None = None,
    ) -> None:
        super().__init__()
        widths = read_widths("dien", {"mlp": mlp}, {"mlp": ()})["mlp"]
        self._histories = Histories(inputs, "dien", history, target, negatives=negatives)
        self._auxiliary = _auxiliary_weight(auxiliary_weight, self._histories.negatives)
        width = self._histories.width
        self.interests = nn.GRU(width, width, batch_first=True)
        self.near = nn.Linear(width, width, bias=False)
        self.evolution = Augru(width)
        first = inputs.width + width
        self.hidden = Hidden((first, *widths), activation)
        self.logit = Layers(((first, *widths)[-1], 1), relu_last=False)
        if not self._histories.negatives:
            self.batch_loss = None  # type: ignore[assignment, method-assign]

    def forward(self, dense: torch.Tensor, embeddings: Embeddings) -> torch.Tensor:
        """Return the logits, [n]."""
        return self._with_interests(dense, embeddings)[0]

    def batch_loss(
        self,
        dense: torch.Tensor,
        embeddings: Embeddings,
        labels: torch.Tensor,
        weights: torch.Tensor,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the logits and each sample's loss, [n]."""
        logits, seen, states = self._with_interests(dense, embeddings)
        losses = binary_cross_entropy_with_logits(logits.float(), labels, reduction="none")
        others = self._histories.read_negatives(embeddings, seen)
        before, next_ones = states[:, :-1].float(), seen.mask[:, 1:]
        did = (before * seen.vectors[:, 1:]).sum(2)
        did_not = (before * others[:, 1:]).sum(2)
        told = (softplus(-did) + softplus(did_not)) * next_ones
        return logits, losses + self._auxiliary * told.sum(1)

    def _with_interests(
        self, dense: torch.Tensor, embeddings: Embeddings
    ) -> tuple[torch.Tensor, VectorSequence, torch.Tensor]:
        """Return the logits, what the user did, and the states of his interests, [n, L, width]."""
        seen, target = self._histories.read(embeddings)
        states, _ = self.interests(seen.vectors)
        scores = (states * self.near(target).unsqueeze(1)).sum(2)
        last = self.evolution(states, attention(scores, seen.mask))
        x = torch.cat([*pooled_inputs(dense, embeddings), last], dim=1)
        logits: torch.Tensor = self.logit(self.hidden(x)).squeeze(1)
        return logits, seen, states


class Augru(nn.Module):
    """A GRU whose update gate is multiplied by how much each place is attended to.

        u = a sigmoid(W_u i + U_u h + b_u), r = sigmoid(W_r i + U_r h + b_r)
        h' = (1 - u) h + u tanh(W_h i + r (U_h h) + b_h), from h = 0

    Args:
        width: of inputs and states.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        # Of u, r and the candidate, one after another.
        self.input = nn.Linear(width, 3 * width)
        self.state = nn.Linear(width, 3 * width, bias=False)

    def forward(self, inputs: torch.Tensor, attention: torch.Tensor) -> torch.Tensor:
        """Return the last state, [n, width], of [n, L, width]; a place of attention 0 has none."""
        n, length, width = inputs.shape
        of_inputs, state = self.input(inputs), inputs.new_zeros(n, width)
        for at in range(length):
            i_u, i_r, i_h = of_inputs[:, at].chunk(3, dim=1)
            s_u, s_r, s_h = self.state(state).chunk(3, dim=1)
            update = attention[:, at : at + 1] * torch.sigmoid(i_u + s_u)
            candidate = torch.tanh(i_h + torch.sigmoid(i_r + s_r) * s_h)
            state = (1 - update) * state + update * candidate
        return state


def attention(scores: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Return the softmax over the places of a mask, [n, L]; zeros where there is none."""
    scores = scores.float().masked_fill(~mask, -1e30)
    return torch.softmax(scores, dim=1) * mask


def _auxiliary_weight(given: float | None, negatives: Sequence[str]) -> float:
    if given is None:
        return 1.0
    if not negatives:
        raise ValueError("model.auxiliary_weight is of the loss that model.negatives brings; give"
                         " them too, or leave it out")  # fmt: skip
    if isinstance(given, bool) or not isinstance(given, int | float) or not 0 <= given < 1e6:
        raise ValueError(f"model.auxiliary_weight must be a number >= 0, got {given!r}")
    return float(given)
