"""What the job file says of modes, and what the coordinator is told."""

import pytest
import yaml

from scheduler.job.config import TrainingConfig


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        ("", "reissue"),
        (", stale_weight: {type: inverse}", "drop"),
        (", on_stale: drop", "drop"),
        (", on_stale: reissue", "reissue"),
    ],
)
def test_no_sample_is_left_out_for_coming_late_unless_the_job_wants_it(
    given: str, wanted: str
) -> None:
    config = TrainingConfig.model_validate(yaml.safe_load(f"{{mode: gba{given}}}"))

    assert config.mode_options.on_stale == wanted
