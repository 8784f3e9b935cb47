"""When steps have become small enough for stale gradients: a plain state machine.

What turns unstable first is the direction that moves all logits together. Near its optimum a step
takes the share `a` of the way there (learning rate times curvature), so of the distance 1 - a is
left: synchronous training is stable below a = 2. Where every gradient is one step stale it is
below a = 1, and with more staleness below about 1 / staleness. An adaptive optimizer finds its
limit by overshooting: its sums of squares grow until steps are short enough, and they don't shrink
again, so a job that begins with stale gradients trains with lower learning rates for good.
docs/gba-experiments.md has the measurements.

The mean residual r of a step, of prediction minus label, is the distance in this direction plus
noise of the samples. With that noise r is a moving average whose steps are correlated by -a / 2:
noise that a step follows has to be taken back by the next one. So a is seen in what workers report.
Only signs are compared, as the first residuals are far larger than all others: of normal ones with
correlation c the mean product of signs is 2 / pi arcsin(c).
"""

from math import copysign, pi, sin

# So many steps back weigh 1 / e. The error of `a` is then about .14.
_STEPS = 256

# What a times the staleness may be: below where it would be unstable, as there noise of the samples
# is amplified already.
_ALLOWED = 0.75

# The share of stale contributions below which steps may be as long as sync alone allows.
_HARMLESS = 0.25


class Settling:
    """Measures how long the steps of `sync` are.

    Args:
        group_size: M, local batches of a step.
    """

    def __init__(self, group_size: int) -> None:
        self._group_size = group_size
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
    def step_size(self) -> float | None:
        """The share `a` of the way to the optimum that a step takes; None: not known yet."""
        if self._num_steps < _STEPS:
            return None
        correlation = sin(pi / 2 * self._products / self._weights)
        return max(0.0, -2.0 * correlation)

    def allows(self, workers: int) -> bool:
        """Return whether so many workers may train without a barrier."""
        staleness = workers / self._group_size
        size = self.step_size
        return staleness <= _HARMLESS or (size is not None and size * staleness <= _ALLOWED)
