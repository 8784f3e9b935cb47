"""Models written in PyTorch, the user's own and ours; nothing here is imported without torch.

`model.type: torch` names a class; `module_model` makes a `worker.models.Model` of it.
"""

from dataclasses import dataclass
from importlib.util import find_spec


@dataclass(frozen=True, slots=True)
class ModuleInputs:
    """What a module is made for: the first argument of its class.

    Args:
        num_dense: columns of the dense features, in the order of the job file.
        dims: width of the pooled vector of each sparse feature, by its name, in that order.
    """

    num_dense: int
    dims: dict[str, int]

    @property
    def width(self) -> int:
        """Columns of all inputs side by side."""
        return self.num_dense + sum(self.dims.values())


def require_torch() -> None:
    """Raise ValueError where PyTorch is not installed; does not load it."""
    if find_spec("torch") is None:
        raise ValueError("model.type torch needs PyTorch: pip install 'synchromesh[torch]'")
