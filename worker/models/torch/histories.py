"""What a user did, beside what he is offered: sequences, and the vectors they are held against."""

from collections.abc import Mapping, Sequence

import torch

from worker.models.protocol import name_hint
from worker.models.torch import ModuleInputs
from worker.models.torch.sequences import Sequence as VectorSequence

Names = str | Sequence[str]
_OTHER_LENGTHS = (
    "sequences of feature {!r} have other lengths than those of {!r}: they say of the same places,"
    " so their lists need one length, without nulls, and one max_length"
)
Embeddings = Mapping[str, torch.Tensor | VectorSequence]


class Histories:
    """Sequences of one length, and for each of them the feature that it is held against.

    An item's own key and that of its kind, say, are two features, and so are those of the items
    that were seen: vectors of a place are taken side by side.

    Args:
        inputs: of the model.
        model: named in errors.
        history: names of sequence features.
        target: names of pooled features, in the same order; their vectors are as wide.
        negatives: names of sequence features, as of `history`: what might have been in its place.

    Attributes:
        width: of the vectors of one place, and of the target.

    Raises:
        ValueError: a name is not that of such a feature, or they don't belong together.
    """

    def __init__(
        self,
        inputs: ModuleInputs,
        model: str,
        history: Names,
        target: Names,
        *,
        negatives: Names = (),
    ) -> None:
        self.history = _read(inputs, model, "history", history, sequences=True)
        self.target = _read(inputs, model, "target", target, sequences=False)
        if len(self.history) != len(self.target):
            raise ValueError(
                f"model.history names {len(self.history)} features and model.target"
                f" {len(self.target)}; each sequence is held against one target"
            )
        for one, other in zip(self.history, self.target, strict=True):
            if inputs.dims[one] != inputs.dims[other]:
                raise ValueError(
                    f"model.history {one!r} has vectors of dim {inputs.dims[one]}, model.target"
                    f" {other!r} of dim {inputs.dims[other]}; give them one table, or one dim"
                )
        self.width = sum(inputs.dims[name] for name in self.target)
        self.negatives: tuple[str, ...] = ()
        if negatives:
            self.negatives = _read(inputs, model, "negatives", negatives, sequences=True)
            dims = [[inputs.dims[name] for name in each] for each in (self.negatives, self.history)]
            if dims[0] != dims[1]:
                raise ValueError(
                    f"model.negatives has vectors of dims {dims[0]}, model.history of {dims[1]}:"
                    " they must be the same, feature by feature"
                )
        read = (*self.history, *self.negatives)
        left_out = [name for name in inputs.sequences if name not in read]
        if left_out:
            raise ValueError(
                f"sparse feature {left_out[0]!r} has combiner none, and {model} reads the sequences"
                " of model.history alone: add it there, or let it be pooled"
            )

    def read(self, embeddings: Embeddings) -> tuple[VectorSequence, torch.Tensor]:
        """Return the places' vectors, [n, L, width], with lengths, and the target's, [n, width]."""
        return together(embeddings, self.history), torch.cat(
            [_pooled(embeddings[name]) for name in self.target], dim=1
        )

    def read_negatives(self, embeddings: Embeddings, seen: VectorSequence) -> torch.Tensor:
        """Return the negatives' vectors, [n, L, width], of the places that `read` gave."""
        found = together(embeddings, self.negatives)
        if not torch.equal(found.lengths, seen.lengths):
            raise ValueError(_OTHER_LENGTHS.format(self.negatives[0], self.history[0]))
        return found.vectors


def pooled_inputs(dense: torch.Tensor, embeddings: Embeddings) -> list[torch.Tensor]:
    """Return all inputs but sequences, in their order."""
    return [dense, *(each for each in embeddings.values() if isinstance(each, torch.Tensor))]


def together(embeddings: Embeddings, names: Sequence[str]) -> VectorSequence:
    """Return sequences of the same places side by side."""
    parts = [_sequence(embeddings[name]) for name in names]
    for name, part in zip(names[1:], parts[1:], strict=True):
        if not torch.equal(part.lengths, parts[0].lengths):
            raise ValueError(_OTHER_LENGTHS.format(name, names[0]))
    if len(parts) == 1:
        return parts[0]
    return VectorSequence(torch.cat([part.vectors for part in parts], dim=2), parts[0].lengths)


def no_sequences(inputs: ModuleInputs, model: str) -> None:
    """Raise ValueError where a model that takes pooled vectors alone is given a sequence."""
    for name in inputs.sequences:
        raise ValueError(
            f"sparse feature {name!r} has combiner none, and {model} takes one vector for each"
            " feature: let it be sum, mean, sqrtn or max, or take a model that reads sequences"
            " (docs/torch.md)"
        )


def _read(
    inputs: ModuleInputs, model: str, option: str, given: Names, *, sequences: bool
) -> tuple[str, ...]:
    names = (given,) if isinstance(given, str) else tuple(given)
    known = inputs.sequences if sequences else inputs.pooled
    if not names:
        raise ValueError(f"model.{option} of {model} must name a feature")
    for name in names:
        if name in inputs.dims and name not in known:
            kind = "pooled; let it have combiner none" if sequences else "a sequence"
            raise ValueError(f"model.{option} of {model}: sparse feature {name!r} is {kind}")
        if name not in known:
            hint = name_hint(name, known) if known else "the job has none"
            raise ValueError(f"model.{option} of {model}: no sparse feature {name!r}; {hint}")
    return names


def _sequence(found: torch.Tensor | VectorSequence) -> VectorSequence:
    assert not isinstance(found, torch.Tensor), "read when the model was made"
    return found


def _pooled(found: torch.Tensor | VectorSequence) -> torch.Tensor:
    assert isinstance(found, torch.Tensor), "read when the model was made"
    return found
