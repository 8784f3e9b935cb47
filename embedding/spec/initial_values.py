"""What new rows start with."""

import math
from dataclasses import dataclass
from typing import Literal

from embedding.spec.ranges import require, require_finite


@dataclass(frozen=True, slots=True, kw_only=True)
class Uniform:
    """Initial values from the uniform distribution on [-scale, scale)."""

    type: Literal["uniform"] = "uniform"
    scale: float = 0.01

    def __post_init__(self) -> None:
        require(self.scale >= 0, f"scale must be >= 0, got {self.scale}")
        require_finite("scale", self.scale)


@dataclass(frozen=True, slots=True, kw_only=True)
class Normal:
    """Initial values from the normal distribution."""

    type: Literal["normal"] = "normal"
    mean: float = 0.0
    stddev: float = 0.01

    def __post_init__(self) -> None:
        require(self.stddev >= 0, f"stddev must be >= 0, got {self.stddev}")
        require_finite("stddev", self.stddev)
        require_finite("mean", self.mean)


@dataclass(frozen=True, slots=True, kw_only=True)
class TruncatedNormal:
    """Initial values from the normal distribution cut at two standard deviations."""

    type: Literal["truncated_normal"] = "truncated_normal"
    mean: float = 0.0
    stddev: float = 0.01

    def __post_init__(self) -> None:
        require(self.stddev >= 0, f"stddev must be >= 0, got {self.stddev}")
        require_finite("stddev", self.stddev)
        require_finite("mean", self.mean)


@dataclass(frozen=True, slots=True, kw_only=True)
class Constant:
    """One initial value for all."""

    type: Literal["constant"] = "constant"
    value: float = 0.0

    def __post_init__(self) -> None:
        require_finite("value", self.value)


@dataclass(frozen=True, slots=True, kw_only=True)
class Zeros:
    """All values start at 0."""

    type: Literal["zeros"] = "zeros"


@dataclass(frozen=True, slots=True, kw_only=True)
class GlorotUniform:
    """Initial values from the uniform distribution on [-limit, limit), limit as Glorot's.

    limit = sqrt(6 / (fan_in + fan_out)) with fan_out = dim, as if the table were a matrix
    [fan_in, dim]. It has no vocabulary size, so `fan_in` is a number of its own; the default is
    the height of DeepRec's matrix of default values.

    Source: Glorot and Bengio 2010, equation 16.
    """

    type: Literal["glorot_uniform"] = "glorot_uniform"
    fan_in: int = 4096

    def __post_init__(self) -> None:
        require(1 <= self.fan_in < 2**63, f"fan_in must be in [1, 2^63), got {self.fan_in}")

    def limit(self, dim: int) -> float:
        """Return half the width of the interval for rows of this width."""
        return math.sqrt(6 / (self.fan_in + dim))


Initializer = Uniform | GlorotUniform | Normal | TruncatedNormal | Constant | Zeros
