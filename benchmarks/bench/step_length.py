"""How long steps are in the direction that turns unstable first, seen in residuals.

That direction moves all logits together. Near its optimum a step takes the share `a` of the way
there (learning rate times curvature), so of the distance 1 - a is left: synchronous training is
stable below a = 2. Where every gradient is one step stale it is below a = 1.

The mean residual r of a step, of prediction minus label, is the distance in this direction plus
noise of the samples. With that noise r is a moving average whose steps are correlated by -a / 2:
noise that a step follows has to be taken back by the next one. Only signs are compared, as the
first residuals are far larger than all others: of normal ones with correlation c the mean product
of signs is 2 / pi arcsin(c).
"""

from math import copysign, pi, sin

# So many steps back weigh 1 / e. The error of `a` is then about .14.
_STEPS = 256


class StepLength:
    """Measures how long the steps of `sync` are."""

    def __init__(self) -> None:
        self._last: float | None = None
        self._num_steps = 0
        self._products = self._weights = 0.0

    def step(self, residual: float) -> None:
        """Take the mean residual of a step's samples."""
        if self._last is not None:
            kept = 1.0 - 1.0 / _STEPS
            sign = copysign(1.0, residual) * copysign(1.0, self._last)
            self._products = kept * self._products + sign
            self._weights = kept * self._weights + 1.0
            self._num_steps += 1
        self._last = residual

    @property
    def share(self) -> float | None:
        """The share `a` of the way to the optimum that a step takes; None: too few steps."""
        if self._num_steps < _STEPS // 2:
            return None
        correlation = sin(pi / 2 * self._products / self._weights)
        return max(0.0, -2.0 * correlation)
