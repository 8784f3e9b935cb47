"""Kernels of our modules: the numbers of the operations of torch that they stand for."""

from collections.abc import Callable
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from worker.models.torch import kernels  # noqa: E402
from worker.models.torch.kernels import PairwiseDots, linear_relu  # noqa: E402


@pytest.fixture(autouse=True)
def one_thread() -> Any:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def gradients(function: Callable[..., torch.Tensor], *inputs: torch.Tensor) -> list[torch.Tensor]:
    """Return the result and the gradients of a sum of it with unlike weights."""
    leaves = [each.clone().requires_grad_() for each in inputs]
    result = function(*leaves)
    weights = torch.randn(result.shape, generator=torch.Generator().manual_seed(7))
    return [result.detach(), *torch.autograd.grad((result * weights).sum(), leaves)]


def by_torch(monkeypatch: pytest.MonkeyPatch, *given: Any) -> list[torch.Tensor]:
    with monkeypatch.context() as patch:
        patch.setattr(kernels, "_for_kernels", lambda *tensors: False)
        return gradients(*given)


def test_a_layer_with_relu(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(3)
    layer = torch.nn.Linear(5, 6)

    def run(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        layer.weight, layer.bias = (torch.nn.Parameter(e) for e in (weight, bias))
        layer._parameters.update(weight=weight, bias=bias)  # with their gradients
        return torch.cat([linear_relu(x, layer), linear_relu(x, layer) ** 2], dim=1)

    given = torch.randn(9, 5), layer.weight.detach().clone(), layer.bias.detach().clone()

    for one, other in zip(gradients(run, *given), by_torch(monkeypatch, run, *given), strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize(("count", "dim"), [(2, 3), (5, 8), (27, 16)])
def test_dot_products_of_pairs(
    monkeypatch: pytest.MonkeyPatch, first: bool, count: int, dim: int
) -> None:
    torch.manual_seed(4)
    vectors, dots = [torch.randn(11, dim) for _ in range(count)], PairwiseDots(count)

    def run(*given: torch.Tensor) -> torch.Tensor:
        return dots(given[0], given[1:]) if first else dots(None, given)

    found, expected = gradients(run, *vectors), by_torch(monkeypatch, run, *vectors)

    assert found[0].shape == (11, count * (count - 1) // 2 + dim * first)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other)


def test_they_are_not_for_several_threads_or_bfloat16(monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.randn(4, 3)
    assert kernels._for_kernels(x)
    assert not kernels._for_kernels(x.double())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert not kernels._for_kernels(x)
    torch.set_num_threads(2)
    assert not kernels._for_kernels(x)


def test_a_module_with_them_can_be_traced() -> None:
    class Both(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer, self.dots = torch.nn.Linear(4, 4), PairwiseDots(2)

        def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
            result: torch.Tensor = self.dots(linear_relu(x, self.layer), [y])
            return result

    given, module = (torch.randn(3, 4), torch.randn(3, 4)), Both()

    traced = torch.jit.trace(module, given)
    exported = torch.export.export(module, given).module()

    for other in (traced, exported):
        torch.testing.assert_close(other(*given), module(*given))
