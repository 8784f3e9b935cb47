"""Learning-rate schedules: what the learning rate is multiplied by, over the schedule clock.

The clock counts global batches that were applied before a step, in every mode.
"""

import math
from dataclasses import dataclass
from typing import Literal

from embedding.spec.ranges import require, require_count, require_positive


@dataclass(frozen=True, slots=True, kw_only=True)
class Schedule:
    """A linear warm-up, then a course that ends, or one of those that don't: for jobs without end.

    Args:
        type: the course after the warm-up.
        warmup_steps: clock c < warmup_steps has the factor (c + 1) / warmup_steps.
        decay_steps: how long the course takes to fall from 1 to end_factor, where it stays. Of
            `cosine_restarts` a period, after which it begins at 1 again. Of `inverse` the time in
            which 1 / factor^(1 / power) grows by 1, without an end. Not for `constant`.
        end_factor: in [0, 1]; None: 0. Not for `constant`.
        power: > 0; of `polynomial`, None: 1, a straight line; of `inverse`, None: 0.5.

    Sources: Goyal et al. 2017 (warm-up), TensorFlow's polynomial_decay, Loshchilov and Hutter 2017
    (cosine, and restarts with periods that don't grow), Vaswani et al. 2017 (inverse square root).
    """

    type: Literal["constant", "polynomial", "cosine", "cosine_restarts", "inverse"] = "constant"
    warmup_steps: int = 0
    decay_steps: int | None = None
    end_factor: float | None = None
    power: float | None = None

    def __post_init__(self) -> None:
        require_count("warmup_steps", self.warmup_steps, least=0)
        if self.type == "constant":
            require(self.decay_steps is None, "decay_steps is not for a constant schedule")
            require(self.end_factor is None, "end_factor is not for a constant schedule")
        else:
            require(self.decay_steps is not None, f"decay_steps is required for {self.type}")
        if self.decay_steps is not None:
            require_count("decay_steps", self.decay_steps)
        if self.end_factor is not None:
            in_range = 0 <= self.end_factor <= 1
            require(in_range, f"end_factor must be in [0, 1], got {self.end_factor}")
        if self.power is not None:
            has_power = self.type in ("polynomial", "inverse")
            require(has_power, f"power is not for a {self.type} schedule")
            require_positive("power", self.power)

    def factor(self, clock: int) -> float:
        """Return what the learning rate is multiplied by, in [0, 1]; clock: from 0."""
        if clock < self.warmup_steps:
            return (clock + 1) / self.warmup_steps
        if self.decay_steps is None:
            return 1.0
        end = self.end_factor or 0.0
        since = clock - self.warmup_steps
        if self.type == "cosine_restarts":
            since %= self.decay_steps
        left = 1.0 - min(since / self.decay_steps, 1.0)
        if self.type == "inverse":
            power = 0.5 if self.power is None else self.power
            shape = (1.0 + since / self.decay_steps) ** -power
        elif self.type == "polynomial":
            shape = left ** (1.0 if self.power is None else self.power)
        else:
            shape = (1.0 - math.cos(math.pi * left)) / 2.0
        return end + (1.0 - end) * shape
