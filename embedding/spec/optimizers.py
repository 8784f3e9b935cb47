"""What an optimizer is set to: plain frozen values, one type for each. Formulas: docs/embedding.md.

g is the gradient as the optimizer sees it: the sum over the step's samples divided by N, then
clipped, then regularised (see `Shaping`). "Row" rules see a dense parameter as a row of its own.
"""

from dataclasses import dataclass
from typing import Literal

from embedding.spec.ranges import require, require_not_negative, require_positive, require_share
from embedding.spec.schedule import Schedule

# Gradients are means over a step, so a rare key's square is of the order of 1e-7: beside a start of
# .1, as other libraries have it, Adagrad is SGD with lr / .316, and rare keys hardly move.
# How the two were chosen: docs/embedding.md, "Defaults".
ADAGRAD_LEARNING_RATE = 0.05
ADAGRAD_START = 1e-8
# FTRL's rate is of a sum of squares, too. Where gradients are not means it starts at 1 (McMahan et
# al. 2013: beta), which is 1 / N^2 of means over N samples; this is that of 1,000.
FTRL_START = 1e-6


@dataclass(frozen=True, slots=True, kw_only=True)
class Shaping:
    """What every optimizer has: its learning rate, and what is done to a gradient before it.

    Args:
        learning_rate: > 0.
        schedule: what the learning rate is multiplied by as training goes on; None: 1.
        clip_value: g is cut to [-clip_value, clip_value], element by element; None: no limit.
        clip_norm: then a row's g is scaled down to this Euclidean norm where it is longer; None:
            no limit. For tables only: a dense block is not a row.
        l2_regularization: then l2_regularization * w is added to g, which is the gradient of
            l2_regularization / 2 * |w|^2. Of a table only rows with a gradient are regularised.
    """

    learning_rate: float = 0.01
    schedule: Schedule | None = None
    clip_value: float | None = None
    clip_norm: float | None = None
    l2_regularization: float = 0.0

    def __post_init__(self) -> None:
        _check_shaping(self)

    def learning_rate_at(self, clock: int) -> float:
        """Return the learning rate of a step; clock: global batches applied before it."""
        return self.learning_rate * (self.schedule.factor(clock) if self.schedule else 1.0)


def _check_shaping(spec: Shaping) -> None:
    require_positive("learning_rate", spec.learning_rate)
    if spec.clip_value is not None:
        require_positive("clip_value", spec.clip_value)
    if spec.clip_norm is not None:
        require_positive("clip_norm", spec.clip_norm)
    require_not_negative("l2_regularization", spec.l2_regularization)


@dataclass(frozen=True, slots=True, kw_only=True)
class Sgd(Shaping):
    """b = momentum b + g; w -= lr b, or with nesterov w -= lr (g + momentum b). Slot: momentum.

    Without momentum w -= lr g, and no slot. Source: torch.optim.SGD without dampening.
    """

    type: Literal["sgd"] = "sgd"
    momentum: float = 0.0
    nesterov: bool = False

    def __post_init__(self) -> None:
        _check_shaping(self)
        require_share("momentum", self.momentum)
        require(not self.nesterov or self.momentum > 0, "nesterov needs momentum > 0")


@dataclass(frozen=True, slots=True, kw_only=True)
class Adagrad(Shaping):
    """a += g^2; w -= lr g / sqrt(a). Slot: accumulator.

    Source: Duchi et al. 2011; no epsilon, as in TensorFlow and DeepRec, so the accumulator must
    start above 0.
    """

    type: Literal["adagrad"] = "adagrad"
    learning_rate: float = ADAGRAD_LEARNING_RATE
    initial_accumulator: float = ADAGRAD_START

    def __post_init__(self) -> None:
        _check_shaping(self)
        require_positive("initial_accumulator", self.initial_accumulator)


@dataclass(frozen=True, slots=True, kw_only=True)
class RowwiseAdagrad(Shaping):
    """a += mean of g^2 over the row; w -= lr g / sqrt(a). Slot: accumulator, one number a row.

    Dense parameters take Adagrad. Source: FBGEMM's row-wise Adagrad; no epsilon, as in Adagrad.
    """

    type: Literal["rowwise_adagrad"] = "rowwise_adagrad"
    learning_rate: float = ADAGRAD_LEARNING_RATE
    initial_accumulator: float = ADAGRAD_START

    def __post_init__(self) -> None:
        _check_shaping(self)
        require_positive("initial_accumulator", self.initial_accumulator)


@dataclass(frozen=True, slots=True, kw_only=True)
class AdagradDecay(Shaping):
    """Adagrad whose accumulator is multiplied by `decay_rate` once a period, down to its start.

    Period P = floor((clock + 1) / decay_steps). A row that was last updated in period p has its
    accumulator set to max(a decay_rate^(P - p), initial_accumulator) before g^2 is added; with
    `catch_up: one_period` to max(a decay_rate, initial_accumulator), and p advances by one.
    Slots: accumulator; decay_period, as wide as the vector.

    Source: DeepRec's AdagradDecayOptimizer, whose rule is `one_period`.
    """

    type: Literal["adagrad_decay"] = "adagrad_decay"
    learning_rate: float = ADAGRAD_LEARNING_RATE
    initial_accumulator: float = ADAGRAD_START
    decay_steps: int = 100_000
    decay_rate: float = 0.9
    catch_up: Literal["all_periods", "one_period"] = "all_periods"

    def __post_init__(self) -> None:
        _check_decay(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class AdagradDecayV2(Shaping):
    """AdagradDecay with a decay_period of one number a row; everything else is the same.

    Source: DeepRec's AdagradDecayOptimizerV2.
    """

    type: Literal["adagrad_decay_v2"] = "adagrad_decay_v2"
    learning_rate: float = ADAGRAD_LEARNING_RATE
    initial_accumulator: float = ADAGRAD_START
    decay_steps: int = 100_000
    decay_rate: float = 0.9
    catch_up: Literal["all_periods", "one_period"] = "all_periods"

    def __post_init__(self) -> None:
        _check_decay(self)


def _check_decay(spec: AdagradDecay | AdagradDecayV2) -> None:
    _check_shaping(spec)
    require_positive("initial_accumulator", spec.initial_accumulator)
    require(spec.decay_steps >= 1, f"decay_steps must be >= 1, got {spec.decay_steps}")
    require(0 < spec.decay_rate < 1, f"decay_rate must be in (0, 1), got {spec.decay_rate}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Adam(Shaping):
    """Adam on touched rows with bias corrections that count global steps. Slots: m, v.

    Source: Kingma and Ba 2015, section 2's last form, with epsilon as in TensorFlow and DeepRec.
    """

    type: Literal["adam"] = "adam"
    learning_rate: float = 0.001
    beta1: float = 0.9
    beta2: float = 0.999
    epsilon: float = 1e-8

    def __post_init__(self) -> None:
        _check_adam(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class AdamAsync(Shaping):
    """Adam, and with `apply_sparse_rmsprop` RMSProp with momentum for table rows. Slots: m, v.

    Dense parameters keep Adam. Source: DeepRec's AdamAsyncOptimizer.
    """

    type: Literal["adam_async"] = "adam_async"
    learning_rate: float = 0.001
    beta1: float = 0.9
    beta2: float = 0.999
    epsilon: float = 1e-8
    apply_sparse_rmsprop: bool = False

    def __post_init__(self) -> None:
        _check_adam(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class AdamW(Shaping):
    """Adam, and w -= d w on touched rows, w as it was before the step. Slots: m, v.

    d = lr weight_decay, as in the paper and torch; with `decay_scaling: none` d = weight_decay
    (DeepRec's ordinary variables), with `corrected` d = alpha weight_decay with the
    bias-corrected learning rate alpha (DeepRec's tables). Source: Loshchilov and Hutter 2019.
    """

    type: Literal["adamw"] = "adamw"
    learning_rate: float = 0.001
    beta1: float = 0.9
    beta2: float = 0.999
    epsilon: float = 1e-8
    weight_decay: float = 0.01
    decay_scaling: Literal["learning_rate", "none", "corrected"] = "learning_rate"

    def __post_init__(self) -> None:
        _check_adam(self)
        require_not_negative("weight_decay", self.weight_decay)


@dataclass(frozen=True, slots=True, kw_only=True)
class RowwiseAdam(Shaping):
    """Adam whose v is of the mean of g^2 over the row. Slots: m; v, one number a row.

    Dense parameters take Adam. Source: FBGEMM's partial row-wise Adam, with epsilon as in Adam.
    """

    type: Literal["rowwise_adam"] = "rowwise_adam"
    learning_rate: float = 0.001
    beta1: float = 0.9
    beta2: float = 0.999
    epsilon: float = 1e-8

    def __post_init__(self) -> None:
        _check_adam(self)


def _check_adam(spec: Adam | AdamAsync | AdamW | RowwiseAdam) -> None:
    _check_shaping(spec)
    require_share("beta1", spec.beta1)
    require_share("beta2", spec.beta2)
    require_positive("epsilon", spec.epsilon)


@dataclass(frozen=True, slots=True, kw_only=True)
class RmsProp(Shaping):
    """v = decay v + (1 - decay) g^2; d = g / (sqrt(v) + epsilon); w -= lr d. Slot: v.

    With momentum b = momentum b + d; w -= lr b, and a second slot momentum.
    Source: Hinton's lecture, with epsilon and momentum as in torch.optim.RMSprop.
    """

    type: Literal["rmsprop"] = "rmsprop"
    learning_rate: float = 0.001
    decay: float = 0.9
    epsilon: float = 1e-8
    momentum: float = 0.0

    def __post_init__(self) -> None:
        _check_shaping(self)
        require_share("decay", self.decay)
        require_positive("epsilon", self.epsilon)
        require_share("momentum", self.momentum)


@dataclass(frozen=True, slots=True, kw_only=True)
class Ftrl(Shaping):
    """Follow the regularised leader, with l1 on the norm of a row or on each coordinate.

    Slots: accumulator n, linear z. Dense parameters always take `lasso: coordinate`. No schedule:
    w is -z times the learning rate, so a falling one would shrink every weight.

    Args:
        learning_rate_power: <= 0; -0.5 divides the learning rate by sqrt(n).
        initial_accumulator: n at the start, > 0.
        l1: a row (or coordinate) whose z has at most this norm is 0.
        l2: as in the paper's closed form, 2 l2 is added to the denominator.
        l2_shrinkage: 2 l2_shrinkage w is added to g where g goes into z, not where it goes into n.
        lasso: `row` is DeepRec's for its tables, `coordinate` the paper's.

    Source: McMahan et al. 2013, parameters as in TensorFlow's FtrlOptimizer but for the start.
    """

    type: Literal["ftrl"] = "ftrl"
    learning_rate: float = 0.05
    learning_rate_power: float = -0.5
    initial_accumulator: float = FTRL_START
    l1: float = 0.0
    l2: float = 0.0
    l2_shrinkage: float = 0.0
    lasso: Literal["row", "coordinate"] = "row"

    def __post_init__(self) -> None:
        _check_shaping(self)
        require(
            self.schedule is None,
            "ftrl takes no schedule: its weights are proportional to the learning rate, "
            "which falls by itself as the accumulator grows",
        )
        power = self.learning_rate_power
        require(-10 <= power <= 0, f"learning_rate_power must be in [-10, 0], got {power}")
        require_positive("initial_accumulator", self.initial_accumulator)
        require_not_negative("l1", self.l1)
        require_not_negative("l2", self.l2)
        require_not_negative("l2_shrinkage", self.l2_shrinkage)


Optimizer = (
    Sgd
    | Adagrad
    | RowwiseAdagrad
    | AdagradDecay
    | AdagradDecayV2
    | Adam
    | AdamAsync
    | AdamW
    | RowwiseAdam
    | RmsProp
    | Ftrl
)
OPTIMIZERS: dict[str, type[Optimizer]] = {
    "sgd": Sgd,
    "adagrad": Adagrad,
    "rowwise_adagrad": RowwiseAdagrad,
    "adagrad_decay": AdagradDecay,
    "adagrad_decay_v2": AdagradDecayV2,
    "adam": Adam,
    "adam_async": AdamAsync,
    "adamw": AdamW,
    "rowwise_adam": RowwiseAdam,
    "rmsprop": RmsProp,
    "ftrl": Ftrl,
}
