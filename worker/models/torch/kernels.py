"""Layers and interactions of our modules by compiled kernels, where those of torch are slower.

Each does what some operations of torch do one after another, in one pass over the memory and
without what those keep for one another. Torch's operations stay for all that a kernel is not for:
several threads, which share an operation, bfloat16, and whoever looks at a module by tracing it.
"""

import threading
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from numba import njit
from torch.autograd.function import once_differentiable

from worker.models.interaction import dots, dots_gradient
from worker.models.layers import add_bias_relu
from worker.models.protocol import FloatArray

_thread = threading.local()


def linear_relu(x: torch.Tensor, layer: torch.nn.Linear) -> torch.Tensor:
    """Return max(layer(x), 0), [n, outputs], of x, [n, inputs]."""
    if x.dim() == 2 and layer.bias is not None and _for_kernels(x, layer.weight, layer.bias):
        result: torch.Tensor = _LinearRelu.apply(x, layer.weight, layer.bias)
        return result
    return torch.relu(layer(x))


class PairwiseDots(torch.nn.Module):
    """Each sample's first vector, if there is one, and the dot products of all its vectors.

    These are v_i . v_j, j < i, in the order (1, 0), (2, 0), (2, 1), (3, 0), ...; the first vector,
    where there is one, is v_0.

    Args:
        count: how many vectors there are, the first one too.
    """

    def __init__(self, count: int) -> None:
        super().__init__()
        rows, columns = torch.tril_indices(count, count, -1)
        # Where they lie in a matrix of all products.
        self.register_buffer("pairs", rows * count + columns, persistent=False)

    def forward(self, first: torch.Tensor | None, vectors: Sequence[torch.Tensor]) -> torch.Tensor:
        """Return [n, dim + pairs], without a first vector [n, pairs], of vectors [n, dim]."""
        every = [*([] if first is None else [first]), *vectors]
        if _for_kernels(*every):
            result: torch.Tensor = _PairwiseDots.apply(first, *vectors)
            return result
        stacked = torch.stack(every, dim=1)
        products = torch.bmm(stacked, stacked.transpose(1, 2)).flatten(1)
        found = products.index_select(1, self.pairs)
        return found if first is None else torch.cat([first, found], dim=1)


def _for_kernels(*tensors: torch.Tensor) -> bool:
    """Whether kernels may compute with them."""
    return (
        torch.get_num_threads() == 1
        and not torch.is_autocast_enabled("cpu")
        and not torch.jit.is_tracing()
        and not torch.compiler.is_compiling()
        and all(
            type(each) in (torch.Tensor, torch.nn.Parameter)
            and each.dtype is torch.float32
            and each.device.type == "cpu"
            for each in tensors
        )
    )


class _LinearRelu(torch.autograd.Function):
    """max(x W^T + b, 0)."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> Any:
        out = torch.mm(x, weight.t())
        add_bias_relu(_array(out), _array(bias.contiguous()))
        ctx.save_for_backward(x, weight, out)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, of_out: torch.Tensor) -> Any:
        x, weight, out = ctx.saved_tensors
        of_sums, of_bias = _scratch(*out.shape), torch.empty(out.shape[1])
        _relu_gradient(_array(of_out.contiguous()), _array(out), _array(of_sums), _array(of_bias))
        needs_x, needs_weight, needs_bias = ctx.needs_input_grad
        return (
            torch.mm(of_sums, weight) if needs_x else None,
            torch.mm(of_sums.t(), x) if needs_weight else None,
            of_bias if needs_bias else None,
        )


class _PairwiseDots(torch.autograd.Function):
    """Of a first vector or None, and the others."""

    @staticmethod
    def forward(ctx: Any, first: torch.Tensor | None, *vectors: torch.Tensor) -> Any:
        n, dim = vectors[0].shape
        if first is None:
            first = torch.empty(n, 0)
        flat = torch.cat([each.reshape(-1) for each in vectors])
        count = len(vectors) + (first.shape[1] > 0)
        out = torch.empty(n, first.shape[1] + count * (count - 1) // 2)
        first = first.contiguous()
        positions = _positions(len(vectors), n, dim)
        dots(_array(first), _array(flat), positions, dim, False, _array(out))
        ctx.save_for_backward(first, flat)
        ctx.shape = len(vectors), n, dim
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, of_out: torch.Tensor) -> Any:
        first, flat = ctx.saved_tensors
        of_first, of_flat = torch.empty_like(first), torch.zeros_like(flat)
        dots_gradient(
            _array(first), _array(flat), _positions(*ctx.shape), ctx.shape[2],
            _array(of_out.contiguous()), _array(of_first), _array(of_flat),
        )  # fmt: skip
        return of_first if first.shape[1] else None, *of_flat.view(ctx.shape).unbind()


def _scratch(n: int, width: int) -> torch.Tensor:
    """Return memory that this thread's next call returns again, [n, width]."""
    held = getattr(_thread, "held", None)
    if held is None or held.numel() < n * width:
        held = _thread.held = torch.empty(n * width)
    return held[: n * width].view(n, width)


def _array(tensor: torch.Tensor) -> FloatArray:
    array: FloatArray = tensor.detach().numpy()
    return array


@lru_cache(maxsize=8)
def _positions(count: int, n: int, dim: int) -> npt.NDArray[np.int64]:
    """Where each vector begins, int64[count, n]; the samples of one lookup lie together."""
    return np.arange(0, count * n * dim, dim).reshape(count, n)


@njit(cache=True, nogil=True)
def _relu_gradient(
    of_outputs: FloatArray, outputs: FloatArray, of_sums: FloatArray, of_bias: FloatArray
) -> None:
    """Write of_outputs[n, m], 0 where ReLU gave 0, to of_sums, and its column sums to of_bias."""
    n, m = outputs.shape
    of_bias[:] = 0
    for i in range(n):
        for j in range(m):
            value = np.float32(0) if outputs[i, j] <= 0 else of_outputs[i, j]
            of_sums[i, j] = value
            of_bias[j] += value
