"""Modules of several tasks: what they return, what counts, and what is told of mistakes."""

from collections.abc import Callable

import numpy as np
import pytest
from torch_models import Tried

from worker.models.loss import weighted_log_loss

torch = pytest.importorskip("torch")

EQUAL = {"click": 1.0, "buy": 1.0}
TWO = """
class M(nn.Module):
    def __init__(self, inputs):
        super().__init__()
        self.tasks = inputs.tasks
        self.layers = nn.ModuleDict({t: nn.Linear(inputs.width, 1) for t in inputs.tasks})

    def forward(self, dense, embeddings):
        x = torch.cat([dense, *embeddings.values()], dim=1)
        logits = {t: self.layers[t](x).squeeze(1) for t in reversed(self.tasks)}
        return RETURNED
"""
SQUARES = """
    def loss(self, logits, labels, known):
        assert set(logits) == set(labels) == set(known) == set(self.tasks)
        return {t: (torch.sigmoid(logits[t]) - labels[t]) ** 2 for t in self.tasks}
"""
WHOLE = """
    def loss(self, logits, labels, known):
        each = [known[t] * (torch.sigmoid(logits[t]) - labels[t]) ** 2 for t in self.tasks]
        return each[0] + 2 * each[1]
"""


def two(returned: str = "logits", loss: str = "") -> str:
    return TWO.replace("RETURNED", returned) + loss


def by_hand(tried: Tried, task: int, factors: np.ndarray) -> tuple[float, np.ndarray]:
    """The log loss of one task over the samples that count, and its gradient by the logits."""
    labels, logits = tried.labels[:, task], tried.predict()[:, task]
    its = ~np.isnan(labels)
    grad = np.zeros(tried.n, np.float32)
    own = np.zeros(its.sum(), np.float32)
    loss = weighted_log_loss(logits[its], labels[its], factors[its].astype(np.float32), own)
    grad[its] = own
    return loss, grad


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("tasks", [EQUAL, {"click": 0.5, "buy": 3.0}], ids=str)
def test_the_loss_is_the_weighted_sum_over_tasks_of_the_samples_that_count(
    tried: Callable[..., Tried], tasks: dict[str, float], weighted: bool
) -> None:
    model = tried(two(), n=40, tasks=tasks)
    weights = (model.weights,) if weighted else ()

    loss, grad_params, grad_pooled = model.train(*weights)

    sample = model.weights if weighted else np.ones(model.n)
    parts = [by_hand(model, at, sample * weight) for at, weight in enumerate(tasks.values())]
    assert loss == pytest.approx(sum(part for part, _ in parts), rel=1e-6)
    inputs = np.concatenate([model.dense, model.pooled], axis=1)
    begin = 0
    expected_pooled = np.zeros_like(model.pooled)
    for _, grad in parts:  # each task: weight [1, width], bias [1]
        size = inputs.shape[1]
        np.testing.assert_allclose(grad_params[begin : begin + size], grad @ inputs, atol=1e-5)
        assert grad_params[begin + size] == pytest.approx(grad.sum(), abs=1e-5)
        weight = model.params[begin : begin + size]
        expected_pooled += np.outer(grad, weight[model.dense.shape[1] :])
        begin += size + 1
    np.testing.assert_allclose(grad_pooled, expected_pooled, atol=1e-6)


def test_logits_are_in_the_order_of_the_job_whatever_the_dict_has(
    tried: Callable[..., Tried],
) -> None:
    one, other = (tried(two(), tasks=dict.fromkeys(names, 1.0)) for names in ("ab", "ba"))
    size = one.params.size // 2
    other.params = np.concatenate([one.params[size:], one.params[:size]])

    np.testing.assert_array_equal(one.predict(), other.predict()[:, ::-1])
    assert one.predict().shape == (one.n, 2)


def test_a_batch_of_which_nothing_counts_gives_gradients_of_0(tried: Callable[..., Tried]) -> None:
    model = tried(two(), tasks=EQUAL)
    model.labels[:] = np.nan

    loss, grad_params, grad_pooled = model.train()

    assert loss == 0
    assert not grad_params.any()
    assert not grad_pooled.any()


def test_losses_of_the_class_by_task_are_masked_and_weighted_by_the_job(
    tried: Callable[..., Tried],
) -> None:
    model = tried(two(loss=SQUARES), n=40, tasks={"click": 1.0, "buy": 2.0})
    whole = tried(two(loss=WHOLE), n=40, tasks=EQUAL)

    found, expected = model.train(model.weights), whole.train(whole.weights)

    assert found[0] == pytest.approx(expected[0], rel=1e-6)
    known = ~np.isnan(model.labels)
    squares = (1 / (1 + np.exp(-model.predict().astype(float))) - np.nan_to_num(model.labels)) ** 2
    by_task = (squares * known * model.weights[:, None]).sum(axis=0)
    assert found[0] == pytest.approx(by_task @ [1, 2], rel=1e-6)
    for got, same in zip(found[1:], expected[1:], strict=True):
        np.testing.assert_allclose(got, same, atol=1e-6)


def test_modules_of_several_tasks_are_examined(tried: Callable[..., Tried]) -> None:
    for loss in ("", SQUARES, WHOLE):
        tried(two(loss=loss), tasks=EQUAL).model.examine()


@pytest.mark.parametrize(
    ("source", "tasks", "said"),
    [
        (two("logits['click']"), EQUAL, r"forward must return a dict .* got \[8\]"),
        (two("{'click': logits['click']}"), EQUAL, r"'buy': \.\.\.}, got those of 'click'"),
        (two("{**logits, 'x': dense[:, 0]}"), EQUAL, "got those of .*'x'"),
        (
            two("{t: x.unsqueeze(1) for t, x in logits.items()}"),
            EQUAL,
            r"the logits of 'click', \[n\], and returned \[8, 1\] .*squeeze",
        ),
        (
            two("{**logits, 'buy': logits['buy'].detach()}"),
            EQUAL,
            "logits of task 'buy' depend neither",
        ),
        (two(loss=WHOLE), {"click": 1.0, "buy": 2.0}, "data.labels.buy.weight is 2, and loss of"),
        (two(loss=SQUARES.replace("labels[t]) ** 2", "labels[t]).sum()")), EQUAL, "reduction="),
        (
            two(loss="\n    def loss(self, logits, labels):\n        return labels\n"),
            EQUAL,
            r"loss is called as loss\(logits, labels, known\), and takes \(logits, labels\): dat",
        ),
        (
            two("x", loss=WHOLE),
            None,
            r"loss is called as loss\(logits, labels\), .*: known is for jobs of several tasks",
        ),
        (two(), None, "a dict, as in jobs of several tasks, whose labels data.labels names"),
    ],
    ids=[
        "tensor",
        "missing",
        "unknown",
        "shape",
        "detached",
        "weights",
        "mean",
        "known",
        "not known",
        "one label",
    ],
)
def test_what_is_wrong_with_a_task_is_told_by_its_name(
    tried: Callable[..., Tried], source: str, tasks: dict[str, float] | None, said: str
) -> None:
    if tasks is None:
        source = source.replace("inputs.tasks", "('click', 'buy')")
    with pytest.raises(ValueError, match=said):
        tried(source, tasks=tasks).model.examine()
