"""What a job says of GPUs: the share that each worker has, and what goes with it."""

from typing import Annotated, Any

from pydantic import BeforeValidator

from scheduler.job.model import ModelConfig


def _share_of_a_gpu(value: Any) -> Any:
    # Ray counts in units of 0.0001, and whole ones beyond 1.
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if is_number and (value == 0 or 0.0001 <= value <= 1):
        return value
    more = "; a worker computes on one GPU: let there be more workers" if is_number else ""
    raise ValueError(
        f"must be 0, 1 or a share between them (0.5: two workers on each GPU), got {value!r}{more}"
    )


Gpus = Annotated[float, BeforeValidator(_share_of_a_gpu)]

# Options of models of torch that say how a GPU computes, and what they are without one.
_WITH_A_GPU: dict[str, tuple[Any, ...]] = {"precision": ("tf32",), "cuda_graphs": (True,)}


def check_gpus(worker_gpus: float, model: ModelConfig) -> None:
    """Refuse GPUs for a model that does not compute on one, and options that need one.

    Raises:
        ValueError: names the key.
    """
    if worker_gpus and model.type != "torch":
        raise ValueError(
            f"cluster.worker_gpus is {worker_gpus:g}, and a model of type {model.type} computes on"
            " the CPU; leave it out, or take model.type torch (docs/torch.md)"
        )
    if model.type != "torch":
        return
    graphs = model.options.get("cuda_graphs", False)
    if not isinstance(graphs, bool):
        raise ValueError(f"model.cuda_graphs must be true or false, got {graphs!r}")
    for name, values in _WITH_A_GPU.items():
        value = model.options.get(name)
        if value in values and not worker_gpus:
            text = str(value).lower()
            raise ValueError(
                f"model.{name}: {text} is for GPUs, and cluster.worker_gpus is 0; leave it out,"
                " or give workers a GPU"
            )
