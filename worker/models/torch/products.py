"""What makes the large float32 products of a module: torch itself, or NumPy's BLAS in its place.

Torch for x86-64 multiplies with MKL, which is slow on processors that are not Intel's; the OpenBLAS
that NumPy brings is not. So there `mm` and `addmm` of torch, which layers and their gradients
come down to, are given kernels that let NumPy multiply, on the same memory.
"""

import platform
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from functools import cache
from typing import Any, Literal

import numpy as np
import threadpoolctl
import torch

from runtime.processor import processor_maker
from worker.models.protocol import name_hint

Products = Literal["torch", "numpy"]
PRODUCTS = ("auto", "torch", "numpy")

# Below so many multiplications the call of a kernel in Python takes longer than it spares.
_LEAST = 1 << 20

_library: Any = None
_registering = threading.Lock()
_thread = threading.local()


def products_of(name: str) -> Products:
    """Return what makes products; `auto` goes by the processor and by NumPy's BLAS.

    Two processes of one numeric fingerprint get the same.

    Raises:
        ValueError: the name is not known.
    """
    if name == "torch":
        return "torch"
    if name == "numpy":
        return "numpy"
    if name != "auto":
        raise ValueError(f"model.products {name!r} is not known; {name_hint(name, PRODUCTS)}")
    of_numpy = np.show_config(mode="dicts").get("Build Dependencies", {}).get("blas", {})
    has_openblas = "openblas" in str(of_numpy.get("name"))
    with_mkl = platform.machine() == "x86_64" and processor_maker() != "GenuineIntel"
    return "numpy" if with_mkl and has_openblas else "torch"


@contextmanager
def made_by(products: Products, threads: int = 1) -> Iterator[None]:
    """Have products of this thread be made so within the block, on so many threads.

    What other threads multiply, and what is multiplied outside, torch does as ever.
    """
    if products == "torch":
        yield
        return
    _register()
    before = getattr(_thread, "numpy", False)
    _thread.numpy = True
    try:
        # Of processes that compute NumPy's BLAS has one thread.
        with _blas().limit(limits=threads) if threads > 1 else nullcontext():
            yield
    finally:
        _thread.numpy = before


def described(products: Products) -> str:
    """Return in words what makes the products."""
    if products == "torch":
        return "torch, with MKL" if torch.backends.mkl.is_available() else "torch"
    of_numpy = np.show_config(mode="dicts").get("Build Dependencies", {}).get("blas", {})
    return f"NumPy, with {of_numpy.get('name')} {of_numpy.get('version')}"


@cache
def _blas() -> Any:
    return threadpoolctl.ThreadpoolController().select(user_api="blas")


def _register() -> None:
    """Put kernels in the place of torch's own; beside `made_by` they do what those did."""
    global _library
    with _registering:
        if _library is not None:
            return
        library = torch.library.Library("aten", "IMPL")
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*[Oo]verriding a previously registered")
            library.impl("mm", _mm, "CPU")
            library.impl("addmm", _addmm, "CPU")
        _library = library


def _mm(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    if _is_for_numpy(left, right):
        return _multiplied(left, right)
    # Torch's own kernel, which this one hides: that of the overload is not hidden.
    return torch.ops.aten.mm.out(left, right, out=left.new_empty(0))


def _addmm(
    added: torch.Tensor,
    left: torch.Tensor,
    right: torch.Tensor,
    *,
    beta: complex = 1,
    alpha: complex = 1,
) -> torch.Tensor:
    if (
        beta == alpha == 1
        and _is_for_numpy(left, right)
        and added.dtype is torch.float32
        and added.shape in ((right.shape[1],), (left.shape[0], right.shape[1]))
    ):
        return _multiplied(left, right).add_(added)
    out = left.new_empty(0)
    return torch.ops.aten.addmm.out(added, left, right, beta=beta, alpha=alpha, out=out)


def _is_for_numpy(left: torch.Tensor, right: torch.Tensor) -> bool:
    if not getattr(_thread, "numpy", False):
        return False
    return (
        left.dtype is right.dtype is torch.float32
        and left.dim() == right.dim() == 2
        and left.shape[1] == right.shape[0]
        and left.numel() * right.shape[1] >= _LEAST
        and _lies_in_lines(left)
        and _lies_in_lines(right)
    )


def _lies_in_lines(matrix: torch.Tensor) -> bool:
    """Whether BLAS can read it where it lies, as it is or transposed."""
    (rows, columns), (down, across) = matrix.shape, matrix.stride()
    return (across == 1 and down >= columns) or (down == 1 and across >= rows)


def _multiplied(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    out = torch.empty((left.shape[0], right.shape[1]))
    np.matmul(left.detach().numpy(), right.detach().numpy(), out=out.numpy())
    return out
