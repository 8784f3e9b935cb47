"""Losses that need more than logits: of the batch's other samples, or what forward makes."""

from collections.abc import Callable

import numpy as np
import pytest
from torch_models import Tried

from worker.models.user_code import UserCodeError

torch = pytest.importorskip("torch")

# Each positive is told from the negatives of the batch, as far as they weigh something.
PAIRS = """
class M(nn.Module):
    def __init__(self, inputs):
        super().__init__()
        self.last = nn.Linear(inputs.width, 1)

    def forward(self, dense, embeddings):
        return self.last(torch.cat([dense, *embeddings.values()], 1)).squeeze(1)

    def batch_loss(self, dense, embeddings, labels, weights):
        logits = self.forward(dense, embeddings)
        apart = nn.functional.softplus(logits - logits.unsqueeze(1))
        counts = (1 - labels) * weights
        return RESULT
"""
LOSSES = "logits, labels * (apart * counts).sum(1)"


def test_a_sample_may_be_held_against_others_of_its_batch(tried: Callable[..., Tried]) -> None:
    this = tried(PAIRS.replace("RESULT", LOSSES))
    this.model.examine()  # type: ignore[attr-defined]
    weight, bias = this.params[:-1].astype(float), this.params[-1]

    def loss(pooled: np.ndarray) -> float:
        z, total = np.hstack([this.dense, pooled]) @ weight + bias, 0.0
        for i in np.flatnonzero(this.labels == 1):
            for j in np.flatnonzero(this.labels == 0):
                total += this.weights[i] * this.weights[j] * np.logaddexp(0, z[j] - z[i])
        return total

    found, _, grad_pooled = this.train(this.weights)

    pooled = this.pooled.astype(float)
    assert found == pytest.approx(loss(pooled), rel=1e-5)
    for at in range(pooled.size):
        moved = [pooled.copy(), pooled.copy()]
        moved[0].flat[at] += 1e-6
        moved[1].flat[at] -= 1e-6
        expected = (loss(moved[0]) - loss(moved[1])) / 2e-6
        assert grad_pooled.flat[at] == pytest.approx(expected, rel=1e-3, abs=1e-5)
    np.testing.assert_array_equal(this.model.logits, this.predict())  # type: ignore[attr-defined]


def test_without_weights_all_are_1(tried: Callable[..., Tried]) -> None:
    this = tried(PAIRS.replace("RESULT", LOSSES))

    for plain, weighted in zip(this.train(), this.train(np.ones(7, np.float32)), strict=True):
        np.testing.assert_array_equal(plain, weighted)


@pytest.mark.parametrize(
    ("result", "told"),
    [
        ("logits", "batch_loss must return two tensors, the logits and each sample's loss, got"),
        (
            "logits, apart",
            r"batch_loss must return each sample's loss, \[n\], and returned \[8, 8\]",
        ),
        ("logits.mean(), logits", r"batch_loss must return the logits, \[n\], and returned \[\]"),
        ("logits, 1 / 0", r"batch_loss failed at .*, line 17, in batch_loss: ZeroDivisionError"),
    ],
)
def test_what_it_may_not_return_is_told(
    tried: Callable[..., Tried], result: str, told: str
) -> None:
    with pytest.raises(UserCodeError, match=told):
        tried(PAIRS.replace("RESULT", result)).model.examine()  # type: ignore[attr-defined]


def test_a_class_has_one_loss(tried: Callable[..., Tried]) -> None:
    both = PAIRS.replace("RESULT", LOSSES) + "\n    def loss(self, logits, labels):\n        pass\n"

    with pytest.raises(ValueError, match="has loss and batch_loss; leave one of them out"):
        tried(both)
