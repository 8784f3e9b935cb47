"""Pairwise dot products of a sample's vectors, forward and backward: the interaction of DLRM.

The kernels work on one sample at a time, so that its vectors stay in registers and the nearest
cache, and on four of its vectors at once, which share what is loaded of the others.
"""

from collections.abc import Mapping
from functools import cached_property
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from numba import njit

from embedding.kernels.lines import (
    WIDTH,
    add_row,
    copy_row,
    line_of_zeros,
    load_line,
    multiply_add,
    repeated,
    store_line,
    transpose_lines,
)
from worker.models.protocol import FloatArray, SampleVectors, SharedInputs

_MOST_PLANS = 64


class _SharedPlan(NamedTuple):
    """How `_shared_dots` takes the vectors of samples that share some.

    Args:
        order, num_shared, sources, begun: as it takes them.
    """

    order: npt.NDArray[np.int64]
    sources: npt.NDArray[np.int64]
    num_shared: int
    begun: int


class Interaction:
    """A sample's first vector as it is, then the dot products of all its vectors.

    Its vectors v_0, v_1, ... are the first one, where there is one, and those of its lookups; the
    dot products v_i . v_j, j < i, are in the order (1,0), (2,0), (2,1), (3,0), ...

    Args:
        num_lookups: vectors of a sample beside the first.
        dim: d, width of a vector.
        has_first: whether there is a first vector.
    """

    def __init__(self, num_lookups: int, dim: int, *, has_first: bool) -> None:
        num_vectors = num_lookups + has_first
        self._num_pairs = num_vectors * (num_vectors - 1) // 2
        self.width = dim * has_first + self._num_pairs
        self._dim = dim
        self._num_vectors = num_vectors
        self._plans: dict[tuple[bool, ...], _SharedPlan] = {}
        self._has_first = has_first

    def forward(self, first: FloatArray, vectors: SampleVectors, out: FloatArray) -> None:
        """Write float32[n, `width`].

        Args:
            first: float32[n, d], or [n, 0] without a first vector.
            vectors: of the lookups.
            out: C-contiguous, written.
        """
        dots(first, vectors.flat, vectors.positions, self._dim, False, out)

    @cached_property
    def prediction_order(self) -> npt.NDArray[np.int64]:
        """int64[`width`]: where `forward` writes what `predict` writes at each place."""
        places = []
        for i in range(self._num_vectors):
            for j in range(i):
                # Here the first vector is the last; in `forward` it is number 0.
                a, b = ((k + self._has_first) % self._num_vectors for k in (i, j))
                a, b = max(a, b), min(a, b)
                places.append(self._dim * self._has_first + a * (a - 1) // 2 + b)
        places += range(self._dim * self._has_first)
        return np.array(places, np.int64)

    def predict(self, first: FloatArray, vectors: SampleVectors, out: FloatArray) -> None:
        """As `forward`, but in the order of prediction: what the first vector gives comes last.

        So dot products of the first lookups come first, whatever else differs between samples, and
        what a layer sums over them can be summed once for samples that share them.
        """
        dots(first, vectors.flat, vectors.positions, self._dim, True, out)

    def predict_shared(
        self, first: FloatArray, vectors: SampleVectors, shared: SharedInputs, out: FloatArray
    ) -> int:
        """As `predict`, to the last bit, but dot products of what samples share are made once.

        Returns:
            how many of the first elements are shared: these are written for the first sample of
            each run alone.
        """
        plan = self._plan_for(shared)
        _shared_dots(
            first, vectors.flat, vectors.positions, self._dim, plan.order, plan.num_shared,
            plan.sources, plan.begun, shared.group, out,
        )  # fmt: skip
        return plan.begun

    def _plan_for(self, shared: SharedInputs) -> "_SharedPlan":
        """Return in which order the vectors are taken; requests share few sets of columns."""
        key = (*shared.lookups, shared.dense)
        plan = self._plans.get(key)
        if plan is None:
            if len(self._plans) >= _MOST_PLANS:
                self._plans.clear()
            alike = key if self._has_first else shared.lookups
            order = np.argsort(np.logical_not(alike), kind="stable")
            place = np.empty_like(order)
            place[order] = np.arange(order.size)
            stride = -(-self._num_vectors // WIDTH) * WIDTH
            i, j = np.tril_indices(self._num_vectors, -1)
            later, earlier = np.maximum(place[i], place[j]), np.minimum(place[i], place[j])
            begun = shared.leading * (shared.leading - 1) // 2
            plan = _SharedPlan(order, later * stride + earlier, sum(alike), begun)
            self._plans[key] = plan
        return plan

    def backward(
        self,
        first: FloatArray,
        vectors: SampleVectors,
        grad_out: FloatArray,
        grad_first: FloatArray,
        grad_flat: FloatArray,
    ) -> None:
        """Write the gradient of `first`, add those of the other vectors.

        Args:
            first, vectors: as given to `forward`.
            grad_out: float32[n, `width`], gradient of what `forward` wrote.
            grad_first: as `first`, written.
            grad_flat: float32[any], laid out as `vectors.flat`; added to in the order of samples.
        """
        arrays = (grad_out, grad_first, grad_flat)
        dots_gradient(first, vectors.flat, vectors.positions, self._dim, *arrays)


def common_dim(model_type: str, dims: Mapping[str, int]) -> int:
    """Return the one width of all tables.

    Raises:
        ValueError: there is none, or they differ.
    """
    if not dims:
        raise ValueError(f"{model_type} needs a sparse feature, got none")
    if len(set(dims.values())) != 1:
        raise ValueError(
            f"{model_type} needs tables of the same dim, got {dict(dims)}; set embedding.dim, and "
            "no other dim under tables"
        )
    return next(iter(dims.values()))


@njit(cache=True, nogil=True, inline="always")
def _dots_of_four(columns, i, dim, stride, dots):  # type: ignore[no-untyped-def]
    """dots[k * stride + j] = v_k . v_j for k = i, ..., i + 3 and all j < k, and what is beside."""
    for j in range(0, i + 3, WIDTH):
        d0 = d1 = d2 = d3 = line_of_zeros()
        for k in range(dim):
            row = k * stride
            others = load_line(columns, row + j)
            d0 = multiply_add(repeated(columns, row + i), others, d0)
            d1 = multiply_add(repeated(columns, row + i + 1), others, d1)
            d2 = multiply_add(repeated(columns, row + i + 2), others, d2)
            d3 = multiply_add(repeated(columns, row + i + 3), others, d3)
        store_line(d0, dots, i * stride + j)
        store_line(d1, dots, (i + 1) * stride + j)
        store_line(d2, dots, (i + 2) * stride + j)
        store_line(d3, dots, (i + 3) * stride + j)


@njit(cache=True, nogil=True)
def dots(first, flat, positions, dim, first_last, out):  # type: ignore[no-untyped-def]
    """out[s] = first[s], then v_i . v_j for all j < i of sample s.

    With `first_last` the first vector is the last one, and comes after the dot products.
    """
    num_lookups = positions.shape[0]
    has_first = 1 if first.shape[1] > 0 else 0
    num_vectors = num_lookups + has_first
    num_pairs = num_vectors * (num_vectors - 1) // 2
    stride, width = -(-num_vectors // WIDTH) * WIDTH, -(-dim // WIDTH) * WIDTH
    vectors = np.zeros(stride * width, np.float32)
    columns = np.zeros(width * stride, np.float32)  # element k of vector i at k * stride + i
    dots = np.empty(stride * stride, np.float32)
    pairs = np.empty(num_pairs + stride, np.float32)
    start = first.shape[1]
    first_slot, lookup_slot = (num_lookups, 0) if first_last else (0, has_first)
    first_to, pairs_to = (num_pairs, 0) if first_last else (0, start)
    firsts, outputs = first.reshape(-1), out.reshape(-1)
    for s in range(out.shape[0]):
        to = s * out.shape[1]
        if has_first:
            copy_row(firsts, s * start, start, vectors, first_slot * width)
            copy_row(firsts, s * start, start, outputs, to + first_to)
        for i in range(num_lookups):
            copy_row(flat, positions[i, s], dim, vectors, (i + lookup_slot) * width)
        for i in range(0, num_vectors, WIDTH):
            for k in range(0, dim, WIDTH):
                transpose_lines(vectors, i * width + k, width, columns, k * stride + i, stride)
        for i in range(0, num_vectors, 4):
            _dots_of_four(columns, i, dim, stride, dots)
        pair = 0
        for i in range(1, num_vectors):
            # Whole lines: what is too much of one vector is overwritten by the next one's.
            for j in range(0, i, WIDTH):
                store_line(load_line(dots, i * stride + j), pairs, pair + j)
            pair += i
        copy_row(pairs, 0, num_pairs, outputs, to + pairs_to)


@njit(cache=True, nogil=True)
def _shared_dots(  # type: ignore[no-untyped-def]
    first, flat, positions, dim, order, num_shared, sources, begun, group, out
):
    """As `dots` with `first_last`, the vectors that runs of samples share before the others.

    Args:
        order: int64[vectors], those that are shared before the others.
        sources: int64[pairs], where in `dots` each one is.
        begun: how many of the first pairs are written for the first sample of a run alone.
    """
    num_lookups, num_vectors, num_pairs = positions.shape[0], order.size, sources.size
    stride, width = -(-num_vectors // WIDTH) * WIDTH, -(-dim // WIDTH) * WIDTH
    vectors = np.zeros(stride * width, np.float32)
    columns = np.zeros(width * stride, np.float32)
    dots = np.empty(stride * stride, np.float32)
    start = first.shape[1]
    firsts, outputs = first.reshape(-1), out.reshape(-1)
    for s in range(out.shape[0]):
        to = s * out.shape[1]
        anew = s == 0 or group[s] != group[s - 1]
        changed = 0 if anew else num_shared
        for place in range(changed, num_vectors):
            number = order[place]
            if number == num_lookups:
                copy_row(firsts, s * start, start, vectors, place * width)
            else:
                copy_row(flat, positions[number, s], dim, vectors, place * width)
        for i in range(changed - changed % WIDTH, num_vectors, WIDTH):
            for k in range(0, dim, WIDTH):
                transpose_lines(vectors, i * width + k, width, columns, k * stride + i, stride)
        for i in range(changed - changed % 4, num_vectors, 4):
            _dots_of_four(columns, i, dim, stride, dots)
        for pair in range(0 if anew else begun, num_pairs):
            outputs[to + pair] = dots[sources[pair]]
        copy_row(firsts, s * start, start, outputs, to + num_pairs)


@njit(cache=True, nogil=True)
def dots_gradient(  # type: ignore[no-untyped-def]
    first, flat, positions, dim, grad_out, grad_first, grad_flat
):
    """The gradient of v_i is the sum of g_ij v_j over j != i, and grad_out of v_0 itself."""
    num_lookups = positions.shape[0]
    has_first = 1 if first.shape[1] > 0 else 0
    num_vectors = num_lookups + has_first
    rounded = -(-num_vectors // 4) * 4
    stride = -(-dim // WIDTH) * WIDTH
    vectors = np.zeros(rounded * stride, np.float32)
    gradients = np.empty(rounded * stride, np.float32)
    pairs = np.zeros(rounded * (rounded - 1) // 2, np.float32)
    block = np.zeros(16, np.float32)
    start = first.shape[1]
    num_pairs = num_vectors * (num_vectors - 1) // 2
    firsts, grad_firsts, grad_outs = first.reshape(-1), grad_first.reshape(-1), grad_out.reshape(-1)
    for s in range(grad_out.shape[0]):
        at = s * grad_out.shape[1]
        copy_row(firsts, s * start, start, vectors, 0)
        for i in range(num_lookups):
            copy_row(flat, positions[i, s], dim, vectors, (i + has_first) * stride)
        copy_row(grad_outs, at + start, num_pairs, pairs, 0)
        for i in range(0, num_vectors, 4):
            row0 = i * (i - 1) // 2
            row1 = row0 + i
            row2 = row1 + i + 1
            row3 = row2 + i + 2
            # g among the four themselves, 4 x 4 and symmetric; its diagonal stays 0.
            block[1] = block[4] = pairs[row1 + i]
            block[2] = block[8] = pairs[row2 + i]
            block[6] = block[9] = pairs[row2 + i + 1]
            block[3] = block[12] = pairs[row3 + i]
            block[7] = block[13] = pairs[row3 + i + 1]
            block[11] = block[14] = pairs[row3 + i + 2]
            for c in range(0, stride, WIDTH):
                d0 = d1 = d2 = d3 = line_of_zeros()
                for j in range(i):
                    other = load_line(vectors, j * stride + c)
                    d0 = multiply_add(repeated(pairs, row0 + j), other, d0)
                    d1 = multiply_add(repeated(pairs, row1 + j), other, d1)
                    d2 = multiply_add(repeated(pairs, row2 + j), other, d2)
                    d3 = multiply_add(repeated(pairs, row3 + j), other, d3)
                for j in range(4):
                    other = load_line(vectors, (i + j) * stride + c)
                    d0 = multiply_add(repeated(block, j), other, d0)
                    d1 = multiply_add(repeated(block, 4 + j), other, d1)
                    d2 = multiply_add(repeated(block, 8 + j), other, d2)
                    d3 = multiply_add(repeated(block, 12 + j), other, d3)
                for j in range(i + 4, num_vectors):
                    other = load_line(vectors, j * stride + c)
                    column = j * (j - 1) // 2 + i
                    d0 = multiply_add(repeated(pairs, column), other, d0)
                    d1 = multiply_add(repeated(pairs, column + 1), other, d1)
                    d2 = multiply_add(repeated(pairs, column + 2), other, d2)
                    d3 = multiply_add(repeated(pairs, column + 3), other, d3)
                store_line(d0, gradients, i * stride + c)
                store_line(d1, gradients, (i + 1) * stride + c)
                store_line(d2, gradients, (i + 2) * stride + c)
                store_line(d3, gradients, (i + 3) * stride + c)
        copy_row(grad_outs, at, start, grad_firsts, s * start)
        add_row(gradients, 0, start, grad_firsts, s * start)
        for i in range(num_lookups):
            add_row(gradients, (i + has_first) * stride, dim, grad_flat, positions[i, s])
