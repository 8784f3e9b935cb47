"""Log loss, and the model that it makes of a network."""

import math
import time
from collections.abc import Sequence
from typing import Any, Generic, Protocol, cast

import numpy as np
from numba import njit

from worker.models.layers import RowBuffer
from worker.models.protocol import (
    FloatArray,
    Inputs,
    PackedParameters,
    Parameter,
    SharedInputs,
    parameter_views,
)
from worker.spec import Loss

_NONE = np.empty(0, np.float32)


@njit(cache=True, nogil=True)
def log_loss(logits: FloatArray, labels: FloatArray, grad: FloatArray) -> float:
    """Return the sum of the samples' log losses, in sample order; write its gradient.

    The loss of a sample is log(1 + exp(z)) - y z, computed so that no logit overflows; its
    gradient is sigmoid(z) - y. Both in float64.

    Args:
        logits: float32[n], z.
        labels: float32[n], y.
        grad: float32[n], written.
    """
    total = 0.0
    for i in range(len(logits)):
        z = np.float64(logits[i])
        y = np.float64(labels[i])
        e = math.exp(-abs(z))
        total += max(z, 0.0) - z * y + math.log1p(e)
        grad[i] = (1.0 if z >= 0 else e) / (1.0 + e) - y
    return total


@njit(cache=True, nogil=True)
def weighted_log_loss(
    logits: FloatArray, labels: FloatArray, weights: FloatArray, grad: FloatArray
) -> float:
    """As `log_loss`, each sample's loss and gradient multiplied by its weight.

    Weights of 1 give the same bits. A sample of weight 0 adds nothing, unless its logit is NaN.

    Args:
        weights: float32[n], >= 0.
    """
    total = 0.0
    for i in range(len(logits)):
        z = np.float64(logits[i])
        y = np.float64(labels[i])
        weight = np.float64(weights[i])
        e = math.exp(-abs(z))
        if weight > 0.0:
            total += weight * (max(z, 0.0) - z * y + math.log1p(e))
        grad[i] = weight * ((1.0 if z >= 0 else e) / (1.0 + e) - y)
    return total


@njit(cache=True, nogil=True)
def fake_negative_weighted_loss(
    logits: FloatArray, labels: FloatArray, weights: FloatArray, grad: FloatArray
) -> float:
    """As `weighted_log_loss`, for samples of which each came as a negative first.

    A positive sample has come before, as a negative. So of all that come with inputs of which a
    share p is positive, p / (1 + p) are, and log loss would learn that. Here a positive's loss is
    multiplied by 1 + p and a negative's by (1 - p)(1 + p), with p as the model predicts it, which
    is no part of the gradient; what is minimal then is p itself.

    Args:
        weights: float32[n], >= 0; empty: all are 1.

    Source: Ktena et al. 2019, "Addressing Delayed Feedback for Continuous Training with Neural
        Networks in CTR prediction", fake negative weighted loss.
    """
    total = 0.0
    for i in range(len(logits)):
        z = np.float64(logits[i])
        e = math.exp(-abs(z))
        p = (1.0 if z >= 0 else e) / (1.0 + e)
        not_p = (e if z >= 0 else 1.0) / (1.0 + e)
        weight = np.float64(weights[i]) if len(weights) else 1.0
        loss = max(z, 0.0) + math.log1p(e)
        if labels[i] > 0:
            weight *= 1.0 + p
            loss -= z
            grad[i] = -weight * not_p
        else:
            weight *= not_p * (1.0 + p)
            grad[i] = weight * p
        if weight > 0.0:
            total += weight * loss
    return total


def loss_and_gradient(
    loss: Loss,
    logits: FloatArray,
    labels: FloatArray,
    weights: FloatArray | None,
    grad: FloatArray,
) -> float:
    """Return the sum of the samples' losses, each times its weight; write its gradient.

    Args:
        loss: which one.
        logits, labels: float32[n].
        weights: float32[n], >= 0; None: all are 1.
        grad: float32[n], written.
    """
    if loss == "fake_negative_weighting":
        return fake_negative_weighted_loss(
            logits, labels, _NONE if weights is None else weights, grad
        )
    if weights is None:
        return log_loss(logits, labels, grad)
    return weighted_log_loss(logits, labels, weights, grad)


class Network(Protocol[Inputs]):
    """Logits from dense and pooled inputs, forward and backward. Shapes as in `Model`.

    `weights` and `gradients` are views of the parameters in the order of `parameters`. A network
    may have `reads_vectors` with what goes with it, as a `Model` may, and what a
    `PredictingNetwork` has.
    """

    parameters: tuple[Parameter, ...]

    def forward(
        self, weights: Sequence[FloatArray], dense: FloatArray, pooled: Inputs
    ) -> FloatArray:
        """Return the logits, float32[n, 1], in a buffer that the next call overwrites."""
        ...

    def backward(
        self,
        weights: Sequence[FloatArray],
        dense: FloatArray,
        pooled: Inputs,
        grad_logits: FloatArray,
        gradients: Sequence[FloatArray],
        grad_pooled: FloatArray,
    ) -> None:
        """Write `gradients` and `grad_pooled` for the batch that `forward` saw last.

        grad_logits, float32[n, 1], is read.
        """
        ...


class PredictingNetwork(Protocol[Inputs]):
    """A network whose predictions do not depend on which samples are in a batch, to the last bit.

    One that is no such network predicts by `forward`.
    """

    def packed(self, weights: Sequence[FloatArray]) -> Any:
        """Copy the weights to where `predict` reads them."""
        ...

    def predict(
        self,
        packed: Any,
        dense: FloatArray,
        pooled: Inputs,
        shared: SharedInputs | None = None,
    ) -> FloatArray:
        """Return the logits, float32[n, 1], in a buffer that the next call overwrites.

        Args:
            shared: what runs of samples have in common; it changes no bit.
        """
        ...


class LogLossModel(Generic[Inputs]):
    """A network trained by log loss, or another; satisfies `Model`.

    `forward_ns` is how long the last `train` took to the loss, `logits` are those of its
    samples.
    """

    def __init__(self, network: Network[Inputs], loss: Loss = "log_loss") -> None:
        self._loss = loss
        self.parameters = network.parameters
        self.reads_vectors: bool = getattr(network, "reads_vectors", False)
        self._network: Network[Inputs] = network
        self._grad_logits = RowBuffer(1)
        self.forward_ns = 0
        self.logits = np.empty(0, np.float32)

    def train(
        self,
        params: FloatArray,
        dense: FloatArray,
        pooled: Inputs,
        labels: FloatArray,
        grad_params: FloatArray,
        grad_pooled: FloatArray,
        weights: FloatArray | None = None,
    ) -> float:
        layers = parameter_views(params, self.parameters)
        gradients = parameter_views(grad_params, self.parameters)
        began = time.perf_counter_ns()
        logits = self._network.forward(layers, dense, pooled)
        grad_logits = self._grad_logits.rows(len(labels))
        loss = loss_and_gradient(self._loss, logits[:, 0], labels, weights, grad_logits[:, 0])
        self.forward_ns = time.perf_counter_ns() - began
        self.logits = logits[:, 0].copy()
        self._network.backward(layers, dense, pooled, grad_logits, gradients, grad_pooled)
        return loss

    @property
    def predicts_by_sample(self) -> bool:
        """Whether a sample's logit is the same in any batch, to the last bit."""
        return hasattr(self._network, "packed")

    def packed(self, params: FloatArray) -> FloatArray | PackedParameters:
        """Return what `predict` takes in place of the parameters, to be used for many batches."""
        if not self.predicts_by_sample:
            return params
        network = cast(PredictingNetwork[Inputs], self._network)
        return PackedParameters(network.packed(parameter_views(params, self.parameters)))

    def predict(
        self,
        params: FloatArray | PackedParameters,
        dense: FloatArray,
        pooled: Inputs,
        shared: SharedInputs | None = None,
    ) -> FloatArray:
        packed = self.packed(params) if isinstance(params, np.ndarray) else params
        if isinstance(packed, PackedParameters):
            network = cast(PredictingNetwork[Inputs], self._network)
            return network.predict(packed.of_network, dense, pooled, shared)[:, 0].copy()
        weights = parameter_views(packed, self.parameters)
        return self._network.forward(weights, dense, pooled)[:, 0].copy()
