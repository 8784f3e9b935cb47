"""Models written in PyTorch, the user's own and ours; nothing here is imported without torch.

`model.type: torch` names a class; `module_model` makes a `worker.models.Model` of it.
"""

import json
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path


@dataclass(frozen=True, slots=True)
class ModuleInputs:
    """What a module is made for: the first argument of its class.

    Args:
        num_dense: columns of the dense features, in the order of the job file.
        dims: width of the vectors of each sparse feature, by its name, in that order.
        sequences: those of them that have combiner none, each with its `max_length`, to which all
            are filled up, or None.
        tasks: names of the tasks, in the order of the job file; empty where there is one label.
        dense: names of the dense features, in their order.
    """

    num_dense: int
    dims: dict[str, int]
    sequences: dict[str, int | None] = field(default_factory=dict)
    tasks: tuple[str, ...] = ()
    dense: tuple[str, ...] = ()

    @classmethod
    def of_export(cls, folder: str | Path) -> "ModuleInputs":
        """Return what the module of a folder that `synchromesh export` wrote was made for.

        Raises:
            OSError: the folder has no `export.json`.
            ValueError: it is damaged, or is not of a model of type torch.
        """
        path = Path(folder) / "export.json"
        try:
            model = json.loads(path.read_bytes())["model"]
            kind, lookups = model["type"], model["lookups"]
            inputs = cls(
                num_dense=len(model["dense"]),
                dims={each["feature"]: int(each["dim"]) for each in lookups},
                sequences={
                    each["feature"]: each["max_length"]
                    for each in lookups
                    if each["combiner"] == "none"
                },
                tasks=tuple(model["tasks"]),
                dense=tuple(model["dense"]),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{path} does not say what a model takes: {error!r}") from error
        if kind != "torch":
            raise ValueError(f"{path} is of a model of type {kind!r}, which has no torch module")
        return inputs

    @property
    def pooled(self) -> dict[str, int]:
        """The width of the vector of each feature that is pooled, by its name."""
        return {name: dim for name, dim in self.dims.items() if name not in self.sequences}

    @property
    def width(self) -> int:
        """Columns of all inputs side by side, but for sequences."""
        return self.num_dense + sum(self.pooled.values())


def require_torch() -> None:
    """Raise ValueError where PyTorch is not installed; does not load it."""
    if find_spec("torch") is None:
        raise ValueError("model.type torch needs PyTorch: pip install 'synchromesh[torch]'")
