"""MMoE in PyTorch: experts that all tasks share, and a gate among them for each task.

Source: Ma et al. 2018, "Modeling Task Relationships in Multi-task Learning with Multi-gate
Mixture-of-Experts": f_k(x) = sum_i g_k(x)_i f_i(x) (6), g_k(x) = softmax(W_gk x) (7), and
y_k = h_k(f_k(x)).
"""

from collections.abc import Sequence

import torch
from torch import nn

from worker.models.layers import read_widths
from worker.models.torch import ModuleInputs
from worker.models.torch.experts import Experts, Gate, Towers, check_count, check_inputs
from worker.models.torch.histories import no_sequences


class Mmoe(nn.Module):
    """A logit for each task of the job.

    Args:
        inputs: vectors may differ in dim; x is the dense features and all vectors side by side.
        experts: how many.
        expert_mlp: widths of an expert's layers, at least one.
        tower_mlp: widths of a task's own layers; one more, the logit, follows.

    Raises:
        ValueError: an option is not legal, or the job does not name tasks.
    """

    def __init__(
        self,
        inputs: ModuleInputs,
        experts: int = 4,
        expert_mlp: Sequence[int] = (256, 128),
        tower_mlp: Sequence[int] = (64,),
    ) -> None:
        super().__init__()
        no_sequences(inputs, "mmoe")
        check_inputs(inputs, "mmoe")
        check_count("experts", experts, 1)
        given = {"expert_mlp": expert_mlp, "tower_mlp": tower_mlp}
        widths = read_widths("mmoe", given, dict.fromkeys(given, ()))
        if not widths["expert_mlp"]:
            raise ValueError("model.expert_mlp must have at least one width")
        self.experts = Experts(experts, (inputs.width, *widths["expert_mlp"]))
        self.gates = nn.ModuleList(Gate(inputs.width, experts) for _ in inputs.tasks)
        self.towers = Towers(inputs.tasks, (widths["expert_mlp"][-1], *widths["tower_mlp"]))

    def forward(
        self, dense: torch.Tensor, embeddings: dict[str, torch.Tensor]
    ) -> dict[str, torch.Tensor]:
        """Return the logits of each task, [n]."""
        x = torch.cat([dense, *embeddings.values()], dim=1)
        made = self.experts(x)
        logits: dict[str, torch.Tensor] = self.towers([gate(x, made) for gate in self.gates])
        return logits
