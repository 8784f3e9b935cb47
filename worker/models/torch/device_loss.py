"""The job's loss where logits are on a device: as `worker.models.loss`, in operations of torch."""

import torch

from worker.spec import Loss


def loss_and_gradient(
    name: Loss, logits: torch.Tensor, labels: torch.Tensor, factors: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the sum of all losses, each times its factor, and its gradient.

    Computed in float64. What has factor 0 adds nothing, unless its logit is NaN.

    Args:
        name: which loss; see `worker.models.loss` for what they are.
        logits: float32[any].
        labels: alike; NaN where the factor is 0.
        factors: alike, >= 0.

    Returns:
        float64[], and float32[any] as the logits.
    """
    z, y, factor = logits.double(), labels.nan_to_num(0.0).double(), factors.double()
    e = torch.exp(-z.abs())
    one = torch.ones_like(e)
    p = torch.where(z >= 0, one, e) / (1 + e)
    losses = z.clamp(min=0) + torch.log1p(e) - z * y
    if name == "fake_negative_weighting":
        not_p = torch.where(z >= 0, e, one) / (1 + e)
        factor = factor * (1 + p) * torch.where(y > 0, one, not_p)
        gradient = factor * torch.where(y > 0, -not_p, p)
    else:
        gradient = factor * (p - y)
    counted = torch.where(factors > 0, factor * losses, torch.zeros_like(losses))
    return counted.sum(), gradient.float()
