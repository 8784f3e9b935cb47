"""Products that NumPy makes in the place of torch: the same numbers, for whoever asked for them."""

import threading
from collections.abc import Callable

import numpy as np
import pytest
import threadpoolctl
from torch_models import Tried

torch = pytest.importorskip("torch")

from worker.models.torch.products import made_by, products_of  # noqa: E402

WIDE = """
class M(nn.Module):
    def __init__(self, inputs):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(inputs.width, 128), nn.ReLU(),
            nn.Linear(128, 128), nn.ReLU(), nn.Linear(128, 1)
        )

    def forward(self, dense, embeddings):
        return self.layers(torch.cat([dense, *embeddings.values()], dim=1)).squeeze(1)
"""


@pytest.fixture
def multiplied(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """The shapes of what NumPy was asked to make of products of torch."""
    shapes = []
    matmul = np.matmul

    def noted(*given: np.ndarray, out: np.ndarray) -> np.ndarray:
        shapes.append(out.shape)
        return matmul(*given, out=out)

    monkeypatch.setattr("worker.models.torch.products.np.matmul", noted)
    return shapes


def test_any_module_has_the_numbers_of_torch_forward_and_backward(
    tried: Callable[..., Tried], multiplied: list[tuple[int, ...]]
) -> None:
    found = [tried(WIDE, n=200, products=each).train() for each in ("torch", "numpy")]

    # Forward and both gradients of the middle layer, whose products alone are large.
    assert multiplied == [(200, 128), (200, 128), (128, 128)]
    for one, other in zip(*found, strict=True):
        np.testing.assert_allclose(other, one, rtol=1e-3, atol=1e-4 * np.abs(one).max())


def test_a_batch_has_the_same_bits_each_time(tried: Callable[..., Tried]) -> None:
    this = tried(WIDE, n=200, products="numpy")

    for one, other in zip(this.train(), this.train(), strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize(
    ("left", "right"),
    [
        (lambda x: x, lambda x: x),
        (lambda x: x.t(), lambda x: x),
        (lambda x: x, lambda x: x.t()),
        (lambda x: x[:, ::2], lambda x: x[::2]),
        (lambda x: x[:1].expand(256, 256), lambda x: x),
        (lambda x: x.double(), lambda x: x.double()),
        (lambda x: x.bfloat16(), lambda x: x.bfloat16()),
        (lambda x: x[:0], lambda x: x),
    ],
    ids=["plain", "transposed left", "right", "strides", "expanded", "float64", "bf16", "none"],
)
def test_whatever_lies_how_is_multiplied(
    left: Callable[..., torch.Tensor], right: Callable[..., torch.Tensor]
) -> None:
    draw = torch.Generator().manual_seed(1)
    x, y = (torch.randn(256, 256, generator=draw) for _ in range(2))
    bias = torch.randn(256, generator=draw).to(right(y).dtype)
    expected = torch.mm(left(x), right(y)), torch.addmm(bias, left(x), right(y), alpha=2)

    with made_by("numpy"):
        found = torch.mm(left(x), right(y)), torch.addmm(bias, left(x), right(y), alpha=2)
        plain = torch.addmm(bias, left(x), right(y))

    for one, other in zip(found, expected, strict=True):
        assert one.dtype == other.dtype
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-3)
    torch.testing.assert_close(plain, expected[0] + bias, rtol=1e-2, atol=0.2)


def test_what_can_not_be_multiplied_is_told_as_by_torch() -> None:
    with made_by("numpy"):
        for given in ((torch.ones(200, 200), torch.ones(100, 200)),):
            with pytest.raises(RuntimeError, match="cannot be multiplied"):
                torch.mm(*given)
        with pytest.raises(RuntimeError, match="size"):
            torch.addmm(torch.ones(3), torch.ones(200, 200), torch.ones(200, 200))


def test_nobody_else_is_multiplied_for(multiplied: list[tuple[int, ...]]) -> None:
    x = torch.ones(128, 128)

    with made_by("numpy"):
        other = threading.Thread(target=lambda: torch.mm(x, x))
        other.start()
        other.join()
        assert not multiplied
        with made_by("torch"):
            torch.mm(x, x)
    torch.mm(x, x)

    assert len(multiplied) == 1


def test_it_has_the_threads_of_the_job() -> None:
    def of_blas() -> set[int]:
        pools = threadpoolctl.threadpool_info()
        return {pool["num_threads"] for pool in pools if pool["user_api"] == "blas"}

    with threadpoolctl.threadpool_limits(limits=1, user_api="blas"):
        with made_by("numpy", 2):
            assert of_blas() == {2}
        assert of_blas() == {1}


def test_the_processor_decides_unless_the_job_does(
    monkeypatch: pytest.MonkeyPatch, tmp_path: pytest.TempPathFactory
) -> None:
    monkeypatch.setattr("worker.models.torch.products.platform.machine", lambda: "x86_64")
    monkeypatch.setattr("runtime.processor.CPU_INFO", tmp_path / "cpuinfo")  # type: ignore[operator]
    openblas = {"Build Dependencies": {"blas": {"name": "scipy-openblas"}}}
    monkeypatch.setattr("worker.models.torch.products.np.show_config", lambda mode: openblas)

    def chosen(maker: str) -> str:
        (tmp_path / "cpuinfo").write_text(f"vendor_id : {maker}\n")  # type: ignore[operator]
        return products_of("auto")

    assert (chosen("AuthenticAMD"), chosen("GenuineIntel")) == ("numpy", "torch")
    assert (products_of("torch"), products_of("numpy")) == ("torch", "numpy")
    openblas["Build Dependencies"]["blas"]["name"] = "mkl"
    assert chosen("AuthenticAMD") == "torch"
    with pytest.raises(ValueError, match=r"model\.products 'nump' is not known; did you mean"):
        products_of("nump")
