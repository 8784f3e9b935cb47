"""The GPU of a worker: whether torch can compute on it, and what its numbers depend on."""

import os

import torch

DEVICE = "cuda:0"  # the first of those that Ray lets the process see
# Of the two values with which cuBLAS sums in the same order each time, that of more memory.
_CUBLAS = ("CUBLAS_WORKSPACE_CONFIG", ":4096:8")


class NoGpuError(ValueError):
    """Torch can't compute on a GPU here."""


def gpu_facts() -> dict[str, str]:
    """Return what the numbers of this process's GPU depend on, for its numeric fingerprint.

    Raises:
        NoGpuError: torch is built without CUDA, or finds no GPU.
    """
    require_build()
    _set_before_cuda_begins()
    if not torch.cuda.is_available():
        seen = os.environ.get("CUDA_VISIBLE_DEVICES")
        raise NoGpuError(
            f"cluster.worker_gpus: torch {torch.__version__} finds no GPU that it can compute on"
            f" (CUDA_VISIBLE_DEVICES is {'not set' if seen is None else repr(seen)}); look at"
            " nvidia-smi there: a driver may be missing, or older than CUDA"
            f" {torch.version.cuda} needs"
        )
    return {
        "gpu": torch.cuda.get_device_name(DEVICE),
        "cuda": str(torch.version.cuda),
        "cudnn": str(torch.backends.cudnn.version()),
    }


def require_build() -> None:
    """Raise NoGpuError where torch is built without CUDA."""
    if torch.version.cuda is None:
        raise NoGpuError(
            f"cluster.worker_gpus: torch {torch.__version__} is built without CUDA; install a"
            " build with it (pytorch.org says which), or leave the key out"
        )


def visible_gpus() -> int:
    """Return how many GPUs torch sees."""
    return torch.cuda.device_count() if torch.version.cuda is not None else 0


def prepare(*, tf32: bool) -> None:
    """Have this process compute the same bits each time, in float32 unless `tf32`.

    Raises:
        NoGpuError: as `gpu_facts`.
    """
    gpu_facts()
    torch.backends.cuda.matmul.allow_tf32 = tf32
    torch.backends.cudnn.allow_tf32 = tf32
    torch.backends.cudnn.benchmark = False  # it chooses by what was fastest


def _set_before_cuda_begins() -> None:
    name, value = _CUBLAS
    os.environ.setdefault(name, value)
