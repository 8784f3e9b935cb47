"""Models of DeepCTR-Torch (Shen et al.), given the vectors of our tables in place of their own.

The distribution deepctr-torch is not installed with ours: pip install deepctr-torch
"""

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from worker.models.protocol import name_hint
from worker.models.torch import ModuleInputs
from worker.models.torch.histories import no_sequences


class DeepCtr(nn.Module):
    """A model of `deepctr_torch.models` that takes `linear_feature_columns, dnn_feature_columns`.

    Its linear part has the dense features alone; first-order weights of keys are a feature of their
    own with a table of dim 1. Penalties (`l2_reg_...`) have no effect, since their `fit` adds
    them; a table's optimizer has its own.

    Args:
        inputs: what a sample has; most models need vectors of one dim.
        network: the name of the model, such as `DeepFM`.
        options: of the model, but `task`, `seed`, `device` and `gpus`.

    Raises:
        ValueError: the library is not installed, or has no such model, or it takes other columns or
            looks keys up in tables of its own.
    """

    def __init__(self, inputs: ModuleInputs, network: str, **options: Any) -> None:
        super().__init__()
        no_sequences(inputs, "DeepCTR-Torch")
        try:
            from deepctr_torch import inputs as columns
            from deepctr_torch import models
        except ImportError as error:
            raise ValueError(f"{error}: pip install deepctr-torch") from error
        kind = getattr(models, network, None)
        if not isinstance(kind, type):
            known = [name for name, each in vars(models).items() if isinstance(each, type)]
            raise ValueError(f"model.network {network!r} is no model of DeepCTR-Torch; "
                             f"{name_hint(network, known)}")  # fmt: skip
        if list(inspect.signature(kind).parameters)[:2] != [
            "linear_feature_columns", "dnn_feature_columns",
        ]:  # fmt: skip
            raise ValueError(
                f"model.network {network!r} takes other columns than most; it can't be used"
            )
        dense = [columns.DenseFeat(f"dense {at}", 1) for at in range(inputs.num_dense)]
        # Of one row each: their places in the models are taken by our vectors.
        sparse = [
            columns.SparseFeat(name, 1, embedding_dim=dim) for name, dim in inputs.dims.items()
        ]
        # It sets torch's generator itself: to what it was set to.
        seed = torch.initial_seed() % (1 << 31)
        self.network = kind(dense, [*sparse, *dense], task="regression", seed=seed, **options)
        self.network.regularization_weight = []
        self.network.embedding_dict = nn.ModuleDict({name: _Given() for name in inputs.dims})
        own = [
            name for name, each in self.network.named_modules() if isinstance(each, nn.Embedding)
        ]
        if own:
            raise ValueError(
                f"model.network {network!r} looks keys up in tables of its own, such as {own[0]}:"
                " it can't be used with ours"
            )

    def forward(self, dense: torch.Tensor, embeddings: dict[str, torch.Tensor]) -> torch.Tensor:
        """Return the logits, [n]."""
        # Columns are the dense features, then one key a feature, which is always 0.
        keys = dense.new_zeros((len(dense), len(embeddings)))
        with self._given(embeddings):
            return self.network(torch.cat([dense, keys], dim=1)).squeeze(1)

    @contextmanager
    def _given(self, embeddings: dict[str, torch.Tensor]) -> Iterator[None]:
        """Let the network find the vectors of a batch where it looks keys up."""
        for name, vectors in embeddings.items():
            self.network.embedding_dict[name].vectors = vectors.unsqueeze(1)
        try:
            yield
        finally:
            for given in self.network.embedding_dict.values():
                given.vectors = None


class _Given(nn.Module):
    """In place of an `nn.Embedding`: the vectors of a batch, [n, 1, dim], whatever the keys."""

    vectors: torch.Tensor | None = None

    def forward(self, keys: torch.Tensor) -> torch.Tensor:
        assert self.vectors is not None
        return self.vectors
