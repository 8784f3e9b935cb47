"""Learning-rate schedules: what the learning rate is multiplied by, over the schedule clock.

The clock counts global batches that were applied before a step, in every mode.
"""

import math
from dataclasses import dataclass
from typing import Literal

from embedding.spec.ranges import require, require_count, require_positive


@dataclass(frozen=True, slots=True, kw_only=True)
class Schedule:
    """A linear warm-up, then a constant, polynomial or cosine course.

    Args:
        type: the course after the warm-up.
        warmup_steps: clock c < warmup_steps has the factor (c + 1) / warmup_steps.
        decay_steps: how long the course takes to fall from 1 to end_factor, where it stays. Not
            for `constant`.
        end_factor: in [0, 1]; None: 0. Not for `constant`.
        power: of `polynomial`, > 0; None: 1, a straight line.

    Sources: Goyal et al. 2017 (warm-up), TensorFlow's polynomial_decay, Loshchilov and Hutter 2017
    (cosine, without restarts).
    """

    type: Literal["constant", "polynomial", "cosine"] = "constant"
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
            require(self.type == "polynomial", f"power is not for a {self.type} schedule")
            require_positive("power", self.power)

    def factor(self, clock: int) -> float:
        """Return what the learning rate is multiplied by, in [0, 1]; clock: from 0."""
        if clock < self.warmup_steps:
            return (clock + 1) / self.warmup_steps
        if self.decay_steps is None:
            return 1.0
        end = self.end_factor or 0.0
        left = 1.0 - min((clock - self.warmup_steps) / self.decay_steps, 1.0)
        if self.type == "polynomial":
            shape = left ** (1.0 if self.power is None else self.power)
        else:
            shape = (1.0 - math.cos(math.pi * left)) / 2.0
        return end + (1.0 - end) * shape
