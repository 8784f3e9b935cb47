"""Which of two rows each key of a pulled batch uses: its own, or the static one that it shares."""

from dataclasses import replace

import numpy as np
import numpy.typing as npt

from worker.step.preparing import Bag, Prepared, of_occurrences

UInt8s = npt.NDArray[np.uint8]


def choose_rows(prepared: Prepared, admitted: UInt8s) -> tuple[Prepared, UInt8s]:
    """Settle for each occurrence which row it uses, once the pull has said who is admitted.

    Args:
        prepared: the batch.
        admitted: uint8[u], the admitted bit of each distinct key.

    Returns:
        The batch with one position for each occurrence where there were two; and uint8[u], the
        keys that get a gradient: a static row that no occurrence uses is not among them, as even
        a gradient of 0 would move it, nor is any that only samples of weight 0 have.
    """
    choosing = [bag for bag in prepared.bags if bag.places]
    weighing = prepared.weighing
    if not choosing:
        return prepared, admitted if weighing is None else admitted & weighing
    trained = admitted.copy()
    for bag in choosing:
        trained[bag.places[1]] = 0
    weighs = None if weighing is None or prepared.weights is None else prepared.weights > 0
    bags = tuple(
        _chosen(bag, admitted, trained, weighs) if bag.places else bag for bag in prepared.bags
    )
    if weighing is not None:
        trained &= weighing
    return replace(prepared, bags=bags), trained


def _chosen(
    bag: Bag, admitted: UInt8s, trained: UInt8s, weighs: npt.NDArray[np.bool_] | None
) -> Bag:
    own, static = bag.places
    has_own = admitted[own] != 0
    moves_static = ~has_own
    if weighs is not None:
        moves_static &= of_occurrences(weighs, bag.offsets)
    trained[static[moves_static]] = 1
    return replace(bag, positions=(np.where(has_own, *bag.positions),), places=())
