"""Features that are not pooled: what a module gets, its gradients, and what is refused."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from torch_sequences import LENGTHS, Sequenced, check_gradients, sequence_spec

from worker.models.user_code import UserCodeError

torch = pytest.importorskip("torch")

# The mean of what was seen, weighed by how near each is to `a`: a softmax over keys alone.
ATTENTION = """
class M(nn.Module):
    def __init__(self, inputs):
        super().__init__()
        assert inputs.sequences == {"b": SEQUENCES}, inputs.sequences
        assert inputs.width == 3 + inputs.dims["a"] and inputs.pooled == {"a": 4}
        self.near = nn.Linear(inputs.dims["a"], inputs.dims["b"], bias=False)
        self.last = nn.Linear(inputs.width + inputs.dims["b"], 1)

    def forward(self, dense, embeddings):
        a, (vectors, lengths) = embeddings["a"], embeddings["b"]
        scores = (vectors * self.near(a).unsqueeze(1)).sum(2)
        weights = torch.exp(scores) * embeddings["b"].mask
        seen = (weights.unsqueeze(2) * vectors).sum(1)
        seen = seen / (1 + lengths.unsqueeze(1))
        return self.last(torch.cat([dense, a, seen], 1)).squeeze(1)
"""


@pytest.fixture
def case(write_module: Callable[[str, str], None]) -> Callable[..., Sequenced]:
    count = 0

    def make(source: str, *, length: int | None = None, **options: Any) -> Sequenced:
        nonlocal count
        count += 1
        name = f"sequence_module_{count}"
        source = source.replace("SEQUENCES", str(length))
        write_module(name, "import torch\nfrom torch import nn\n\n" + source)
        options = {"class": f"{name}:M", **options}
        return Sequenced(sequence_spec(options, {"a": 4, "b": 2}, {"b": length}), scale=1.0)

    return make


def logits_of(this: Sequenced, params: np.ndarray, pooled: np.ndarray, seen: np.ndarray) -> Any:
    """As ATTENTION computes them, sample by sample, in float64."""
    near, last, bias = params[:8].reshape(2, 4), params[8:17], params[17]
    found = []
    for dense, a, vectors, length in zip(this.dense, pooled, seen, LENGTHS, strict=True):
        mean = np.zeros(2)
        for vector in vectors[:length]:
            mean += np.exp(vector @ (near @ a)) * vector / (1 + length)
        found.append(np.concatenate([dense, a, mean]) @ last + bias)
    return np.array(found)


def test_a_module_gets_the_vectors_in_order_and_the_lengths(
    case: Callable[..., Sequenced],
) -> None:
    this = case(ATTENTION)
    this.model.examine()  # type: ignore[attr-defined]

    expected = logits_of(this, *this.arrays())
    np.testing.assert_allclose(this.predict(), expected, rtol=1e-4, atol=1e-5)


def test_gradients_come_to_every_vector_of_a_sequence(case: Callable[..., Sequenced]) -> None:
    this = case(ATTENTION, length=4)

    def loss(*arrays: np.ndarray) -> float:
        z = logits_of(this, *arrays)
        return float((this.weights * (np.logaddexp(0, z) - this.labels * z)).sum())

    check_gradients(this, loss, weights=this.weights)


def test_a_module_that_takes_the_mean_of_what_only_fills_up_is_refused(
    case: Callable[..., Sequenced],
) -> None:
    unmasked = """
class M(nn.Module):
    def __init__(self, inputs):
        super().__init__()
        self.last = nn.Linear(inputs.width + inputs.dims["b"], 1)

    def forward(self, dense, embeddings):
        seen = embeddings["b"].vectors.mean(1)
        return self.last(torch.cat([dense, embeddings["a"], seen], 1)).squeeze(1)
"""
    with pytest.raises(UserCodeError) as caught:
        case(unmasked).model.examine()
    case(unmasked, length=4).model.examine()

    told = str(caught.value)
    assert "a sample's logit depends on how far its sequence is filled up" in told
    assert "Sequence.mask says where), or give the feature a max_length" in told


def test_a_softmax_over_no_key_is_told(case: Callable[..., Sequenced]) -> None:
    of_nothing = ATTENTION.replace(
        'torch.exp(scores) * embeddings["b"].mask',
        'torch.softmax(scores.masked_fill(~embeddings["b"].mask, float("-inf")), 1)',
    )

    with pytest.raises(UserCodeError, match=r"not finite .* a sequence may be empty"):
        case(of_nothing).model.examine()


def test_a_module_that_is_given_more_than_pooled_vectors_is_told_where_it_fails(
    case: Callable[..., Sequenced],
) -> None:
    plain = """
class M(nn.Module):
    def __init__(self, inputs):
        super().__init__()
        self.last = nn.Linear(inputs.width, 1)

    def forward(self, dense, embeddings):
        return self.last(torch.cat([dense, *embeddings.values()], 1)).squeeze(1)
"""
    with pytest.raises(UserCodeError, match=r"forward failed at .* line 11, in forward: TypeError"):
        case(plain).model.examine()
