"""A model whose cost is that of reading its input, so that what is measured is the sparse path."""

import numpy as np

from embedding.spec.initial_values import Uniform
from worker.models import Parameter, log_loss, parameter_views
from worker.models.protocol import FloatArray
from worker.spec import ModelSpec


class LinearModel:
    """z = pooled . u."""

    def __init__(self, spec: ModelSpec) -> None:
        self.parameters = (Parameter("pooled", (spec.pooled_width,), Uniform(scale=0.1)),)

    def train(
        self,
        params: FloatArray,
        dense: FloatArray,
        pooled: FloatArray,
        labels: FloatArray,
        grad_params: FloatArray,
        grad_pooled: FloatArray,
    ) -> float:
        (weights,) = parameter_views(params, self.parameters)
        grad_logits = np.empty(len(labels), np.float32)
        loss = log_loss(pooled @ weights, labels, grad_logits)
        np.matmul(grad_logits, pooled, out=grad_params)
        np.multiply(grad_logits[:, np.newaxis], weights, out=grad_pooled)
        return loss

    def predict(self, params: FloatArray, dense: FloatArray, pooled: FloatArray) -> FloatArray:
        (weights,) = parameter_views(params, self.parameters)
        return pooled @ weights
