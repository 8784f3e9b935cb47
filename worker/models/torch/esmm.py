"""ESMM in PyTorch: clicks, and conversions after clicks, learnt over all impressions.

Source: Ma et al. 2018, "Entire Space Multi-Task Model: An Effective Approach for Estimating
Post-Click Conversion Rate": pCTCVR = pCTR pCVR (1), with the loss of clicks and of clicks that
convert over all impressions (3); pCVR has no loss of its own. Both networks read the same vectors.
"""

from collections.abc import Sequence

import torch
from torch import nn
from torch.nn.functional import binary_cross_entropy_with_logits

from worker.models.layers import read_widths
from worker.models.torch import ModuleInputs
from worker.models.torch.experts import check_inputs
from worker.models.torch.histories import no_sequences
from worker.models.torch.layers import Layers


class Esmm(nn.Module):
    """The logits of pCTR and pCVR, and where the job has a third task those of pCTCVR.

    Args:
        inputs: vectors may differ in dim. The tasks of the job are, in this order: the click, the
            conversion of a click, and, if there is a third, the conversion of an impression.
        mlp: widths of the layers of either network; one more, the logit, follows.

    Raises:
        ValueError: an option is not legal, or the job has other than two or three tasks.
    """

    def __init__(self, inputs: ModuleInputs, mlp: Sequence[int] = (256, 128)) -> None:
        super().__init__()
        no_sequences(inputs, "esmm")
        check_inputs(inputs, "esmm", least=2)
        if len(inputs.tasks) > 3:
            raise ValueError(
                "esmm has two tasks, the click and the conversion of a click, and perhaps a third,"
                f" the conversion of an impression; data.labels names {', '.join(inputs.tasks)}"
            )
        self._tasks = inputs.tasks
        widths = read_widths("esmm", {"mlp": mlp}, {"mlp": ()})["mlp"]
        self.click = Layers((inputs.width, *widths, 1), relu_last=False)
        self.convert = Layers((inputs.width, *widths, 1), relu_last=False)

    def forward(
        self, dense: torch.Tensor, embeddings: dict[str, torch.Tensor]
    ) -> dict[str, torch.Tensor]:
        """Return the logits of each task, [n]."""
        x = torch.cat([dense, *embeddings.values()], dim=1)
        click, convert = self.click(x).squeeze(1), self.convert(x).squeeze(1)
        logits = (click, convert, of_product(click, convert))
        return dict(zip(self._tasks, logits, strict=False))

    def loss(
        self,
        logits: dict[str, torch.Tensor],
        labels: dict[str, torch.Tensor],
        known: dict[str, torch.Tensor],
    ) -> torch.Tensor:
        """Return each impression's loss, [n]: that of the click and that of click and conversion.

        The second is left out where neither says what it is: the click is not known, or it is
        there and its conversion is not known.
        """
        click, convert = self._tasks[:2]
        both = of_product(logits[click], logits[convert])
        clicked = labels[click] > 0.5
        known_both = known[click] & (known[convert] | ~clicked)
        of_click = _log_losses(logits[click], labels[click])
        of_both = _log_losses(both, labels[click] * labels[convert])
        return known[click] * of_click + known_both * of_both


def of_product(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Return the logit of the product of two probabilities that are given by their logits.

    1 / (sigmoid(a) sigmoid(b)) - 1 = e^-a + e^-b + e^-(a + b), so nothing is rounded to 0 or 1.
    """
    return -torch.logsumexp(torch.stack([-a, -b, -(a + b)]), dim=0)


def _log_losses(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    return binary_cross_entropy_with_logits(logits, labels, reduction="none")
