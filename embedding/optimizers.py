"""Optimizers: each is one value, an `OptimizerRule`, with a kernel that updates rows in place.

A row holds the vector and then the slots, adjacent: float32[dim * (1 + number of slots)]. Dense
parameters use the same kernels: a block of them is a row. All arithmetic is element-wise IEEE
float32 without reassociation, so a row comes out the same wherever it lives.

All kernels have the signature kernel(rows, positions, gradients, scale, scalars):
    rows: float32[capacity, width], written.
    positions: int64[n], rows to update, each at most once; -1 leaves gradient i out.
    gradients: float32[n, dim], sums; the optimizer sees gradient * scale.
    scale: float32, 1 / N.
    scalars: float64[k], from `step_scalars`, rounded to float32 before use.

To add an optimizer: a spec, a kernel, a line in `rule_for` and one in `step_scalars`.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from numba import njit

from embedding.arguments import read_only
from embedding.prefetch import prefetch_row
from embedding.spec import Adagrad, AdamAsync, Optimizer, Sgd

Float32Array = npt.NDArray[np.float32]
Float64Array = npt.NDArray[np.float64]
Int64Array = npt.NDArray[np.int64]

Kernel = Callable[[Float32Array, Int64Array, Float32Array, np.float32, Float64Array], None]

_AHEAD = 8  # rows asked for before their turn


@dataclass(frozen=True, slots=True)
class OptimizerRule:
    """What an optimizer is.

    Args:
        slots: names of its slots, in the order in which they follow the vector.
        initial: what each slot of a new row holds.
        num_scalars: length of what `step_scalars` gives.
        kernel: see the module.
    """

    slots: tuple[str, ...]
    initial: tuple[float, ...]
    num_scalars: int
    kernel: Kernel

    def update(
        self,
        rows: Float32Array,
        positions: Int64Array,
        gradients: Float32Array,
        scale: np.float32,
        scalars: npt.ArrayLike,
    ) -> None:
        """Update rows in place, see the module; shapes are the caller's contract.

        Raises:
            ValueError: the number of scalars is not this optimizer's.
        """
        numbers = self.check_scalars(scalars)
        self.kernel(rows, positions, read_only(gradients), np.float32(scale), numbers)

    def check_scalars(self, scalars: npt.ArrayLike) -> Float64Array:
        """Return scalars as float64[num_scalars]; ValueError where there are more or fewer."""
        numbers = np.array(scalars, np.float64)
        if numbers.shape != (self.num_scalars,):
            raise ValueError(
                f"optimizer {self.kernel.__name__} takes float64[{self.num_scalars}] as scalars "
                f"(see step_scalars), got shape {list(numbers.shape)}"
            )
        return numbers


def rule_for(spec: Optimizer, *, sparse: bool) -> OptimizerRule:
    """Return the rule of an optimizer for table rows (sparse) or dense parameters."""
    if isinstance(spec, Sgd):
        return OptimizerRule((), (), 1, sgd)
    if isinstance(spec, Adagrad):
        return OptimizerRule(("accumulator",), (spec.initial_accumulator,), 1, adagrad)
    kernel = momentum_rmsprop if sparse and spec.apply_sparse_rmsprop else adam
    return OptimizerRule(("m", "v"), (0.0, 0.0), 5, kernel)


def step_scalars(spec: Optimizer, *, learning_rate: float, step: int) -> tuple[float, ...]:
    """Return the numbers of an optimizer that depend on time, in float64.

    Computed once for a step and sent to all shards.

    Args:
        learning_rate: of this step, by the schedule; the spec's own is not looked at.
        step: global step, from 0; bias corrections have the power step + 1.

    Returns:
        The kernel's `scalars`; their order is its own.
    """
    if not isinstance(spec, AdamAsync):
        return (learning_rate,)
    power1, power2 = spec.beta1 ** (step + 1), spec.beta2 ** (step + 1)
    corrected = learning_rate * math.sqrt(1.0 - power2) / (1.0 - power1)
    return (learning_rate, corrected, spec.beta1, spec.beta2, spec.epsilon)


@njit(cache=True, nogil=True, inline="always")
def _prefetch_ahead(rows: Float32Array, positions: Int64Array, i: int) -> None:
    ahead = i + _AHEAD
    if ahead < positions.size and positions[ahead] >= 0:
        prefetch_row(rows, positions[ahead], rows.shape[1])


@njit(cache=True, nogil=True)
def sgd(
    rows: Float32Array,
    positions: Int64Array,
    gradients: Float32Array,
    scale: np.float32,
    scalars: Float64Array,
) -> None:
    """w -= lr g. Scalars: lr."""
    learning_rate = np.float32(scalars[0])
    for i in range(positions.size):
        _prefetch_ahead(rows, positions, i)
        row = positions[i]
        if row < 0:
            continue
        for c in range(gradients.shape[1]):
            rows[row, c] -= learning_rate * (gradients[i, c] * scale)


@njit(cache=True, nogil=True)
def adagrad(
    rows: Float32Array,
    positions: Int64Array,
    gradients: Float32Array,
    scale: np.float32,
    scalars: Float64Array,
) -> None:
    """a += g^2; w -= lr g / sqrt(a). Scalars: lr. Source: Duchi et al. 2011, as in DeepRec."""
    learning_rate = np.float32(scalars[0])
    dim = gradients.shape[1]
    for i in range(positions.size):
        _prefetch_ahead(rows, positions, i)
        row = positions[i]
        if row < 0:
            continue
        for c in range(dim):
            g = gradients[i, c] * scale
            accumulator = rows[row, dim + c] + g * g
            rows[row, dim + c] = accumulator
            rows[row, c] -= learning_rate * g / math.sqrt(accumulator)


@njit(cache=True, nogil=True)
def adam(
    rows: Float32Array,
    positions: Int64Array,
    gradients: Float32Array,
    scale: np.float32,
    scalars: Float64Array,
) -> None:
    """m = b1 m + (1 - b1) g; v = b2 v + (1 - b2) g^2; w -= alpha m / (sqrt(v) + epsilon).

    Scalars: (unused), alpha = lr sqrt(1 - b2^t) / (1 - b1^t), b1, b2, epsilon.
    Source: Kingma and Ba 2015, with epsilon and t as in DeepRec's AdamAsyncOptimizer.
    """
    alpha = np.float32(scalars[1])
    beta1, rest1 = np.float32(scalars[2]), np.float32(1.0 - scalars[2])
    beta2, rest2 = np.float32(scalars[3]), np.float32(1.0 - scalars[3])
    epsilon = np.float32(scalars[4])
    dim = gradients.shape[1]
    for i in range(positions.size):
        _prefetch_ahead(rows, positions, i)
        row = positions[i]
        if row < 0:
            continue
        for c in range(dim):
            g = gradients[i, c] * scale
            m = beta1 * rows[row, dim + c] + rest1 * g
            v = beta2 * rows[row, 2 * dim + c] + rest2 * (g * g)
            rows[row, dim + c] = m
            rows[row, 2 * dim + c] = v
            rows[row, c] -= alpha * m / (math.sqrt(v) + epsilon)


@njit(cache=True, nogil=True)
def momentum_rmsprop(
    rows: Float32Array,
    positions: Int64Array,
    gradients: Float32Array,
    scale: np.float32,
    scalars: Float64Array,
) -> None:
    """v = b2 v + (1 - b2) g^2; m = b1 m + lr g / sqrt(v + epsilon); w -= m.

    Scalars: lr, (unused), b1, b2, epsilon. No bias correction.
    Source: DeepRec's AdamAsyncOptimizer with apply_sparse_rmsprop.
    """
    learning_rate, epsilon = np.float32(scalars[0]), np.float32(scalars[4])
    beta1, beta2 = np.float32(scalars[2]), np.float32(scalars[3])
    rest2 = np.float32(1.0 - scalars[3])
    dim = gradients.shape[1]
    for i in range(positions.size):
        _prefetch_ahead(rows, positions, i)
        row = positions[i]
        if row < 0:
            continue
        for c in range(dim):
            g = gradients[i, c] * scale
            v = beta2 * rows[row, 2 * dim + c] + rest2 * (g * g)
            m = beta1 * rows[row, dim + c] + learning_rate * g / math.sqrt(v + epsilon)
            rows[row, dim + c] = m
            rows[row, 2 * dim + c] = v
            rows[row, c] -= m
