"""The numbers that a step's updates need and that depend on time."""

from embedding.optimizers.rule import step_scalars
from ps.spec import StoreSpec


def scalars_of_step(
    store: StoreSpec, *, step: int, clock: int, learning_rate_scale: float
) -> tuple[tuple[float, ...], ...]:
    """Return what a record says to each of the store's optimizers, in their order.

    Args:
        step: how many the optimizers' state has seen before it; clock: of the schedules.
        learning_rate_scale: of the mode that the step is formed in.
    """
    return tuple(
        step_scalars(
            optimizer,
            learning_rate=optimizer.learning_rate_at(clock) * learning_rate_scale,
            step=step,
            clock=clock,
        )
        for optimizer in store.optimizers
    )
