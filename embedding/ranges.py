"""Checks of the ranges of specs; a failed one names the field."""

import math


def require(condition: bool, message: str) -> None:
    """Raise ValueError with the message unless the condition holds."""
    if not condition:
        raise ValueError(message)


def require_finite(name: str, value: float) -> None:
    require(math.isfinite(value), f"{name} must be finite, got {value}")


def require_positive(name: str, value: float) -> None:
    require(value > 0, f"{name} must be > 0, got {value}")
    require_finite(name, value)


def require_not_negative(name: str, value: float) -> None:
    require(value >= 0, f"{name} must be >= 0, got {value}")
    require_finite(name, value)


def require_share(name: str, value: float) -> None:
    """A number in [0, 1), such as the share of a moving average that is kept."""
    require(0 <= value < 1, f"{name} must be in [0, 1), got {value}")
