"""Sequences of a batch filled up to one length, and their gradients, in buffers that are kept."""

import numpy as np
import numpy.typing as npt

from runtime.free_list import FreeList
from worker.errors import DataError
from worker.models.sequences import Padded
from worker.spec import Lookup, ModelSpec
from worker.step.preparing import Bag, Prepared

MOST_BYTES = 1 << 31
"""Of the vectors of one feature's sequences, of one batch."""


class Sequences:
    """The sequence lookups of a model.

    Args:
        spec: of the model.
    """

    def __init__(self, spec: ModelSpec) -> None:
        self._lookups = {number: spec.lookups[number] for number in spec.sequences}
        self._names = dict(zip(range(len(spec.lookups)), spec.lookup_names, strict=False))
        self._vectors = {number: FreeList(np.float32) for number in self._lookups}
        self._gradients = {number: FreeList(np.float32) for number in self._lookups}

    def __bool__(self) -> bool:
        return bool(self._lookups)

    def make(self, prepared: Prepared) -> dict[int, Padded]:
        """Return room for the sequences of a batch, by lookup, with their lengths.

        Raises:
            DataError: they would need more than `MOST_BYTES`, or one is longer than the length to
                which all are filled up.
        """
        made = {}
        for number, lookup in self._lookups.items():
            lengths = lengths_of(prepared.bags[number], prepared.num_samples)
            longest = int(lengths.max(initial=0))
            length = padded_length(lookup, longest)
            shape = (lengths.size, length, lookup.dim)
            if longest > length or not _fits(*shape):
                raise _too_long(self._names.get(number, lookup.table), shape, longest)
            flat = self._vectors[number].take(int(np.prod(shape)))
            made[number] = Padded(flat.reshape(shape), lengths)
        return made

    def gradients(self, made: dict[int, Padded]) -> dict[int, Padded]:
        """Return room for the gradients of sequences."""
        return {
            number: Padded(
                self._gradients[number].take(each.vectors.size).reshape(each.vectors.shape),
                each.lengths,
            )
            for number, each in made.items()
        }

    def give_back(self, made: dict[int, Padded], gradients: dict[int, Padded]) -> None:
        """Take back what `make` and `gradients` gave: nothing may read it any more."""
        for number, each in made.items():
            self._vectors[number].give(each.vectors.reshape(-1))
        for number, each in gradients.items():
            self._gradients[number].give(each.vectors.reshape(-1))


def lengths_of(bag: Bag, n: int) -> npt.NDArray[np.int64]:
    """Return how many keys each of n samples has, int64[n]."""
    return np.ones(n, np.int64) if bag.offsets is None else np.diff(bag.offsets)


def padded_length(lookup: Lookup, longest: int) -> int:
    """Return L: the lookup's own, else the longest of the batch, and at least 1."""
    return max(1, longest) if lookup.length is None else lookup.length


def check_room(spec: ModelSpec, samples: int) -> None:
    """Refuse sequences of a given length that batches of so many samples have no room for.

    Raises:
        ValueError: names the feature.
    """
    for number in spec.sequences:
        lookup = spec.lookups[number]
        if lookup.length is not None and not _fits(samples, lookup.length, lookup.dim):
            name = spec.lookup_names[number]
            raise _too_long(name, (samples, lookup.length, lookup.dim), lookup.length)


def _fits(n: int, length: int, dim: int) -> bool:
    return 4 * n * length * dim <= MOST_BYTES


def _too_long(name: str, shape: tuple[int, int, int], longest: int) -> DataError:
    n, length, dim = shape
    if longest > length:
        return DataError(
            what=f"sparse feature {name!r} has a sequence of {longest} keys",
            got=f"expected at most {length}, its max_length",
        )
    return DataError(
        what=f"the sequences of sparse feature {name!r} are too long",
        got=f"{n} samples, filled up to {length} vectors of dim {dim}, would take"
        f" {4 * n * length * dim:,} bytes, expected at most {MOST_BYTES:,}",
        remedy="Give the feature a smaller max_length, or batches fewer samples",
    )
