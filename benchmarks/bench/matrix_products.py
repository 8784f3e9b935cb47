"""The matrix products of a model's layers, and how many samples a second they alone would allow.

A layer y = x W of n samples takes three: x W forward, x^T g for the gradient of W, and g W^T for
the gradient of x. The first layer on the dense features needs no gradient of its input.
"""

import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial

import numpy as np
from threadpoolctl import threadpool_limits

from worker.models import Parameter

# The layer whose input are the dense features.
_FIRST_LAYER = "bottom.0.weight"


@dataclass(frozen=True, slots=True)
class Layer:
    """A weight matrix, and whether the gradient of its input is computed too."""

    inputs: int
    outputs: int
    grad_inputs: bool

    @property
    def flops_per_sample(self) -> int:
        """Multiplications and additions of its matrix products."""
        return 2 * self.inputs * self.outputs * (3 if self.grad_inputs else 2)


def layers_of(parameters: Iterable[Parameter]) -> list[Layer]:
    """Return the layers of a model: its parameters with two axes, [inputs, outputs]."""
    return [
        Layer(parameter.shape[0], parameter.shape[1], parameter.name != _FIRST_LAYER)
        for parameter in parameters
        if len(parameter.shape) == 2
    ]


class ProductsBound:
    """The products of all layers, one after another, on so many cores at once.

    Every core has a batch and buffers of its own, and BLAS runs on one thread in each: faster than
    BLAS with as many threads, which wait for each other.

    Args:
        layers: of the model.
        batch: samples.
        cores: how many.
        seconds: how long a measurement takes, about.
    """

    def __init__(self, layers: list[Layer], batch: int, *, cores: int, seconds: float) -> None:
        self._batch, self._cores = batch, cores
        self._work = [_products(layers, batch) for _ in range(cores)]
        self._pool = ThreadPoolExecutor(cores)
        self._rounds = 1
        self._rounds = max(1, int(seconds / min(self._time() for _ in range(3))))

    def samples_per_second(self) -> float:
        """Measure once."""
        return self._cores * self._rounds * self._batch / self._time()

    def cpu_milliseconds(self) -> float:
        """Measure once the CPU time of one batch."""
        began = time.process_time()
        self._time()
        return 1e3 * (time.process_time() - began) / (self._cores * self._rounds)

    def _time(self) -> float:
        with threadpool_limits(limits=1):
            began = time.perf_counter()
            list(self._pool.map(self._run, self._work))
            return time.perf_counter() - began

    def _run(self, products: list[Callable[[], object]]) -> None:
        for _ in range(self._rounds):
            for product in products:
                product()


def _products(layers: list[Layer], batch: int) -> list[Callable[[], object]]:
    """Return the products, each into a buffer that is used again, as the layers do them."""
    rng = np.random.default_rng(0)
    forward: list[Callable[[], object]] = []
    backward: list[Callable[[], object]] = []
    for layer in layers:
        x = rng.standard_normal((batch, layer.inputs), np.float32)
        y = np.empty((batch, layer.outputs), np.float32)
        weight = rng.standard_normal((layer.inputs, layer.outputs), np.float32)
        grad = rng.standard_normal((batch, layer.outputs), np.float32)
        forward.append(partial(np.matmul, x, weight, out=y))
        backward.append(partial(np.matmul, x.T, grad, out=np.empty_like(weight)))
        if layer.grad_inputs:
            backward.append(partial(np.matmul, grad, weight.T, out=np.empty_like(x)))
    return forward + backward
