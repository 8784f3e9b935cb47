"""Optimizers: each is one value, an `OptimizerRule`, with a kernel that updates rows in place.

A row holds the vector and then the slots, adjacent. A slot is as wide as the vector, or one number
a row. Dense parameters use the same kernels: a block of them is a row. All arithmetic is IEEE
without reassociation, what is summed over a row is summed in the order of its columns, so a row
comes out the same wherever it lives.

All kernels have the signature kernel(rows, positions, gradients, scale, scalars):
    rows: float32[capacity, width], written.
    positions: int64[n], rows to update, each at most once; -1 leaves gradient i out.
    gradients: float32[n, dim], sums; the optimizer sees gradient * scale.
    scale: float32, 1 / N.
    scalars: float64[k], from `step_scalars`, rounded to float32 before use.

To add an optimizer: a type in `optimizer_spec`, a kernel, and its cases in `_layout` and
`step_scalars`.
"""

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from embedding.kernels.arguments import read_only
from embedding.optimizers.adam import adam, adamw, momentum_rmsprop, rowwise_adam
from embedding.optimizers.ftrl import ftrl, row_ftrl
from embedding.optimizers.gradient import (
    adagrad,
    adagrad_decay,
    rmsprop,
    rmsprop_momentum,
    rowwise_adagrad,
    sgd,
    sgd_momentum,
    sgd_nesterov,
)
from embedding.optimizers.shaping import shape_gradients
from embedding.spec.optimizers import (
    Adagrad,
    AdagradDecay,
    AdagradDecayV2,
    Adam,
    AdamAsync,
    AdamW,
    Ftrl,
    Optimizer,
    RmsProp,
    RowwiseAdagrad,
    RowwiseAdam,
    Sgd,
)

Float32Array = npt.NDArray[np.float32]
Float64Array = npt.NDArray[np.float64]
Int64Array = npt.NDArray[np.int64]

Kernel = Callable[[Float32Array, Int64Array, Float32Array, np.float32, Float64Array], None]


@dataclass(frozen=True, slots=True)
class Slot:
    """One piece of an optimizer's state beside each vector.

    Args:
        name: unique in the optimizer; a checkpoint's column is `slot_NAME`.
        initial: what a new row holds.
        per_row: one number a row; else it is as wide as the vector.
        counts_time: it counts on the schedule clock, so a new job starts it anew.
    """

    name: str
    initial: float = 0.0
    per_row: bool = False
    counts_time: bool = False

    def width(self, dim: int) -> int:
        return 1 if self.per_row else dim


@dataclass(frozen=True, slots=True)
class OptimizerRule:
    """What an optimizer is.

    Args:
        slots: in the order in which they follow the vector.
        num_scalars: length of what `step_scalars` gives.
        kernel: see the module.
        limits: most of a gradient's value, most of its norm, L2 regularisation; None: gradients
            go to the kernel as they are.
    """

    slots: tuple[Slot, ...]
    num_scalars: int
    kernel: Kernel
    limits: tuple[float, float, float] | None = None

    def row_width(self, dim: int) -> int:
        """Return the float32 values of a row: vector and slots."""
        return dim + sum(slot.width(dim) for slot in self.slots)

    def initial_slots(self, dim: int) -> Float32Array:
        """Return what follows the vector in a new row, float32[row_width - dim]."""
        widths = [slot.width(dim) for slot in self.slots]
        return np.repeat(np.array([slot.initial for slot in self.slots], np.float32), widths)

    def columns(self, dim: int) -> list[slice]:
        """Return where each slot lies behind the vector; add dim for its place in the row."""
        ends = np.cumsum([slot.width(dim) for slot in self.slots]).tolist()
        return [slice(start, end) for start, end in zip([0, *ends], ends, strict=False)]

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
        self.run(rows, positions, read_only(gradients), np.float32(scale), numbers)

    def check_scalars(self, scalars: npt.ArrayLike) -> Float64Array:
        """Return scalars as float64[num_scalars]; ValueError where there are others."""
        numbers = np.array(scalars, np.float64)
        if numbers.shape != (self.num_scalars,):
            raise ValueError(
                f"optimizer {self.kernel.__name__} takes float64[{self.num_scalars}] as scalars "
                f"(see step_scalars), got shape {list(numbers.shape)}"
            )
        if not all(map(math.isfinite, numbers.tolist())):
            raise ValueError(
                f"optimizer {self.kernel.__name__} takes finite scalars, got {numbers.tolist()}"
            )
        return numbers

    def run(
        self,
        rows: Float32Array,
        positions: Int64Array,
        gradients: Float32Array,
        scale: np.float32,
        scalars: Float64Array,
    ) -> None:
        """`update` of arguments that were checked and made read-only."""
        if self.limits is not None:
            shaped = np.empty_like(gradients)
            limits = np.array(self.limits, np.float64)
            shape_gradients(rows, positions, gradients, scale, limits, shaped)
            gradients, scale = read_only(shaped), np.float32(1.0)
        self.kernel(rows, positions, gradients, scale, scalars)


@functools.cache
def rule_for(spec: Optimizer, *, sparse: bool) -> OptimizerRule:
    """Return the rule of an optimizer for table rows (sparse) or dense parameters.

    Raises:
        ValueError: dense parameters have no rows whose norm could be clipped.
    """
    if spec.clip_norm is not None and not sparse:
        raise ValueError(NO_DENSE_CLIP_NORM)
    slots, kernel = _layout(spec, sparse)
    num_scalars = len(step_scalars(spec, learning_rate=spec.learning_rate, step=0))
    limits = (
        math.inf if spec.clip_value is None else spec.clip_value,
        math.inf if spec.clip_norm is None else spec.clip_norm,
        spec.l2_regularization,
    )
    shapes = limits != (math.inf, math.inf, 0.0)
    return OptimizerRule(slots, num_scalars, kernel, limits if shapes else None)


NO_DENSE_CLIP_NORM = (
    "clip_norm limits the norm of a table row's gradient, dense parameters have no rows; "
    "use clip_value for them"
)
_ADAM_SLOTS = (Slot("m"), Slot("v"))


def _layout(spec: Optimizer, sparse: bool) -> tuple[tuple[Slot, ...], Kernel]:
    """Return slots and kernel. A rule over a row takes a dense parameter for a row of its own."""
    match spec:
        case Sgd(momentum=0.0):
            return (), sgd
        case Sgd():
            return (Slot("momentum"),), sgd_nesterov if spec.nesterov else sgd_momentum
        case RowwiseAdagrad() if sparse:
            return (Slot("accumulator", spec.initial_accumulator, per_row=True),), rowwise_adagrad
        case Adagrad() | RowwiseAdagrad():
            return (Slot("accumulator", spec.initial_accumulator),), adagrad
        case AdagradDecay() | AdagradDecayV2():
            per_row = isinstance(spec, AdagradDecayV2)
            period = Slot("decay_period", per_row=per_row, counts_time=True)
            return (Slot("accumulator", spec.initial_accumulator), period), adagrad_decay
        case RowwiseAdam() if sparse:
            return (Slot("m"), Slot("v", per_row=True)), rowwise_adam
        case AdamAsync(apply_sparse_rmsprop=True) if sparse:
            return _ADAM_SLOTS, momentum_rmsprop
        case AdamW():
            return _ADAM_SLOTS, adamw
        case Adam() | AdamAsync() | RowwiseAdam():
            return _ADAM_SLOTS, adam
        case RmsProp(momentum=0.0):
            return (Slot("v"),), rmsprop
        case RmsProp():
            return (Slot("v"), Slot("momentum")), rmsprop_momentum
        case Ftrl():
            slots = (Slot("accumulator", spec.initial_accumulator), Slot("linear"))
            return slots, row_ftrl if sparse and spec.lasso == "row" else ftrl


def step_scalars(
    spec: Optimizer, *, learning_rate: float, step: int, clock: int = 0
) -> tuple[float, ...]:
    """Return the numbers that an optimizer's kernel takes, in float64.

    Computed once for a step and sent to all shards.

    Args:
        learning_rate: of this step, by the schedule; the spec's own is not looked at.
        step: global step, from 0; bias corrections have the power step + 1.
        clock: schedule clock before this step, from 0; AdagradDecay's periods count clock + 1.

    Returns:
        The kernel's `scalars`; their order is its own.
    """
    match spec:
        case Sgd(momentum=0.0) | Adagrad() | RowwiseAdagrad():
            return (learning_rate,)
        case Sgd():
            return (learning_rate, spec.momentum)
        case AdagradDecay() | AdagradDecayV2():
            period = (clock + 1) // spec.decay_steps
            most = 1.0 if spec.catch_up == "one_period" else 0.0
            return (learning_rate, period, spec.decay_rate, spec.initial_accumulator, most)
        case RmsProp():
            return (learning_rate, spec.decay, spec.epsilon, spec.momentum)
        case Ftrl():
            rest = (spec.learning_rate_power, spec.l1, spec.l2, spec.l2_shrinkage)
            return (1.0 / learning_rate, *rest)
    power1, power2 = spec.beta1 ** (step + 1), spec.beta2 ** (step + 1)
    corrected = learning_rate * math.sqrt(1.0 - power2) / (1.0 - power1)
    first = learning_rate
    if isinstance(spec, AdamW):
        scaling = {"learning_rate": learning_rate, "none": 1.0, "corrected": corrected}
        first = scaling[spec.decay_scaling] * spec.weight_decay
    return (first, corrected, spec.beta1, spec.beta2, spec.epsilon)
