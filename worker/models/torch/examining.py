"""What can only be known of a module by trying it, before a job begins: some samples, no data."""

import logging
from typing import TYPE_CHECKING

import numpy as np

from worker.models.protocol import FloatArray
from worker.models.torch.bfloat16 import bfloat16_instructions
from worker.models.torch.making import Made
from worker.models.user_code import UserCodeError
from worker.spec import ModelSpec

if TYPE_CHECKING:
    from worker.models.torch.module_model import ModuleModel

_log = logging.getLogger(__name__)

_SAMPLES = 8


class _Batch:
    """Ordinary numbers as the inputs of some samples, and where their gradients are written."""

    def __init__(self, spec: ModelSpec, n: int, size: int) -> None:
        draw = np.random.default_rng(spec.seed)
        self.dense = draw.normal(size=(n, spec.num_dense)).astype(np.float32)
        self.pooled = draw.normal(0, 0.1, (n, spec.pooled_width)).astype(np.float32)
        self.labels = (np.arange(n) % 2).astype(np.float32)
        self.grad_params = np.empty(size, np.float32)
        self.grad_pooled = np.empty_like(self.pooled)

    def train(self, model: "ModuleModel", params: FloatArray) -> tuple[float, bytes]:
        """Train it; return the loss and the bits of all gradients."""
        loss = model.train(
            params, self.dense, self.pooled, self.labels, self.grad_params, self.grad_pooled
        )
        return loss, self.grad_params.tobytes() + self.grad_pooled.tobytes()


def examine(model: "ModuleModel", made: Made, spec: ModelSpec) -> bool:
    """Train and predict a few samples, one alone too, with the initial parameters.

    Returns:
        Whether a batch has the logits in training that it has when it is predicted.

    Raises:
        UserCodeError: what the module does can't be trained, or not to the same bits twice.
    """
    where = f"model.class {made.path!r}"
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
    _check_finite(model, batch, first[0], where)
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


def _check_gradients(model: "ModuleModel", where: str) -> None:
    if model.without_gradient:
        names = ", ".join(map(repr, model.without_gradient))
        raise UserCodeError(
            f"{where}: no gradient comes to parameter {names}: the logits do not depend on it, or"
            " by an operation without a gradient (.detach(), torch.no_grad()). Leave it out, or"
            " make it a buffer"
        )


def _check_finite(model: "ModuleModel", batch: _Batch, loss: float, where: str) -> None:
    if not np.isfinite(model.initial_values(model.seed)).all():
        raise UserCodeError(f"{where}: its initial parameters are not all finite")
    if not np.isfinite(model.logits).all():
        raise UserCodeError(
            f"{where}: forward gives logits that are not finite (NaN or infinity) for ordinary"
            " inputs, with the initial parameters"
        )
    if not np.isfinite(loss):
        raise UserCodeError(f"{where}: the loss of ordinary logits is {loss}")
    if not (np.isfinite(batch.grad_params).all() and np.isfinite(batch.grad_pooled).all()):
        raise UserCodeError(
            f"{where}: gradients are not finite (NaN or infinity) for ordinary inputs, though the"
            " loss is; a square root or a norm has none at 0"
        )
