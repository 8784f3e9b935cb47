"""Forward and backward of one batch: pool the pulled rows, run the model, spread the gradients."""

import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from runtime.fingerprint import check_float_mode
from runtime.free_list import FreeList
from worker.models import (
    BesideModel,
    Model,
    PackedParameters,
    SampleVectors,
    SharedInputs,
    build_model,
    num_parameters,
)
from worker.models.sequences import Padded, WithSequences
from worker.spec import Lookup, ModelSpec
from worker.step.assembling import Vectors, add_gradient, pool_vectors, vectors_of
from worker.step.preparing import Prepared
from worker.step.sequences import Sequences

Float32s = npt.NDArray[np.float32]

Trained = tuple[float, Float32s, Float32s]
"""The sum of a batch's losses, gradients of its rows, and of the dense parameters."""


@dataclass(frozen=True, slots=True)
class Beginning:
    """A batch that a model computes beside its caller, and what is needed to go on with it.

    Args:
        begun: what the model knows it by.
        result: of one that was computed at once.
    """

    prepared: Prepared
    values: Float32s
    padded: dict[int, Padded] = field(default_factory=dict)
    vectors: dict[int, Vectors] = field(default_factory=dict)
    begun: Any = None
    result: Trained | None = None


class Computation:
    """The model of one worker, on a fixed number of threads.

    Every thread takes a fixed part of a batch, and their sums are added in order, so the result
    depends on the number of threads but never on their timing. A model that divides its own work
    (`use_threads`) has batches whole.

    Args:
        spec: of the model.
        threads: compute threads; BLAS itself runs on one.
        any_float_mode: whether to train in an unusual float mode too.
        on_gpu: whether the model computes on this process's GPU.

    What `train` returns stays the caller's until it is given to `give_back`, to be used again.

    `forward_ns` is how long the forward pass of the last training batch took, from pulled rows to
    the loss; 0 where it can't be told from the backward pass.
    """

    def __init__(
        self,
        spec: ModelSpec,
        *,
        threads: int = 1,
        any_float_mode: bool = False,
        on_gpu: bool = False,
    ) -> None:
        self.spec = spec
        self._any_float_mode = any_float_mode
        first: Any = build_model(spec, on_gpu=on_gpu)
        self._beside: BesideModel[Any] | None = first if hasattr(first, "begin") else None
        use_threads = getattr(first, "use_threads", None)
        if use_threads is not None:
            use_threads(threads)
        more = 0 if use_threads is not None else threads - 1
        self._models: list[Model[Any]] = [first, *(build_model(spec) for _ in range(more))]
        self._reads_vectors: bool = getattr(self._models[0], "reads_vectors", False)
        begins = [getattr(model, "begin_batch", None) for model in self._models]
        self._begin_batch: list[Callable[[int], None]] = [each for each in begins if each]
        self._num_parameters = num_parameters(self._models[0])
        self._pool = ThreadPoolExecutor(threads) if threads > 1 else None
        self._sequences = Sequences(spec)
        assert not self._sequences or len(self._models) == 1, "one model takes sequences whole"
        self._groups = lookups_by_tables(spec.lookups)
        self._pooled = np.empty((0, spec.pooled_width), np.float32)
        self._grad_pooled = np.empty_like(self._pooled)
        self._grad_values = FreeList(np.float32)
        self._grad_parameters = FreeList(np.float32)
        self._positions = FreeList(np.int64)
        self._pooled_positions = np.empty((len(spec.lookups), 0), np.int64)
        self.forward_ns = 0

    @property
    def most_begun(self) -> int:
        """How many batches may be begun before the first of them is ended."""
        return 1 if self._beside is None else 2

    def begin(
        self, prepared: Prepared, values: Float32s, parameters: Float32s, batch_id: int = 0
    ) -> Beginning:
        """Begin to train a batch, or train it; arguments as of `train`.

        `prepared` and `values` must stay as they are until `end`.
        """
        if self._beside is None:
            result = self.train(prepared, values, parameters, batch_id)
            return Beginning(prepared, values, result=result)
        if not self._any_float_mode:
            check_float_mode()
        for begin_batch in self._begin_batch:
            begin_batch(batch_id)
        padded = self._sequences.make(prepared)
        pooled, vectors = self._pool_rows(prepared, values, padded)
        inputs = WithSequences(pooled, tuple(padded.values())) if self._sequences else pooled
        begun = self._beside.begin(
            parameters, prepared.dense, inputs, prepared.labels, prepared.weights
        )
        return Beginning(prepared, values, padded, vectors, begun)

    def has_ended(self, beginning: Beginning) -> bool:
        """Whether `end` need not wait for the batch."""
        return self._beside is None or self._beside.has_ended(beginning.begun)

    def await_end(self, beginning: Beginning) -> None:
        """Wait until `end` need not; may be called by another thread."""
        if self._beside is not None:
            self._beside.await_end(beginning.begun)

    def end(self, beginning: Beginning) -> Trained:
        """Return what `train` returns; batches end in the order in which they were begun."""
        if beginning.result is not None:
            return beginning.result
        assert self._beside is not None, "it has begun the batch"
        prepared, padded = beginning.prepared, beginning.padded
        grad_pooled = self._grad_pooled[: prepared.num_samples]
        grad_padded = self._sequences.gradients(padded)
        grads: Any = grad_pooled
        if self._sequences:
            grads = WithSequences(grad_pooled, tuple(grad_padded.values()))
        grad_parameters = self._grad_parameters.take(self._num_parameters)
        loss = self._beside.end(beginning.begun, grad_parameters, grads)
        grad_values = self._spread(
            prepared, beginning.values, beginning.vectors, grad_pooled, grad_padded
        )
        self._sequences.give_back(padded, grad_padded)
        return loss, grad_values, grad_parameters

    def train(
        self, prepared: Prepared, values: Float32s, parameters: Float32s, batch_id: int = 0
    ) -> Trained:
        """Return (sum of losses, gradients of the rows, gradients of the dense parameters).

        A sample's loss is multiplied by its weight, where samples have some.

        Args:
            values: float32, the flat buffer of pulled rows.
            parameters: float32[dense parameters].
            batch_id: of the plan; for models that draw random numbers by it.

        Returns:
            Gradients of the sum of losses: float32 laid out as `values`, and as `parameters`.
        """
        if self._beside is not None:
            return self.end(self.begin(prepared, values, parameters, batch_id))
        for begin_batch in self._begin_batch:
            begin_batch(batch_id)
        if self._in_place(prepared):
            return self._train_in_place(prepared, values, parameters)
        began = time.perf_counter_ns()
        n = prepared.num_samples
        padded = self._sequences.make(prepared)
        pooled, vectors = self._pool_rows(prepared, values, padded)
        pooling_ns = time.perf_counter_ns() - began
        grad_pooled = self._grad_pooled[:n]
        inputs: list[Any] = [self._pooled_inputs(pooled[rows]) for rows in self._parts(n)]
        grads: list[Any] = [grad_pooled[rows] for rows in self._parts(n)]
        if self._reads_vectors:
            grad_pooled[:] = 0
            grads = [grad.reshape(-1) for grad in grads]
        grad_padded = self._sequences.gradients(padded)
        if self._sequences:
            inputs = [WithSequences(pooled, tuple(padded.values()))]
            grads = [WithSequences(grad_pooled, tuple(grad_padded.values()))]
        loss, grad_parameters = self._run_models(prepared, parameters, inputs, grads)
        self._give_positions(inputs)
        if self.forward_ns:
            self.forward_ns += pooling_ns

        grad_values = self._spread(prepared, values, vectors, grad_pooled, grad_padded)
        self._sequences.give_back(padded, grad_padded)
        return loss, grad_values, grad_parameters

    def _spread(
        self,
        prepared: Prepared,
        values: Float32s,
        vectors: dict[int, Vectors],
        grad_pooled: Float32s,
        grad_padded: dict[int, Padded],
    ) -> Float32s:
        """Return the gradients of the rows, of those of what was pooled of them."""
        grad_values = self._zeros(values.size)

        def spread(group: int) -> None:
            for number in self._groups[group]:
                bag, lookup = prepared.bags[number], self.spec.lookups[number]
                grad = grad_padded[number].vectors if lookup.sequence else grad_pooled
                add_gradient(lookup, bag, values, vectors[number], grad, grad_values)

        self._run(spread, len(self._groups))
        return grad_values

    def give_back(self, grad_values: Float32s, grad_parameters: Float32s) -> None:
        """Take the gradients of a batch back; nothing may read them any more."""
        self._grad_values.give(grad_values)
        self._grad_parameters.give(grad_parameters)

    @property
    def predicts_by_sample(self) -> bool:
        """Whether `predict` gives a sample the same logit in any batch, to the last bit."""
        return bool(getattr(self._models[0], "predicts_by_sample", False))

    def packed(self, parameters: Float32s | PackedParameters) -> Float32s | PackedParameters:
        """Return what `predict` takes in place of parameters that many batches are read with."""
        if isinstance(parameters, PackedParameters):
            return parameters
        pack = getattr(self._models[0], "packed", None)
        return parameters if pack is None else pack(parameters)

    def predict(
        self,
        prepared: Prepared,
        values: Float32s,
        parameters: Float32s | PackedParameters,
        shared: SharedInputs | None = None,
    ) -> Float32s:
        """Return the logit of each sample, float32[n]; of several tasks float32[n, tasks].

        Args:
            values: float32, the flat buffer of pulled rows.
            parameters: float32[dense parameters], or what `packed` made of them.
            shared: of samples some of whose lookups have one bag for each run; only where
                `predicts_by_sample`.
        """
        if isinstance(parameters, np.ndarray):
            parameters = self.packed(parameters)
        given: Any = parameters
        parts = self._parts(prepared.num_samples)
        padded: dict[int, Padded] = {}
        inputs: list[Any]
        if self._in_place(prepared):
            inputs = [self._vectors(prepared, values, rows, shared) for rows in parts]
        else:
            padded = self._sequences.make(prepared)
            pooled, _ = self._pool_rows(prepared, values, padded, shared)
            inputs = [self._pooled_inputs(pooled[rows]) for rows in parts]
            if self._sequences:
                inputs = [WithSequences(pooled, tuple(padded.values()))]
        logits = np.empty(self.spec.logits_shape(prepared.num_samples), np.float32)

        def run(part: int) -> None:
            rows = parts[part]
            model: Any = self._models[part]
            alike = () if shared is None else (shared.part(rows),)
            logits[rows] = model.predict(given, prepared.dense[rows], inputs[part], *alike)

        self._run(run, len(parts))
        self._give_positions(inputs)
        self._sequences.give_back(padded, {})
        return logits

    def predict_pooled(
        self,
        dense: Float32s,
        pooled: Float32s,
        parameters: Float32s | PackedParameters,
        shared: SharedInputs | None = None,
    ) -> Float32s:
        """As `predict`, of one thread, where the vectors of the lookups are there already.

        Args:
            dense: float32[n, num_dense], C-contiguous.
            pooled: float32[n, W], C-contiguous; of what is shared only those of first samples of
                runs are read, and the others written.
        """
        given: Any = parameters
        assert not self._sequences, "these are not pooled"
        model: Any = self._models[0]
        inputs: Any = pooled
        if self._reads_vectors:
            inputs = self._vectors_of_pooled(pooled, shared)
        elif shared is not None:
            first_of = shared.firsts[shared.group]
            for lookup, alike in zip(self.spec.lookups, shared.lookups, strict=True):
                if alike:
                    columns = slice(lookup.column, lookup.column + lookup.dim)
                    pooled[:, columns] = pooled[first_of, columns]
        logits: Float32s = model.predict(
            given, dense, inputs, *(() if shared is None else (shared,))
        )
        return logits

    def _vectors_of_pooled(self, pooled: Float32s, shared: SharedInputs | None) -> SampleVectors:
        """Return views; requests of one size often come one after another."""
        n = len(pooled)
        if shared is None and self._pooled_positions.shape[1] == n:
            return SampleVectors(pooled.reshape(-1), self._pooled_positions)
        columns = np.array([lookup.column for lookup in self.spec.lookups], np.int64)
        samples = np.arange(0, pooled.size, pooled.shape[1])
        positions = columns[:, np.newaxis] + samples
        if shared is None:
            self._pooled_positions = positions
        else:
            alike = np.flatnonzero(shared.lookups)
            positions[alike] = columns[alike, np.newaxis] + samples[shared.firsts[shared.group]]
        return SampleVectors(pooled.reshape(-1), positions)

    def trained_logits(
        self, prepared: Prepared, values: Float32s, parameters: Float32s
    ) -> Float32s:
        """Return the logits of the batch that was trained last, as `predict` does.

        They are those of its forward pass, where the model keeps them; else the batch is predicted.
        """
        if not all(hasattr(model, "logits") for model in self._models):
            return self.predict(prepared, values, parameters)
        logits: list[Float32s] = [getattr(model, "logits") for model in self._models]  # noqa: B009
        return np.concatenate(logits)

    def _in_place(self, prepared: Prepared) -> bool:
        """Whether pulled rows are the samples' vectors, and the model can read them as they lie."""
        return self._reads_vectors and all(
            bag.offsets is None and bag.coefficients is None and not lookup.assembled
            for bag, lookup in zip(prepared.bags, self.spec.lookups, strict=True)
        )

    def _train_in_place(
        self, prepared: Prepared, values: Float32s, parameters: Float32s
    ) -> tuple[float, Float32s, Float32s]:
        """As `train`, without pooled vectors: every thread adds to gradients of its own."""
        parts = self._parts(prepared.num_samples)
        inputs = [self._vectors(prepared, values, rows) for rows in parts]
        grads = [self._zeros(values.size) for _ in parts]
        loss, grad_parameters = self._run_models(prepared, parameters, inputs, grads)
        self._give_positions(inputs)
        return loss, _sum_of(grads, self._grad_values), grad_parameters

    def _run_models(
        self,
        prepared: Prepared,
        parameters: Float32s,
        inputs: Sequence[Any],
        grad_inputs: Sequence[Float32s],
    ) -> tuple[float, Float32s]:
        """Train every part of the batch on its thread; return (sum of losses, gradient)."""
        parts = self._parts(prepared.num_samples)
        losses = [0.0] * len(parts)
        grads = [self._grad_parameters.take(self._num_parameters) for _ in parts]

        def run(part: int) -> None:
            if not self._any_float_mode:
                check_float_mode()
            rows = parts[part]
            weights = () if prepared.weights is None else (prepared.weights[rows],)
            losses[part] = self._models[part].train(
                parameters,
                prepared.dense[rows],
                inputs[part],
                prepared.labels[rows],
                grads[part],
                grad_inputs[part],
                *weights,
            )

        self._run(run, len(parts))
        self.forward_ns = getattr(self._models[0], "forward_ns", 0)
        return sum(losses), _sum_of(grads, self._grad_parameters)

    def _vectors(
        self,
        prepared: Prepared,
        values: Float32s,
        rows: slice,
        shared: SharedInputs | None = None,
    ) -> SampleVectors:
        positions = self._take_positions(rows.stop - rows.start)
        for number, bag in enumerate(prepared.bags):
            if shared is not None and shared.lookups[number]:
                np.take(bag.positions[0], shared.group[rows], out=positions[number], mode="clip")
            else:
                positions[number] = bag.positions[0][rows]
        return SampleVectors(values, positions)

    def _pooled_inputs(self, pooled: Float32s) -> Float32s | SampleVectors:
        """Return what the model takes of float32[n, W], C-contiguous."""
        if not self._reads_vectors:
            return pooled
        columns = [lookup.column for lookup in self.spec.lookups]
        return SampleVectors.of_pooled(pooled, columns, self._take_positions(len(pooled)))

    def _take_positions(self, n: int) -> npt.NDArray[np.int64]:
        num_lookups = len(self.spec.lookups)
        return self._positions.take(num_lookups * n).reshape(num_lookups, n)

    def _give_positions(self, inputs: Sequence[Any]) -> None:
        if self._reads_vectors:
            self._positions.give(*(vectors.positions for vectors in inputs))

    def _zeros(self, size: int) -> Float32s:
        grad_values = self._grad_values.take(size)
        grad_values[:] = 0
        return grad_values

    def _pool_rows(
        self,
        prepared: Prepared,
        values: Float32s,
        padded: dict[int, Padded],
        shared: SharedInputs | None = None,
    ) -> tuple[Float32s, dict[int, Vectors]]:
        """Return the pooled input and, by lookup, the vectors that it was pooled from.

        Args:
            padded: the sequences, by lookup; written.
        """
        of_runs = None
        if shared is not None:
            of_runs = np.empty((shared.firsts.size, self.spec.pooled_width), np.float32)
        n = prepared.num_samples
        if len(self._pooled) < n:
            self._pooled = np.empty((n, self.spec.pooled_width), np.float32)
            self._grad_pooled = np.empty_like(self._pooled)
        pooled = self._pooled[:n]
        vectors: dict[int, Vectors] = {}

        def gather(number: int) -> None:
            bag, lookup = prepared.bags[number], self.spec.lookups[number]
            vectors[number] = vectors_of(lookup, bag, values)
            if shared is None or of_runs is None or not shared.lookups[number]:
                target = padded[number].vectors if lookup.sequence else pooled
                pool_vectors(lookup, bag, vectors[number], target)
                return
            pool_vectors(lookup, bag, vectors[number], of_runs)
            columns = slice(lookup.column, lookup.column + lookup.dim)
            pooled[:, columns] = of_runs[:, columns][shared.group]

        self._run(gather, len(self.spec.lookups))
        return pooled, vectors

    def _parts(self, n: int) -> list[slice]:
        count = len(self._models)
        return [slice(n * i // count, n * (i + 1) // count) for i in range(count)]

    def _run(self, task: Callable[[int], None], count: int) -> None:
        if self._pool is None:
            for number in range(count):
                task(number)
        else:
            list(self._pool.map(task, range(count)))


def _sum_of(grads: Sequence[Float32s], free: FreeList[np.float32]) -> Float32s:
    """Add all arrays, in order, to the first of them and give the others back."""
    for grad in grads[1:]:
        grads[0] += grad
    free.give(*grads[1:])
    return grads[0]


def lookups_by_tables(lookups: Sequence[Lookup]) -> list[list[int]]:
    """Return the numbers of the lookups, those together that share a physical table.

    Each list can add to the gradients of its rows while others add to theirs.
    """
    groups: list[tuple[set[str], list[int]]] = []
    for number, lookup in enumerate(lookups):
        tables, numbers = {part.table for part in lookup.physical}, [number]
        for group in [group for group in groups if group[0] & tables]:
            tables |= group[0]
            numbers += group[1]
            groups.remove(group)
        groups.append((tables, sorted(numbers)))
    return [numbers for _, numbers in groups]
