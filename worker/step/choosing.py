"""Which of two rows each key of a pulled batch uses: its own, or the static one that it shares."""

from dataclasses import replace

import numpy as np
import numpy.typing as npt

from worker.step.preparing import Bag, Prepared

UInt8s = npt.NDArray[np.uint8]


def choose_rows(prepared: Prepared, admitted: UInt8s) -> tuple[Prepared, UInt8s]:
    """Settle for each occurrence which row it uses, once the pull has said who is admitted.

    Args:
        prepared: the batch.
        admitted: uint8[u], the admitted bit of each distinct key.

    Returns:
        The batch with one position for each occurrence where there were two; and uint8[u], the
        keys that get a gradient: a static row that no occurrence uses is not among them, as even
        a gradient of 0 would move it.
    """
    choosing = [bag for bag in prepared.bags if bag.places]
    if not choosing:
        return prepared, admitted
    trained = admitted.copy()
    for bag in choosing:
        trained[bag.places[1]] = 0
    bags = tuple(_chosen(bag, admitted, trained) if bag.places else bag for bag in prepared.bags)
    return replace(prepared, bags=bags), trained


def _chosen(bag: Bag, admitted: UInt8s, trained: UInt8s) -> Bag:
    own, static = bag.places
    has_own = admitted[own] != 0
    trained[static[~has_own]] = 1
    return replace(bag, positions=(np.where(has_own, *bag.positions),), places=())
