"""Where the arrays of a batch lie in one float32 vector, in which they travel to a device."""

from collections.abc import Iterator
from dataclasses import dataclass
from math import prod

import numpy as np
import torch

from worker.models.lookup_columns import take_columns
from worker.models.protocol import FloatArray
from worker.models.sequences import WithSequences
from worker.models.torch.sequences import Sequence as VectorSequence
from worker.spec import ModelSpec

# In values: what a device reads best begins at a multiple of 256 bytes. On the CPU inputs lie side
# by side, as sums of torch may depend on how they are aligned.
_ON_A_DEVICE, _ON_THE_CPU = 64, 1


@dataclass(frozen=True, slots=True)
class Region:
    """An array's place in the vector."""

    begin: int
    shape: tuple[int, ...]

    def of(self, flat: torch.Tensor) -> torch.Tensor:
        """Return the array, a view."""
        return flat[self.begin : self.begin + prod(self.shape)].view(self.shape)


@dataclass(frozen=True, slots=True)
class BatchInputs:
    """What a module is given, and what its loss is made of: views of one vector.

    Attributes:
        dense: float32[n, num_dense].
        embeddings: by name float32[n, dim], or a sequence.
        tensors: the vectors of all lookups, in their order.
        labels: float32[n], of several tasks float32[n, tasks].
        weights: float32[n], 1 where samples have none.
        factors: of several tasks float32[n, tasks]; else the weights.
        parameters: float32[P].
    """

    dense: torch.Tensor
    embeddings: dict[str, torch.Tensor | VectorSequence]
    tensors: list[torch.Tensor]
    labels: torch.Tensor
    weights: torch.Tensor
    factors: torch.Tensor
    parameters: torch.Tensor


class Layout:
    """The layout of batches of one size.

    Args:
        spec: of the model.
        n: samples.
        lengths: to which sequences are filled up, in their order.
        parameters: how many the model has.
        on_device: whether it is one of its own, and not the CPU.

    Attributes:
        size: of the vector.
        key: alike where the layout is.
    """

    def __init__(
        self,
        spec: ModelSpec,
        n: int,
        lengths: tuple[int, ...],
        *,
        parameters: int,
        on_device: bool,
    ) -> None:
        self._spec = spec
        self.key = (n, *lengths)
        self.size = 0
        align = _ON_A_DEVICE if on_device else _ON_THE_CPU
        self.dense = self._next((n, spec.num_dense), align)
        sequences = iter(lengths)
        self.vectors = [
            self._next((n, next(sequences), each.dim) if each.sequence else (n, each.dim), align)
            for each in spec.lookups
        ]
        # An int64 has the place of two values.
        self.lengths = [self._next((2 * n,), _ON_A_DEVICE) for _ in lengths]
        self.labels = self._next(spec.logits_shape(n), _ON_A_DEVICE)
        self.weights = self._next((n,), _ON_A_DEVICE)
        self.factors = self.weights
        if spec.tasks:
            self.factors = self._next(spec.logits_shape(n), _ON_A_DEVICE)
        self.parameters = self._next((parameters,), _ON_A_DEVICE)

    def _next(self, shape: tuple[int, ...], align: int) -> Region:
        begin = -(-self.size // align) * align
        self.size = begin + prod(shape)
        return Region(begin, shape)

    def write(
        self,
        flat: torch.Tensor,
        params: FloatArray,
        dense: FloatArray,
        pooled: FloatArray | WithSequences,
    ) -> None:
        """Write parameters and inputs to float32[size] on the host."""
        given = pooled.sequences if isinstance(pooled, WithSequences) else ()
        columns = pooled.pooled if isinstance(pooled, WithSequences) else pooled
        np.copyto(self.parameters.of(flat).numpy(), params)
        np.copyto(self.dense.of(flat).numpy(), dense)
        sequences = iter(given)
        for lookup, region in zip(self._spec.lookups, self.vectors, strict=True):
            vectors = region.of(flat).numpy()
            if lookup.sequence:
                np.copyto(vectors, next(sequences).vectors)
            else:
                take_columns(columns, lookup.column, vectors)
        for padded, region in zip(given, self.lengths, strict=True):
            region.of(flat).view(torch.int64).numpy()[:] = padded.lengths

    def write_labels(
        self,
        flat: torch.Tensor,
        labels: FloatArray,
        weights: FloatArray | None,
        factors: FloatArray | None,
    ) -> None:
        """Write what losses are made of."""
        np.copyto(self.labels.of(flat).numpy(), labels)
        self.weights.of(flat).numpy()[:] = 1.0 if weights is None else weights
        if factors is not None:
            np.copyto(self.factors.of(flat).numpy(), factors)

    def read(self, flat: torch.Tensor) -> BatchInputs:
        """Return views of float32[size], wherever it is."""
        tensors = [region.of(flat) for region in self.vectors]
        return BatchInputs(
            self.dense.of(flat),
            dict(zip(self._spec.lookup_names, self._embeddings(flat, tensors), strict=True)),
            tensors,
            self.labels.of(flat),
            self.weights.of(flat),
            self.factors.of(flat),
            self.parameters.of(flat),
        )

    def _embeddings(
        self, flat: torch.Tensor, tensors: list[torch.Tensor]
    ) -> Iterator[torch.Tensor | VectorSequence]:
        lengths = iter(self.lengths)
        for lookup, tensor in zip(self._spec.lookups, tensors, strict=True):
            if lookup.sequence:
                yield VectorSequence(tensor, next(lengths).of(flat).view(torch.int64))
            else:
                yield tensor
