"""What a contribution weighs in a step, by how stale its data are.

Staleness is that of the data, s = k at application minus t of the token; s <= 0 is never stale.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np

from embedding.spec.ranges import require_share


@dataclass(frozen=True, slots=True, kw_only=True)
class Cutoff:
    """1 up to the bound, 0 beyond it.

    Source: Su et al., GBA, NeurIPS 2022 (arXiv 2205.11048), as we understand it.
    """

    type: Literal["cutoff"] = "cutoff"


@dataclass(frozen=True, slots=True, kw_only=True)
class Power:
    """base^max(0, s - bound): 1 up to the bound, smaller with each step beyond it.

    Args:
        base: in [0, 1).
    """

    type: Literal["power"] = "power"
    base: float = 0.5

    def __post_init__(self) -> None:
        require_share("base", self.base)


@dataclass(frozen=True, slots=True, kw_only=True)
class Inverse:
    """1 / max(1, s), whatever the bound. Source: staleness-aware SGD, arXiv 1511.05950."""

    type: Literal["inverse"] = "inverse"


StaleWeight = Cutoff | Power | Inverse


def weight_of(rule: StaleWeight, staleness: int, *, bound: int) -> float:
    """Return the weight of a contribution: a float32 number, 1 where it is not stale.

    Shards sum in float32. What would be 0 there is 0 here, so that all agree on what is dropped.

    Args:
        staleness: s, in steps.
        bound: `staleness_bound`.
    """
    match rule:
        case Cutoff():
            return 1.0 if staleness <= bound else 0.0
        case Power():
            return float(np.float32(rule.base ** max(0, staleness - bound)))
        case Inverse():
            return float(np.float32(1.0 / max(1, staleness)))
