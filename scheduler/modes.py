"""Mode rules: which ended batches make the next step, and what a pull has to read.

A rule is one value of three pure functions over the ledger; the step protocol around it is the
same for all modes.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from ps.messages import ANY_STEP
from scheduler.ledger import Batch, Ledger

Mode = Literal["sync", "async"]


@dataclass(frozen=True, slots=True)
class ModeRule:
    """What sets a mode apart.

    Args:
        batch_is_step: whether every batch is a step of its own; else a global batch is one.
        at_step: maps a token's step to the step that its pull must read.
        next_step: returns the batches of step k in the order in which they are summed, or None
            while they are not there yet.
    """

    name: Mode
    batch_is_step: bool
    at_step: Callable[[int], int]
    next_step: Callable[[Ledger, int], list[Batch] | None]


def _sync_step(ledger: Ledger, step: int) -> list[Batch] | None:
    """All batches of the global batch, ordered by id, once the last of them has ended."""
    return ledger.group(step) if ledger.is_complete(step) else None


def _async_step(ledger: Ledger, step: int) -> list[Batch] | None:
    """Whichever batch has ended first."""
    batch = ledger.next_ended()
    return None if batch is None else [batch]


RULES: dict[Mode, ModeRule] = {
    "sync": ModeRule("sync", False, lambda step: step, _sync_step),
    "async": ModeRule("async", True, lambda step: ANY_STEP, _async_step),
}
