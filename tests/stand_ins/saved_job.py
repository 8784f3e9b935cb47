"""A small job in sync that is saved often, to be lost and gone on with: as a job file has it."""

from pathlib import Path
from typing import Any


def saved_job(samples: Path, folder: Path, **sections: dict[str, Any]) -> dict[str, Any]:
    """Return the job.

    Args:
        samples: the folder of the fixture of that name.
        folder: its run directory.
        sections: keys of these sections that it has beside, or in place of, its own.
    """
    job: dict[str, Any] = {
        "seed": 3,
        "data": {
            "train": str(samples / "train-*.parquet"),
            "eval": str(samples / "test.parquet"),
            "dense": ["d1", "d2"],
            "sparse": ["a", "b"],
            "batch_size": 64,
            "epochs": 2,
        },
        "embedding": {"dim": 4},
        "tables": {
            "b": {
                "admission": {"type": "counter", "min_count": 2},
                "eviction": {"steps_to_live": 8, "every_steps": 5},
            }
        },
        "model": {"type": "deepfm", "mlp": [8]},
        "training": {"mode": "sync", "global_batch": 256, "eval_every_steps": 15},
        "cluster": {"workers": 1, "servers": 1},
        "checkpoint": {"every_steps": 4, "full_every": 3, "keep": 2},
        "run": {"dir": str(folder), "progress_every_seconds": 0.2},
    }
    return job | {name: {**job[name], **changes} for name, changes in sections.items()}
