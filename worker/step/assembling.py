"""One lookup of a batch, forward and backward: from pulled rows to pooled vectors and back.

Row-level comes first: the vector that one occurrence of a key has. A plain lookup takes it from
the pulled rows where they lie; one that changes rows assembles float32[nnz, dim] of its own. Then
bag-level: the vectors of a bag become one, or a sequence of one length, which is the same for both.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from embedding.composition import (
    assemble_add,
    assemble_copy,
    assemble_multiply,
    clip_norms,
    clip_norms_gradient,
    spread_copy,
    spread_multiply,
)
from embedding.pooling import (
    fill_up,
    fill_up_gradient,
    pool,
    pool_gradient,
    pool_max,
    pool_max_gradient,
)
from worker.spec import Lookup
from worker.step.preparing import Bag

Float32s = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Vectors:
    """The vector of each occurrence of one lookup.

    Args:
        flat: float32[any], the buffer that holds them.
        positions: int64[nnz], where each one begins in `flat`.
        scales: float32[nnz], what `max_norm` multiplied each by; None without it.
    """

    flat: Float32s
    positions: npt.NDArray[np.int64]
    scales: Float32s | None = None


def vectors_of(lookup: Lookup, bag: Bag, values: Float32s) -> Vectors:
    """Return the occurrences' vectors, a view of the pulled rows where that is what they are."""
    assert not bag.places, "choose_rows comes first"
    if not lookup.assembled:
        return Vectors(values, bag.positions[0])
    nnz, dim = bag.positions[0].size, lookup.dim
    vectors = np.empty((nnz, dim), np.float32)
    _assemble(lookup, bag, values, vectors)
    scales = None
    if lookup.max_norm is not None:
        scales = np.empty(nnz, np.float32)
        clip_norms(vectors, lookup.max_norm, scales)
    return Vectors(vectors.reshape(-1), np.arange(nnz) * dim, scales)


def pool_vectors(lookup: Lookup, bag: Bag, vectors: Vectors, pooled: Float32s) -> None:
    """Write the lookup's columns of float32[n, W]; of a sequence all of float32[n, L, dim]."""
    flat, positions = vectors.flat, vectors.positions
    column, dim = lookup.column, lookup.dim
    if lookup.sequence:
        fill_up(flat, positions, bag.offsets, pooled)
    elif bag.maximum and bag.offsets is not None:
        pool_max(flat, positions, bag.offsets, pooled, column, dim)
    else:
        pool(flat, positions, bag.offsets, bag.coefficients, pooled, column, dim)


def add_gradient(
    lookup: Lookup,
    bag: Bag,
    values: Float32s,
    vectors: Vectors,
    grad_pooled: Float32s,
    grad_values: Float32s,
) -> None:
    """Add the gradient of what `pool_vectors` wrote to that of the pulled rows.

    Args:
        values: float32, the flat buffer of pulled rows.
        vectors: as `vectors_of` returned them.
        grad_pooled: float32[n, W]; of a sequence float32[n, L, dim].
        grad_values: float32, laid out as `values`; added to in the order of the occurrences.
    """
    if not lookup.assembled:
        _add_pooled_gradient(lookup, bag, vectors, grad_pooled, grad_values)
        return
    flat = np.zeros(vectors.flat.size, np.float32)
    _add_pooled_gradient(lookup, bag, vectors, grad_pooled, flat)
    dim = lookup.dim
    gradient = flat.reshape(-1, dim)
    if lookup.max_norm is not None and vectors.scales is not None:
        clipped = vectors.flat.reshape(-1, dim)
        clip_norms_gradient(clipped, lookup.max_norm, vectors.scales, gradient)
    _spread(lookup, bag, values, gradient, grad_values)


def _assemble(lookup: Lookup, bag: Bag, values: Float32s, vectors: Float32s) -> None:
    column = 0
    for number, positions in enumerate(bag.positions):
        part = lookup.physical[number]
        if lookup.operation == "concatenate" or number == 0:
            assemble_copy(values, positions, vectors, column, part.dim)
            column += part.dim
        elif lookup.operation == "add":
            assemble_add(values, positions, vectors)
        else:
            assemble_multiply(values, positions, vectors)


def _spread(
    lookup: Lookup, bag: Bag, values: Float32s, gradient: Float32s, grad_values: Float32s
) -> None:
    if lookup.operation == "multiply":
        one, other = bag.positions
        spread_multiply(gradient, values, other, one, grad_values)
        spread_multiply(gradient, values, one, other, grad_values)
        return
    column = 0
    for number, positions in enumerate(bag.positions):
        part = lookup.physical[number]
        spread_copy(gradient, column, part.dim, positions, grad_values)
        if lookup.operation == "concatenate":
            column += part.dim


def _add_pooled_gradient(
    lookup: Lookup, bag: Bag, vectors: Vectors, grad_pooled: Float32s, grad_flat: Float32s
) -> None:
    column, dim, positions = lookup.column, lookup.dim, vectors.positions
    if lookup.sequence:
        fill_up_gradient(grad_pooled, positions, bag.offsets, grad_flat)
    elif bag.maximum and bag.offsets is not None:
        pool_max_gradient(grad_pooled, column, dim, vectors.flat, positions, bag.offsets, grad_flat)
    else:
        pool_gradient(grad_pooled, column, dim, positions, bag.offsets, bag.coefficients, grad_flat)
