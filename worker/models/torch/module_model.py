"""A `torch.nn.Module` as a model: its parameters in one vector, gradients by autograd."""

import hashlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from typing import Any, Protocol

import numpy as np
import torch

from worker.models.lookup_columns import add_rows, put_columns, take_columns, take_rows
from worker.models.loss import loss_and_gradient
from worker.models.protocol import (
    FloatArray,
    PackedParameters,
    Parameter,
    SampleVectors,
    parameter_views,
)
from worker.models.sequences import WithSequences
from worker.models.task_loss import task_factors, tasks_loss_and_gradient
from worker.models.torch.examining import examine, trains_as_it_predicts
from worker.models.torch.making import Made, check_loss, make_module, seeded
from worker.models.torch.products import made_by
from worker.models.torch.sequences import Sequence as VectorSequence
from worker.models.torch.task_outputs import own_loss, stacked, tasks_without_gradient
from worker.models.user_code import UserCodeError, user_code
from worker.spec import ModelSpec


class Inputs(Protocol):
    """What a module is given of a batch."""

    @property
    def dense(self) -> torch.Tensor: ...

    @property
    def embeddings(self) -> Mapping[str, torch.Tensor | VectorSequence]: ...


class ModuleModel:
    """Makes a `worker.models.Model` of the class that a job names.

    The module is called as `forward(dense, embeddings)`, float32[n, num_dense] and a dict from
    the name of each sparse feature to its pooled vectors, float32[n, dim], or to its `Sequence`; it
    returns the logits, [n]. It may have `loss(logits, labels)`, which returns each sample's loss,
    [n], to be multiplied by weights and summed here; else the loss is the job's. Attributes are
    those that `LogLossModel` has. Without sequences it reads vectors where they lie; a matrix of
    pooled ones will do too.

    In a job of several tasks it returns a dict of the logits of each, and `loss(logits, labels,
    known)` has dicts by task, too; it returns such a dict, of which samples that don't count in a
    task are left out here, or each sample's whole loss, [n]. Arrays of labels and logits are then
    [n, tasks].

    In place of both it may have `batch_loss(dense, embeddings, labels, weights)`, for losses that
    need more than logits: what forward makes on its way, or the other samples of the batch. It
    returns the logits and each sample's loss, [n]; prediction is by `forward`.

    A module takes a batch whole: its operations use `use_threads` threads.

    Attributes:
        constants: the buffers of the module.
        without_gradient: names of the parameters that the batch trained last gave no gradient.

    Raises:
        ValueError: see `make_module`.
    """

    def __init__(self, spec: ModelSpec) -> None:
        self._spec = spec
        self.seed = spec.seed
        self._made = make_module(spec)
        self._module = self._made.module
        self.parameters = tuple(
            Parameter(name, tuple(parameter.shape))
            for name, parameter in zip(self._made.names, self._made.parameters, strict=True)
        )
        self._tensors = self._made.parameters
        self._own = torch.empty(sum(each.size for each in self.parameters))
        self._bound: torch.Tensor | None = None
        self._initial = _flat(self._made)
        self._bind(self._own)
        self._fill(self._initial)
        self._inputs = _Inputs(spec)
        self.reads_vectors = not spec.sequences
        self.constants = Constants(self._made)
        self._loss = _own_loss(self._made, spec, "loss")
        self._batch_loss = _own_loss(self._made, spec, "batch_loss")
        if self._loss is not None and self._batch_loss is not None:
            raise ValueError(
                f"model.class {self._made.path!r} has loss and batch_loss; leave one of them out"
            )
        if self._batch_loss is not None and spec.tasks:
            raise ValueError(
                f"model.class {self._made.path!r} has batch_loss, which is for one label;"
                " data.labels names the labels of several tasks"
            )
        self._threads = 1
        self._batch_id = 0
        self._trains_as_it_predicts: bool | None = None  # not known yet
        self.without_gradient: tuple[str, ...] = ()
        self._logits = np.empty(0, np.float32)
        self.forward_ns = 0

    def use_threads(self, threads: int) -> None:
        """Have batches whole, and divide their work among threads."""
        self._threads = threads

    def begin_batch(self, batch_id: int) -> None:
        """Draw what `train` draws next, such as the masks of dropout, by the seed and this."""
        self._batch_id = batch_id

    def initial_values(self, seed: int) -> FloatArray:
        """Return the initial parameters, float32[P]: torch's own, its generator set to the seed."""
        if seed == self._spec.seed:
            return self._initial.copy()
        return _flat(make_module(replace(self._spec, seed=seed)))

    def examine(self) -> None:
        """Try the module on some samples; raises ValueError where it can't be trained."""
        self._trains_as_it_predicts = True
        self._trains_as_it_predicts = examine(self, self._made, self._spec)

    def state(self, params: FloatArray) -> dict[str, np.ndarray]:
        """Return what `load_state_dict` takes: parameters and the buffers that it has, by name."""
        arrays: dict[str, np.ndarray] = {
            parameter.name: view
            for parameter, view in zip(
                self.parameters, parameter_views(params, self.parameters), strict=True
            )
        }
        held = self._module.state_dict()
        return {name: arrays[name] if name in arrays else held[name].numpy() for name in held}

    def train(
        self,
        params: FloatArray,
        dense: FloatArray,
        pooled: FloatArray | SampleVectors | WithSequences,
        labels: FloatArray,
        grad_params: FloatArray,
        grad_pooled: FloatArray | WithSequences,
        weights: FloatArray | None = None,
    ) -> float:
        if not len(labels):
            grad_params[:] = 0
            return 0.0
        with self._drawing(), deterministic(), self._computing(training=True):
            self._fill(params)
            inputs = self._inputs.of(dense, pooled)
            for tensor in inputs.tensors:
                tensor.requires_grad_()
            began = time.perf_counter_ns()
            with torch.enable_grad():
                logits, losses = self._training_forward(inputs, labels, weights)
                self._check_is_trained(logits)
                loss, gradients = self._loss_and_gradients(
                    logits, losses, labels, weights, [*self._tensors, *inputs.tensors], began
                )
            self.constants.check()
            self._write(gradients, grad_params, pooled, grad_pooled)
        return loss

    def packed(self, params: FloatArray) -> PackedParameters:
        """Return a copy of the parameters that `predict` takes in their place, for many batches."""
        return PackedParameters(torch.tensor(params))

    def predict(
        self,
        params: FloatArray | PackedParameters,
        dense: FloatArray,
        pooled: FloatArray | SampleVectors | WithSequences,
    ) -> FloatArray:
        n = len(dense)
        if not n:
            return np.empty(self._spec.logits_shape(0), np.float32)
        with self._computing(training=False), torch.no_grad():
            if isinstance(params, PackedParameters):
                self._bind(params.of_network)
            else:
                self._fill(params)
            logits = self._forward(self._inputs.of(dense, pooled))
            return np.array(logits.numpy(), np.float32)

    @property
    def logits(self) -> FloatArray:
        """Those of the batch that was trained last; of no use where dropout was in them."""
        if self._trains_as_it_predicts is None:  # a worker has examined nothing
            logits, self._trains_as_it_predicts = self._logits, True
            self._trains_as_it_predicts = trains_as_it_predicts(self, self._spec)
            self._logits = logits
        if not self._trains_as_it_predicts:
            raise AttributeError("a batch has other logits where it is trained")
        return self._logits

    @property
    def held(self) -> FloatArray:
        """What the module has as its parameters now, float32[P]."""
        return _flat(self._made)

    @property
    def _seed_of_batch(self) -> int:
        text = f"{self._spec.seed} {self._batch_id}".encode()
        return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little")

    def _drawing(self) -> AbstractContextManager[None]:
        """Have random numbers of a block be those of the job's seed and the batch."""
        return seeded(self._seed_of_batch)

    def _bind(self, flat: torch.Tensor) -> None:
        """Let the module's parameters be views of a vector."""
        if self._bound is flat:
            return
        begin = 0
        for tensor, parameter in zip(self._tensors, self.parameters, strict=True):
            tensor.data = flat[begin : begin + parameter.size].view(parameter.shape)
            begin += parameter.size
        self._bound = flat

    def _fill(self, params: FloatArray) -> None:
        self._bind(self._own)
        np.copyto(self._own.numpy(), params)

    @contextmanager
    def _computing(self, *, training: bool) -> Iterator[None]:
        if torch.get_num_threads() != self._threads:
            torch.set_num_threads(self._threads)
        if self._module.training != training:
            self._module.train(training)
        rounded, kind = self._made.precision == "bf16", self._own.device.type
        products = self._made.products if kind == "cpu" else "torch"
        with (
            made_by(products, self._threads),
            torch.autocast(kind, dtype=torch.bfloat16) if rounded else nullcontext(),
        ):
            yield

    def _forward(self, inputs: Inputs) -> torch.Tensor:
        path, n = self._made.path, len(inputs.dense)
        with user_code(path, "forward"):
            logits = self._module(inputs.dense, dict(inputs.embeddings))
        if self._spec.tasks:
            found = stacked(logits, self._spec.tasks, n, path, "forward", _checked)
            if found.requires_grad:
                self._check_tasks_are_trained(logits)
            return found
        return _checked(logits, n, path, "forward", "the logits").float()

    def _check_is_trained(self, logits: torch.Tensor) -> None:
        if not logits.requires_grad:
            raise UserCodeError(
                f"model.class {self._made.path!r}: the logits depend neither on parameters"
                " nor on embeddings; forward must not use .detach() or torch.no_grad()"
            )

    def _check_tasks_are_trained(self, logits: dict[str, torch.Tensor]) -> None:
        for name in tasks_without_gradient(logits):
            raise UserCodeError(
                f"model.class {self._made.path!r}: the logits of task {name!r} depend neither on"
                " parameters nor on embeddings; forward must not use .detach() or torch.no_grad()"
            )

    def _training_forward(
        self, inputs: "_Inputs", labels: FloatArray, weights: FloatArray | None
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Return the logits and, where `batch_loss` gives them, each sample's loss."""
        if self._batch_loss is None:
            return self._forward(inputs), None
        given = torch.ones(len(labels)) if weights is None else torch.tensor(weights)
        return self._own_batch_loss(inputs, torch.tensor(labels), given)

    def _own_batch_loss(
        self, inputs: Inputs, labels: torch.Tensor, weights: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return what `batch_loss` gives: the logits and each sample's loss, [n]."""
        assert self._batch_loss is not None, "the module has one"
        path, n = self._made.path, len(labels)
        with user_code(path, "batch_loss"):
            found = self._batch_loss(inputs.dense, dict(inputs.embeddings), labels, weights)
        if not isinstance(found, tuple) or len(found) != 2:
            raise UserCodeError(
                f"model.class {path!r}: batch_loss must return two tensors, the logits and each"
                f" sample's loss, got {found!r:.200}"
            )
        logits = _checked(found[0], n, path, "batch_loss", "the logits").float()
        return logits, _checked(found[1], n, path, "batch_loss", "each sample's loss").float()

    def _loss_and_gradients(
        self,
        logits: torch.Tensor,
        losses: torch.Tensor | None,
        labels: FloatArray,
        weights: FloatArray | None,
        of: list[torch.Tensor],
        began: int,
    ) -> tuple[float, Sequence[torch.Tensor | None]]:
        """Return the sum of losses, and its gradients with respect to tensors; note the logits."""
        self._logits = np.array(logits.detach().numpy(), np.float32)
        tasks = self._spec.tasks
        factors = task_factors(labels, self._spec.task_weights, weights) if tasks else None
        if self._loss is None and losses is None:
            of_logits = np.empty_like(self._logits)
            name = self._spec.loss
            if factors is not None:
                loss = tasks_loss_and_gradient(name, self._logits, labels, factors, of_logits)
            else:
                loss = loss_and_gradient(name, self._logits, labels, weights, of_logits)
            self.forward_ns = time.perf_counter_ns() - began
            return loss, self._gradients(logits, of, torch.tensor(of_logits), "forward")
        each = torch.ones(len(labels)) if weights is None else torch.tensor(weights)
        if losses is None:
            losses, by_task = self._own_losses(logits, torch.tensor(labels))
            if by_task:
                each = torch.tensor(factors)
        loss = float((losses.detach().double() * each).sum())
        self.forward_ns = time.perf_counter_ns() - began
        return loss, self._gradients(losses, of, each, "loss")

    def _gradients(
        self, results: torch.Tensor, of: list[torch.Tensor], each: torch.Tensor, method: str
    ) -> Sequence[torch.Tensor | None]:
        """Return the gradients of results, of which each counts so much; None: there is none."""
        with user_code(self._made.path, f"the backward pass of {method}"):
            return torch.autograd.grad(results, of, each, allow_unused=True)

    def _own_losses(self, logits: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, bool]:
        """Return what `loss` gives, each sample's, and whether that of each task apart."""
        assert self._loss is not None, "the module has one"
        path, tasks = self._made.path, self._spec.tasks
        with user_code(path, "loss"):
            if tasks:
                found = own_loss(self._loss, logits, labels, tasks)
            else:
                found = self._loss(logits, labels)
        if tasks and isinstance(found, dict):
            return stacked(found, tasks, len(labels), path, "loss", _checked), True
        losses = _checked(found, len(labels), path, "loss", "each sample's loss").float()
        self._check_task_weights()
        return losses, False

    def _check_task_weights(self) -> None:
        """Refuse weights of tasks that have no effect."""
        for name, weight in zip(self._spec.tasks, self._spec.task_weights, strict=True):
            if weight != 1:
                raise UserCodeError(
                    f"data.labels.{name}.weight is {weight:g}, and loss of model.class"
                    f" {self._made.path!r} puts the tasks together itself; leave the weight out, or"
                    " have loss return a dict by task"
                )

    def _check_gradients(self, gradients: Sequence[torch.Tensor | None]) -> None:
        """Note which parameters have none; refuse one that is not dense."""
        names = zip(self.parameters, gradients, strict=False)
        self.without_gradient = tuple(each.name for each, grad in names if grad is None)
        if any(grad is not None and grad.layout != torch.strided for grad in gradients):
            raise UserCodeError(
                f"model.class {self._made.path!r}: a gradient is sparse"
                " (torch.nn.Embedding(sparse=True)): parameters of the module are dense"
            )

    def _write(
        self,
        gradients: Sequence[torch.Tensor | None],
        grad_params: FloatArray,
        pooled: FloatArray | SampleVectors | WithSequences,
        grad_pooled: FloatArray | WithSequences,
    ) -> None:
        self._check_gradients(gradients)
        views = parameter_views(grad_params, self.parameters)
        for view, gradient in zip(views, gradients, strict=False):
            if gradient is None:
                view[...] = 0
            else:
                np.copyto(view, gradient.numpy())
        if isinstance(pooled, SampleVectors):
            assert isinstance(grad_pooled, np.ndarray), "it is laid out as what holds the vectors"
            for positions, gradient in zip(pooled.positions, gradients[len(views) :], strict=True):
                if gradient is not None:
                    add_rows(gradient.contiguous().numpy(), positions, grad_pooled)
            return
        of_sequences = grad_pooled.sequences if isinstance(grad_pooled, WithSequences) else ()
        columns = grad_pooled.pooled if isinstance(grad_pooled, WithSequences) else grad_pooled
        sequences = iter(of_sequences)
        for lookup, gradient in zip(self._spec.lookups, gradients[len(views) :], strict=True):
            if lookup.sequence:
                target = next(sequences).vectors
                np.copyto(target, 0 if gradient is None else gradient.numpy())
            elif gradient is None:
                columns[:, lookup.column : lookup.column + lookup.dim] = 0
            else:
                put_columns(gradient.contiguous().numpy(), columns, lookup.column)


class _Inputs:
    """What a module is given: copies, at places in memory that are the same for any batch.

    Sums of torch may depend on how arrays are aligned. The vectors of a lookup lie together.

    Attributes:
        dense: float32[n, num_dense].
        embeddings: by name float32[n, dim], or a sequence.
        tensors: the vectors of all lookups, in their order.
    """

    def __init__(self, spec: ModelSpec) -> None:
        self._spec = spec
        self._held = torch.empty(0)
        self.dense = torch.empty(0, spec.num_dense)
        self.embeddings: dict[str, torch.Tensor | VectorSequence] = {}
        self.tensors: list[torch.Tensor] = []

    def of(
        self, dense: FloatArray, pooled: FloatArray | SampleVectors | WithSequences
    ) -> "_Inputs":
        """Take the inputs of a batch."""
        n, spec = len(dense), self._spec
        given = pooled.sequences if isinstance(pooled, WithSequences) else ()
        columns = pooled.pooled if isinstance(pooled, WithSequences) else pooled
        sequences = iter(given)
        size = n * (spec.num_dense + spec.pooled_width) + sum(each.vectors.size for each in given)
        if self._held.numel() < size:
            self._held = torch.empty(size)
        begin = n * spec.num_dense
        self.dense = self._held[:begin].view(n, spec.num_dense)
        np.copyto(self.dense.numpy(), dense)
        self.embeddings, self.tensors = {}, []
        for at, (name, lookup) in enumerate(zip(spec.lookup_names, spec.lookups, strict=True)):
            if lookup.sequence:
                padded = next(sequences)
                end = begin + padded.vectors.size
                vectors = self._held[begin:end].view(padded.vectors.shape)
                np.copyto(vectors.numpy(), padded.vectors)
                self.embeddings[name] = VectorSequence(vectors, torch.tensor(padded.lengths))
            else:
                end = begin + n * lookup.dim
                vectors = self._held[begin:end].view(n, lookup.dim)
                if isinstance(columns, SampleVectors):
                    take_rows(columns.flat, columns.positions[at], vectors.numpy())
                else:
                    take_columns(columns, lookup.column, vectors.numpy())
                self.embeddings[name] = vectors
            self.tensors.append(vectors)
            begin = end
        return self


class Constants:
    """The buffers of a module, which must stay as they are."""

    def __init__(self, made: Made) -> None:
        self._path = made.path
        self._seen = [
            (owner, name, tensor, tensor._version, f"{prefix}.{name}" if prefix else name)
            for prefix, owner in made.module.named_modules()
            for name, tensor in owner._buffers.items()
            if tensor is not None
        ]

    def copies(self) -> list[torch.Tensor]:
        """Return what they hold: some kernels of torch change one and do not say so."""
        return [tensor.clone() for _, _, tensor, _, _ in self._seen]

    def check(self, copies: Sequence[torch.Tensor] = ()) -> None:
        """Raise UserCodeError where the last batch changed one.

        Args:
            copies: what they held before, if they are to be held against that.
        """
        for at, (owner, name, tensor, version, full_name) in enumerate(self._seen):
            same = not copies or torch.equal(tensor, copies[at])
            if same and owner._buffers.get(name) is tensor and tensor._version == version:
                continue
            raise UserCodeError(
                f"model.class {self._path!r}: training changes buffer {full_name!r} of a"
                f" {type(owner).__name__}, and what one worker keeps of its batches no other one"
                " has. In place of batch norm take torch.nn.LayerNorm; buffers may hold constants"
            )


@contextmanager
def deterministic() -> Iterator[None]:
    """Have torch refuse, within the block, what may give other bits the next time.

    The flag is the process's: within `seeded`, where one thread is.
    """
    before = torch.are_deterministic_algorithms_enabled()
    filling = torch.utils.deterministic.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = False
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)
        torch.utils.deterministic.fill_uninitialized_memory = filling


def _checked(result: Any, n: int, path: str, method: str, what: str) -> torch.Tensor:
    """Return what a method gave if it is a number for each of n samples."""
    if not isinstance(result, torch.Tensor) or not result.is_floating_point():
        found = f"a tensor of {result.dtype}" if isinstance(result, torch.Tensor) else repr(result)
        if isinstance(result, dict):
            found = "a dict, as in jobs of several tasks, whose labels data.labels names"
        raise UserCodeError(
            f"model.class {path!r}: {method} must return {what}, a tensor of floats [n], got"
            f" {found[:200]}"
        )
    if tuple(result.shape) != (n,):
        raise UserCodeError(
            f"model.class {path!r}: {method} must return {what}, [n], and returned"
            f" {list(result.shape)} for n = {n}{_advice(result, n, method)}"
        )
    return result


def _advice(result: torch.Tensor, n: int, method: str) -> str:
    if method == "loss" and not result.shape:
        return "; a loss of torch gives one number for all samples unless reduction='none'"
    if tuple(result.shape) == (n, 1):
        return "; add .squeeze(1)"
    return "; .squeeze() without an axis takes away the samples' axis too" if n == 1 else ""


def _own_loss(made: Made, spec: ModelSpec, name: str) -> Callable[..., Any] | None:
    """Return the module's own loss, if it has one of that name."""
    loss = getattr(made.module, name, None)
    if not callable(loss):
        return None
    check_loss(loss, made.path, name, several=bool(spec.tasks))
    if spec.loss != "log_loss":
        raise ValueError(
            f"training.loss is {spec.loss}, and model.class {made.path!r} has a loss of its own;"
            " leave one of them out"
        )
    return loss


def _flat(made: Made) -> FloatArray:
    """Return a module's parameters side by side."""
    parts = [parameter.detach().numpy().reshape(-1) for parameter in made.parameters]
    return np.concatenate([np.empty(0, np.float32), *parts])
