"""PLE in PyTorch: experts of each task beside shared ones, kept apart layer after layer.

Source: Tang et al. 2020, "Progressive Layered Extraction (PLE): A Novel Multi-Task Learning (MTL)
Model for Personalized Recommendations". In each extraction network a task's gate chooses among its
own experts and the shared ones, by the task's own input (2-4); the shared gate, by the shared
input, among all of them (section 3.3); the last network has no shared gate. With one network it is
the paper's CGC.
"""

from collections.abc import Sequence

import torch
from torch import nn

from worker.models.layers import read_widths
from worker.models.torch import ModuleInputs
from worker.models.torch.experts import Experts, Gate, Towers, check_count, check_inputs
from worker.models.torch.histories import no_sequences


class Ple(nn.Module):
    """A logit for each task of the job.

    Args:
        inputs: vectors may differ in dim; all inputs side by side are those of the first network,
            of each task and the shared one.
        extractions: how many networks follow one another.
        shared_experts: of each network.
        task_experts: of each network, for each task.
        expert_mlp: widths of an expert's layers, at least one.
        tower_mlp: widths of a task's own layers; one more, the logit, follows.

    Raises:
        ValueError: an option is not legal, or the job does not name tasks.
    """

    def __init__(
        self,
        inputs: ModuleInputs,
        extractions: int = 2,
        shared_experts: int = 2,
        task_experts: int = 2,
        expert_mlp: Sequence[int] = (128,),
        tower_mlp: Sequence[int] = (64,),
    ) -> None:
        super().__init__()
        no_sequences(inputs, "ple")
        check_inputs(inputs, "ple")
        check_count("extractions", extractions, 1)
        check_count("shared_experts", shared_experts, 1)
        check_count("task_experts", task_experts, 1)
        given = {"expert_mlp": expert_mlp, "tower_mlp": tower_mlp}
        widths = read_widths("ple", given, dict.fromkeys(given, ()))
        if not widths["expert_mlp"]:
            raise ValueError("model.expert_mlp must have at least one width")
        layers, width = widths["expert_mlp"], inputs.width
        networks = []
        for number in range(extractions):
            networks.append(
                _Extraction(
                    len(inputs.tasks),
                    (width, *layers),
                    shared=shared_experts,
                    own=task_experts,
                    last=number == extractions - 1,
                )
            )
            width = layers[-1]
        self.extractions = nn.ModuleList(networks)
        self.towers = Towers(inputs.tasks, (width, *widths["tower_mlp"]))

    def forward(
        self, dense: torch.Tensor, embeddings: dict[str, torch.Tensor]
    ) -> dict[str, torch.Tensor]:
        """Return the logits of each task, [n]."""
        shared = torch.cat([dense, *embeddings.values()], dim=1)
        own = [shared] * len(self.towers.towers)
        for extraction in self.extractions:
            own, shared = extraction(own, shared)
        logits: dict[str, torch.Tensor] = self.towers(own)
        return logits


class _Extraction(nn.Module):
    """One extraction network."""

    def __init__(
        self, tasks: int, widths: Sequence[int], *, shared: int, own: int, last: bool
    ) -> None:
        super().__init__()
        self.shared = Experts(shared, widths)
        self.own = nn.ModuleList(Experts(own, widths) for _ in range(tasks))
        self.gates = nn.ModuleList(Gate(widths[0], own + shared) for _ in range(tasks))
        self.shared_gate = None if last else Gate(widths[0], tasks * own + shared)

    def forward(
        self, own: Sequence[torch.Tensor], shared: torch.Tensor
    ) -> tuple[list[torch.Tensor], torch.Tensor]:
        """Return what the next one sees: of each task, [n, width], and shared."""
        of_all = self.shared(shared)
        of_tasks = [experts(x) for experts, x in zip(self.own, own, strict=True)]
        each = zip(self.gates, own, of_tasks, strict=True)
        next_own = [gate(x, [*made, *of_all]) for gate, x, made in each]
        if self.shared_gate is None:
            return next_own, shared
        every = [made for of_task in of_tasks for made in of_task]
        return next_own, self.shared_gate(shared, [*every, *of_all])
