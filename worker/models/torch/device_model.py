"""A module on a GPU: batches are sent, computed and brought back one beside another."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch

from worker.models.lookup_columns import put_columns
from worker.models.protocol import FloatArray, PackedParameters, parameter_views
from worker.models.sequences import WithSequences
from worker.models.task_loss import task_factors
from worker.models.torch.device_loss import loss_and_gradient
from worker.models.torch.gpu import prepare
from worker.models.torch.graphs import Computed, Graphs, graphs_of_cuda
from worker.models.torch.layout import BatchInputs, Layout
from worker.models.torch.module_model import Constants, ModuleModel, deterministic
from worker.models.torch.staging import Room, Staging
from worker.spec import ModelSpec

_OF_LOSS = 2  # values: it is a float64


@dataclass(frozen=True, slots=True)
class Begun:
    """A batch that is under way.

    Args:
        room: None: it has no samples.
        n, size: samples, and values of what comes back.
        present: of each gradient, whether there is one.
    """

    room: Room | None
    n: int
    size: int
    present: tuple[bool, ...]


class DeviceModel(ModuleModel):
    """As `ModuleModel`, computed on a device of its own, the loss too.

    Besides `train`, a batch can be begun and ended apart: `end` of the first may come after `begin`
    of the second, and whoever has begun one may do something else meanwhile.

    Args:
        device: `cuda:0`; with `cpu` everything is done as it is there, for tests.
        overlapped: see `Staging`.
        graphs: which batches are computed by a graph; None: as `model.cuda_graphs` says.
    """

    def __init__(
        self,
        spec: ModelSpec,
        device: str,
        *,
        overlapped: bool = True,
        graphs: Graphs | None = None,
    ) -> None:
        self._device = torch.device(device)
        if self._device.type == "cuda":
            prepare(tf32=spec.options.get("precision") == "tf32")
        super().__init__(spec)
        self.reads_vectors = False  # what is sent lies side by side
        self._module.to(self._device)
        self.constants = Constants(self._made)
        self._own = torch.empty(self._initial.size, device=self._device)
        self._bind(self._own)
        self._staging = Staging(self._device, overlapped=overlapped)
        self._graphs = graphs
        if graphs is None and self._device.type == "cuda" and spec.options.get("cuda_graphs"):
            self._graphs = graphs_of_cuda(self._staging.stream, self._made.path)
        self._layouts: dict[tuple[int, ...], Layout] = {}

    def begin(
        self,
        params: FloatArray,
        dense: FloatArray,
        pooled: FloatArray | WithSequences,
        labels: FloatArray,
        weights: FloatArray | None = None,
    ) -> Begun:
        """Begin to train a batch; arguments as of `train`, which may be written afterwards."""
        n = len(labels)
        if not n:
            return Begun(None, 0, 0, ())
        room = self._staging.take()
        try:
            layout = self._layout(n, pooled)
            factors = None
            if self._spec.tasks:
                factors = task_factors(labels, self._spec.task_weights, weights)
            flat = room.host(layout.size)
            layout.write(flat, params, dense, pooled)
            layout.write_labels(flat, labels, weights, factors)
            self._staging.send(room, layout.size)
            with self._drawing(), deterministic(), self._staging.computing():
                computed = self._computed(layout, room.inputs[: layout.size])
                size = computed.flat.numel()
                room.for_results(size).copy_(computed.flat)
                self._staging.bring_back(room, size)
            self.constants.check()
        except BaseException:
            self._staging.let_go(room)
            raise
        return Begun(room, n, size, computed.present)

    def has_ended(self, begun: Begun) -> bool:
        """Whether `end` would return at once."""
        return begun.room is None or self._staging.has_returned(begun.room)

    def await_end(self, begun: Begun) -> None:
        """Wait until `end` would return at once; may be called by another thread."""
        if begun.room is not None:
            self._staging.wait(begun.room)

    def end(
        self, begun: Begun, grad_params: FloatArray, grad_pooled: FloatArray | WithSequences
    ) -> float:
        """Return the sum of losses of a batch that was begun, and write its gradients."""
        if begun.room is None:
            grad_params[:] = 0
            return 0.0
        self._staging.wait(begun.room)
        values = begun.room.on_host(begun.size)
        loss = float(values[:_OF_LOSS].view(np.float64)[0])
        shape = self._spec.logits_shape(begun.n)
        at = _OF_LOSS + int(np.prod(shape))
        self._logits = np.array(values[_OF_LOSS:at].reshape(shape))
        self._read(values[at:], begun, grad_params, grad_pooled)
        self._staging.give(begun.room)
        return loss

    def train(
        self,
        params: FloatArray,
        dense: FloatArray,
        pooled: FloatArray | WithSequences,  # type: ignore[override]  # it reads no vectors where they lie
        labels: FloatArray,
        grad_params: FloatArray,
        grad_pooled: FloatArray | WithSequences,
        weights: FloatArray | None = None,
    ) -> float:
        begun = self.begin(params, dense, pooled, labels, weights)
        return self.end(begun, grad_params, grad_pooled)

    def packed(self, params: FloatArray) -> PackedParameters:
        """Return the parameters, which must stay as they are: they are sent with each batch."""
        return PackedParameters(params)

    def predict(
        self,
        params: FloatArray | PackedParameters,
        dense: FloatArray,
        pooled: FloatArray | WithSequences,  # type: ignore[override]
    ) -> FloatArray:
        n = len(dense)
        shape = self._spec.logits_shape(n)
        if not n:
            return np.empty(shape, np.float32)
        given = params.of_network if isinstance(params, PackedParameters) else params
        room = self._staging.take()
        try:
            layout = self._layout(n, pooled)
            layout.write(room.host(layout.size), given, dense, pooled)
            self._staging.send(room, layout.size)
            with self._staging.computing(), torch.no_grad():
                inputs = layout.read(room.inputs)
                self._own.copy_(inputs.parameters)
                with self._computing(training=False):
                    logits = self._forward(inputs)
                room.for_results(logits.numel()).copy_(logits.reshape(-1))
                self._staging.bring_back(room, logits.numel())
            self._staging.wait(room)
        except BaseException:
            self._staging.let_go(room)
            raise
        found = room.on_host(int(np.prod(shape))).reshape(shape).copy()
        self._staging.give(room)
        return found

    @contextmanager
    def _drawing(self) -> Iterator[None]:
        """As on the CPU, where a module may draw too; the device's generator is set likewise."""
        with super()._drawing():
            if self._device.type == "cuda":
                torch.cuda.manual_seed(self._seed_of_batch)
            yield

    def _layout(self, n: int, pooled: FloatArray | WithSequences) -> Layout:
        """Return the layout of a batch: there are few, as sizes are those of the plan mostly."""
        sequences = pooled.sequences if isinstance(pooled, WithSequences) else ()
        lengths = tuple(each.vectors.shape[1] for each in sequences)
        key = (n, *lengths)
        if key not in self._layouts:
            if len(self._layouts) >= 64:
                self._layouts.clear()
            self._layouts[key] = Layout(
                self._spec,
                n,
                lengths,
                parameters=self._initial.size,
                on_device=self._device.type == "cuda",
            )
        return self._layouts[key]

    def _computed(self, layout: Layout, inputs: torch.Tensor) -> Computed:
        def step(inputs: torch.Tensor) -> Computed:
            return self._step(layout.read(inputs))

        return step(inputs) if self._graphs is None else self._graphs.run(layout.key, inputs, step)

    def _step(self, given: BatchInputs) -> Computed:
        """Compute a batch: from here on nothing waits for the device.

        Casts of autocast are kept for a block of `_computing`: one for each batch, as parameters
        change, and a graph must make them itself.
        """
        with self._computing(training=True), torch.enable_grad():
            with torch.no_grad():
                self._own.copy_(given.parameters)
            for tensor in given.tensors:
                tensor.requires_grad_()
            logits, loss, gradients = self._losses(given)
        self._check_gradients(gradients)
        parts = [loss.reshape(1).view(torch.float32), logits.detach().reshape(-1)]
        parts += [each.reshape(-1) for each in gradients if each is not None]
        return Computed(torch.cat(parts), tuple(each is not None for each in gradients))

    def _losses(
        self, given: BatchInputs
    ) -> tuple[torch.Tensor, torch.Tensor, Sequence[torch.Tensor | None]]:
        """Return logits, the sum of losses, float64[], and its gradients."""
        losses, each = None, given.weights
        if self._batch_loss is not None:
            logits, losses = self._own_batch_loss(given, given.labels, given.weights)
        else:
            logits = self._forward(given)
        self._check_is_trained(logits)
        if self._loss is not None:
            losses, by_task = self._own_losses(logits, given.labels)
            each = given.factors if by_task else given.weights
        of = [*self._tensors, *given.tensors]
        if losses is None:
            loss, of_logits = loss_and_gradient(
                self._spec.loss, logits.detach(), given.labels, given.factors
            )
            return logits, loss, self._gradients(logits, of, of_logits, "forward")
        loss = (losses.detach().double() * each).sum()
        return logits, loss, self._gradients(losses, of, each, "loss")

    def _read(
        self,
        values: FloatArray,
        begun: Begun,
        grad_params: FloatArray,
        grad_pooled: FloatArray | WithSequences,
    ) -> None:
        """Copy gradients that lie one after another, but for those that there are not."""
        at = 0

        def following(present: bool, shape: Sequence[int]) -> FloatArray | None:
            nonlocal at
            if not present:
                return None
            size = int(np.prod(shape))
            at += size
            return values[at - size : at].reshape(shape)

        views = parameter_views(grad_params, self.parameters)
        for view, present in zip(views, begun.present, strict=False):
            found = following(present, view.shape)
            np.copyto(view, 0 if found is None else found)
        of_sequences = grad_pooled.sequences if isinstance(grad_pooled, WithSequences) else ()
        columns = grad_pooled.pooled if isinstance(grad_pooled, WithSequences) else grad_pooled
        sequences = iter(of_sequences)
        for lookup, present in zip(self._spec.lookups, begun.present[len(views) :], strict=True):
            if lookup.sequence:
                target = next(sequences).vectors
                found = following(present, target.shape)
                np.copyto(target, 0 if found is None else found)
                continue
            found = following(present, (begun.n, lookup.dim))
            if found is None:
                columns[:, lookup.column : lookup.column + lookup.dim] = 0
            else:
                put_columns(found, columns, lookup.column)
