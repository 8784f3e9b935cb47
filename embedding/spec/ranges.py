"""Checks of the ranges of specs; a failed one names the field."""

import math

import numpy as np


def require(condition: bool, message: str) -> None:
    """Raise ValueError with the message unless the condition holds."""
    if not condition:
        raise ValueError(message)


# Rows and what is computed with them are float32.
_LARGEST = float(np.finfo(np.float32).max)
_SMALLEST = float(np.finfo(np.float32).tiny)


def require_finite(name: str, value: float) -> None:
    """A number that float32 can hold. Every apply asks, so no message is made in vain."""
    if not math.isfinite(value):
        raise ValueError(f"{name} must be finite, got {value}")
    if abs(value) > _LARGEST:
        raise ValueError(f"{name} must be at most {_LARGEST:.7g}, as float32, got {value}")


def require_positive(name: str, value: float) -> None:
    """A number above 0 that float32 does not take for 0."""
    require(value > 0, f"{name} must be > 0, got {value}")
    require_finite(name, value)
    require(value >= _SMALLEST, f"{name} must be >= {_SMALLEST:.7g}, as float32, got {value}")


def require_not_negative(name: str, value: float) -> None:
    require(value >= 0, f"{name} must be >= 0, got {value}")
    require_finite(name, value)


def require_count(name: str, value: int, least: int = 1) -> None:
    """A whole number that messages can hold, with room for sums."""
    require(value >= least, f"{name} must be >= {least}, got {value}")
    require(value < 2**62, f"{name} must be below 2^62, got {value}")


def require_share(name: str, value: float) -> None:
    """A number in [0, 1), such as the share of a moving average that is kept."""
    require(0 <= value < 1, f"{name} must be in [0, 1), got {value}")


def require_one_of(name: str, value: object, choices: tuple[str, ...]) -> None:
    require(value in choices, f"{name} must be one of {', '.join(choices)}, got {value!r}")
