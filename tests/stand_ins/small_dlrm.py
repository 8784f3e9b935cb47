"""A small DLRM of two dense and two sparse features on two workers and two servers."""

from pathlib import Path
from typing import Any


def small_dlrm(samples: Path, folder: Path, **sections: dict[str, Any]) -> dict[str, Any]:
    """Return the job, as a job file has it.

    Args:
        samples: the folder of the fixture of that name.
        folder: its run directory.
        sections: keys of these sections that it has beside, or in place of, its own.
    """
    job: dict[str, Any] = {
        "seed": 3,
        "data": {
            "train": str(samples / "train-*.parquet"),
            "dense": ["d1", "d2"],
            "sparse": ["a", "b"],
            "batch_size": 64,
            "epochs": 2,
        },
        "embedding": {"dim": 4},
        "model": {"type": "dlrm", "bottom_mlp": [8], "top_mlp": [8]},
        "training": {"global_batch": 128},
        "cluster": {"workers": 2, "servers": 2},
        "run": {"dir": str(folder)},
    }
    return job | {name: {**job[name], **changes} for name, changes in sections.items()}
