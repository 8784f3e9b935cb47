"""What can only be known of a module by trying it, before a job begins: some samples, no data."""

import logging
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import torch

from worker.models.protocol import FloatArray
from worker.models.sequences import Padded, WithSequences
from worker.models.torch.bfloat16 import bfloat16_instructions
from worker.models.torch.making import Made
from worker.models.user_code import UserCodeError
from worker.spec import Lookup, ModelSpec

if TYPE_CHECKING:
    from worker.models.torch.module_model import ModuleModel

_log = logging.getLogger(__name__)

_SAMPLES = 8
_MANY = 10_000_000  # dense parameters
_LENGTH = 5  # of the longest sequence, where the job gives none
# What a logit may differ by where sequences are filled up further, as a part of the largest one.
_ROUNDING = {"float32": 1e-3, "tf32": 1e-3, "bf16": 0.05}


class _Batch:
    """Ordinary numbers as the inputs of some samples, and where their gradients are written."""

    def __init__(self, spec: ModelSpec, n: int, size: int) -> None:
        draw = np.random.default_rng(spec.seed)
        self.dense = draw.normal(size=(n, spec.num_dense)).astype(np.float32)
        pooled = draw.normal(0, 0.1, (n, spec.pooled_width)).astype(np.float32)
        sequences = [_drawn_sequence(draw, spec.lookups[number], n) for number in spec.sequences]
        self.labels = _labels(spec, n)
        self.grad_params = np.empty(size, np.float32)
        self.pooled: FloatArray | WithSequences = pooled
        self.grad_pooled: FloatArray | WithSequences = np.empty_like(pooled)
        if sequences:
            self.pooled = WithSequences(pooled, tuple(sequences))
            grads = tuple(Padded(np.empty_like(e.vectors), e.lengths) for e in sequences)
            self.grad_pooled = WithSequences(np.empty_like(pooled), grads)

    def train(self, model: "ModuleModel", params: FloatArray) -> tuple[float, bytes]:
        """Train it; return the loss and the bits of all gradients."""
        loss = model.train(
            params, self.dense, self.pooled, self.labels, self.grad_params, self.grad_pooled
        )
        return loss, b"".join(each.tobytes() for each in (self.grad_params, *self.grad_inputs))

    @property
    def grad_inputs(self) -> list[FloatArray]:
        """The gradients of the inputs, as far as they go anywhere."""
        if not isinstance(self.grad_pooled, WithSequences):
            return [self.grad_pooled]
        sequences = self.grad_pooled.sequences
        return [
            self.grad_pooled.pooled,
            *(each.vectors[_mask(each)] for each in sequences),
        ]

    def filled_up_further(self, spec: ModelSpec) -> WithSequences | None:
        """Return the inputs with more zeros behind sequences; None where their length is given."""
        if not isinstance(self.pooled, WithSequences):
            return None
        longer, changed = [], False
        for number, each in zip(spec.sequences, self.pooled.sequences, strict=True):
            more = 0 if spec.lookups[number].length is not None else 2 * each.vectors.shape[1]
            changed |= more > 0
            vectors = np.pad(each.vectors, ((0, 0), (0, more), (0, 0)))
            longer.append(Padded(vectors, each.lengths))
        return WithSequences(self.pooled.pooled, tuple(longer)) if changed else None


def _drawn_sequence(draw: np.random.Generator, lookup: Lookup, n: int) -> Padded:
    """Return sequences of all lengths: none of it, all of it and some between."""
    length = lookup.length or _LENGTH
    lengths = np.arange(n, dtype=np.int64) * length // max(1, n - 1)
    padded = Padded(draw.normal(0, 0.1, (n, length, lookup.dim)).astype(np.float32), lengths)
    padded.vectors[~_mask(padded)] = 0
    return padded


def _mask(padded: Padded) -> npt.NDArray[np.bool_]:
    return np.arange(padded.vectors.shape[1]) < padded.lengths[:, np.newaxis]


def _labels(spec: ModelSpec, n: int) -> FloatArray:
    """Return labels of both classes; of several tasks one sample does not count in all of them."""
    if not spec.tasks:
        return (np.arange(n) % 2).astype(np.float32)
    shape = spec.logits_shape(n)
    labels = ((np.arange(n)[:, np.newaxis] + np.arange(shape[1])) % 2).astype(np.float32)
    if n > 1:
        labels[-1, 1:] = np.nan
    return labels


def examine(model: "ModuleModel", made: Made, spec: ModelSpec) -> bool:
    """Train and predict a few samples, one alone too, with the initial parameters.

    Returns:
        Whether a batch has the logits in training that it has when it is predicted.

    Raises:
        UserCodeError: what the module does can't be trained, or not to the same bits twice.
    """
    where = f"model.class {made.path!r}"
    for text in warnings_of(made.module):
        _log.warning("%s: %s", where, text)
    if made.precision == "bf16" and bfloat16_instructions() == ():
        _log.warning(
            "model.precision is bf16, and the processor of this machine has no instructions for it:"
            " float32 is faster here"
        )
    params = model.initial_values(spec.seed)
    batch = _Batch(spec, _SAMPLES, params.size)
    constants = model.constants.copies()
    first = batch.train(model, params)
    model.constants.check(constants)
    trained = model.logits
    _check_gradients(model, where)
    _check_finite(model, batch, first[0], where, spec)
    predicted = model.predict(params, batch.dense, batch.pooled)
    if not np.array_equal(model.held, params):
        raise UserCodeError(
            f"{where}: forward changes the parameters, which only their optimizer does; compute"
            " what it needs from them each time"
        )
    if not np.isfinite(predicted).all():
        raise UserCodeError(
            f"{where}: forward gives logits that are not finite (NaN or infinity) in prediction"
            " (self.training is False), though it does not in training"
        )
    _check_padding(model, made, batch, predicted, spec)
    again = batch.train(model, params)
    if first != again or not np.array_equal(
        predicted, model.predict(params, batch.dense, batch.pooled)
    ):
        raise UserCodeError(
            f"{where}: the same batch gives other numbers the second time. forward must keep"
            " nothing from batch to batch, and draw random numbers from torch's default generator"
            " alone, in training alone (torch.nn.Dropout does)"
        )
    other = type(model)(spec)
    if not (
        np.array_equal(other.initial_values(spec.seed), params)
        and np.array_equal(other.predict(params, batch.dense, batch.pooled), predicted)
    ):
        raise UserCodeError(
            f"{where}: made a second time it gives other numbers, and every worker makes one."
            " __init__ must draw from torch's default generator alone, which the job's seed sets"
        )
    alone = _Batch(spec, 1, params.size)
    alone.train(model, params)
    model.predict(params, alone.dense, alone.pooled)
    return np.array_equal(trained, predicted)


def warnings_of(module: torch.nn.Module) -> list[str]:
    """Return what of a module belongs into tables, or is much for the dense part of a model."""
    found = []
    for name, each in module.named_modules():
        if isinstance(each, torch.nn.Embedding | torch.nn.EmbeddingBag):
            found.append(
                f"{name} is a torch.nn.{type(each).__name__} of its own, of {each.num_embeddings:,}"
                f" x {each.embedding_dim}: every batch pulls and pushes all of it. Keys of the data"
                " belong into data.sparse, whose tables grow with them; places in a list and the"
                " like may stay"
            )
    size = sum(parameter.numel() for parameter in module.parameters())
    if size > _MANY:
        name, largest = max(module.named_parameters(), key=lambda each: each[1].numel())
        found.append(
            f"it has {size:,} dense parameters, {largest.numel():,} of them in {name}: every batch"
            f" of every worker pulls and pushes all of them, {4 * size / 1e6:,.0f} MB each way"
        )
    return found


def trains_as_it_predicts(model: "ModuleModel", spec: ModelSpec) -> bool:
    """Whether a batch has the logits in training that it has when it is predicted."""
    params = model.initial_values(spec.seed)
    batch = _Batch(spec, _SAMPLES, params.size)
    batch.train(model, params)
    return np.array_equal(model.logits, model.predict(params, batch.dense, batch.pooled))


def _check_gradients(model: "ModuleModel", where: str) -> None:
    if model.without_gradient:
        names = ", ".join(map(repr, model.without_gradient))
        raise UserCodeError(
            f"{where}: no gradient comes to parameter {names}: the logits do not depend on it, or"
            " by an operation without a gradient (.detach(), torch.no_grad()). Leave it out, or"
            " make it a buffer"
        )


def _check_padding(
    model: "ModuleModel", made: Made, batch: _Batch, predicted: FloatArray, spec: ModelSpec
) -> None:
    """Refuse logits that depend on how long the sequences of other samples are."""
    further = batch.filled_up_further(spec)
    if further is None:
        return
    logits = model.predict(model.initial_values(model.seed), batch.dense, further)
    most = _ROUNDING[made.precision] * max(np.abs(predicted).max(), np.abs(logits).max())
    if not np.abs(logits - predicted).max() <= most:
        raise UserCodeError(
            f"model.class {made.path!r}: a sample's logit depends on how far its sequence is filled"
            " up, and so on the longest one of the batch. Leave out what is behind"
            " Sequence.lengths (Sequence.mask says where), or give the feature a max_length, to"
            " which all are filled up"
        )


def _may_be_empty(spec: ModelSpec) -> str:
    return "; a sequence may be empty, and a softmax over no key is NaN" if spec.sequences else ""


def _check_finite(
    model: "ModuleModel", batch: _Batch, loss: float, where: str, spec: ModelSpec
) -> None:
    if not np.isfinite(model.initial_values(model.seed)).all():
        raise UserCodeError(f"{where}: its initial parameters are not all finite")
    if not np.isfinite(model.logits).all():
        raise UserCodeError(
            f"{where}: forward gives logits that are not finite (NaN or infinity) for ordinary"
            f" inputs, with the initial parameters{_may_be_empty(spec)}"
        )
    if not np.isfinite(loss):
        raise UserCodeError(f"{where}: the loss of ordinary logits is {loss}")
    if not all(np.isfinite(each).all() for each in (batch.grad_params, *batch.grad_inputs)):
        raise UserCodeError(
            f"{where}: gradients are not finite (NaN or infinity) for ordinary inputs, though the"
            f" loss is; a square root or a norm has none at 0{_may_be_empty(spec)}"
        )
