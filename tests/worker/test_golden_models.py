"""A model that an earlier version wrote still scores, and a job goes on from where it was."""

from pathlib import Path

import numpy as np
import pytest

from ps.checkpoint.read import CheckpointReader
from scheduler.coordinator.start import start_from
from worker.data.batch import Bags, Batch
from worker.inference import Predictor

GOLDEN = Path(__file__).parents[1] / "golden" / "checkpoint-1"
BATCH = Batch(
    np.empty(0, np.float32),
    np.array([[0.5, 1.5], [0, 0.25], [2, 1], [1, 0]], np.float32),
    (
        Bags(np.array([-(2**63), 5, 2**63 - 1, 1000])),
        Bags(np.array([1, 2, 3, 199])),
        Bags(np.array([7, 8, 9, 1, 2]), np.array([0, 2, 2, 4, 5])),
    ),
)
LOGITS = [-0.7739754, -0.3833025, -0.9723387, -0.5887721]


def test_a_model_of_the_first_version_scores_as_it_did() -> None:
    predictor = Predictor.from_checkpoint(GOLDEN)

    assert predictor.logits(BATCH).tolist() == pytest.approx(LOGITS, rel=1e-5)
    assert predictor.contract is not None
    assert predictor.contract.keys == {"a": "integer", "b": "integer", "tags": "integer"}


def test_time_goes_on_from_a_checkpoint_of_the_first_version() -> None:
    start = start_from(CheckpointReader(GOLDEN), global_batch=40, init_clock="continue")

    assert (start.step, start.clock.value, start.clock.samples) == (15, 15, 0)
    assert (start.optimizer_steps, start.goes_on) == (15, True)
