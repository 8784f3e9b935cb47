"""What a job's end writes: a result.json of little."""

from typing import Any

RESULT: dict[str, Any] = {
    "checkpoint": "runs/x/checkpoints/full-000000000040",
    "dense_non_finite": 0,
    "eval": None,
    "evaluations": [],
    "global_step": 40,
    "model_digest": "ab",
    "samples_dropped": 0,
    "samples_per_second": 8.0,
    "samples_skipped": 0,
    "samples_trained": 40,
    "skipped_by_reason": {},
    "skipped_files": {},
    "tables": {},
    "train_seconds": 5.0,
}
