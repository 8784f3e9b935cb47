"""What the job file says of the number of workers and servers."""

from typing import Any

import pytest

from scheduler.job.config import JobConfig
from scheduler.job.errors import ConfigError


def job(**cluster: Any) -> JobConfig:
    return JobConfig.from_dict(
        {
            "data": {"train": "x", "sparse": ["a"]},
            "model": {"type": "wide_deep"},
            "cluster": cluster,
            "run": {"dir": "run"},
        }
    )


@pytest.mark.parametrize(
    ("cluster", "text"),
    [
        (
            {"workers": 2, "min_workers": 3},
            "cluster.min_workers must be at most cluster.workers (2), got 3",
        ),
        (
            {"workers": 2, "min_workers": 5, "max_workers": 3},
            "cluster.min_workers must be at most cluster.max_workers (3), got 5",
        ),
        (
            {"servers": 2, "max_servers": 1},
            "cluster.max_servers must be at least cluster.servers (2), got 1",
        ),
        ({"scaling": {"keep_gain": 2}}, "cluster.scaling: keep_gain must be above 0 and below 1"),
        ({"scaling": {"windwos": 2}}, "unknown key cluster.scaling.windwos"),
        ({"labels": {"worker": ["spot"]}}, "cluster.labels.worker"),
    ],
)
def test_what_no_job_can_have_is_refused(cluster: dict[str, Any], text: str) -> None:
    with pytest.raises(ConfigError) as error:
        job(**cluster)

    assert text in str(error.value)


def test_servers_stay_as_many_as_they_are_unless_bounds_are_given() -> None:
    assert (job(servers=3).min_servers, job(servers=3).max_servers) == (3, 3)
    assert job(servers=3, min_servers=2, max_servers=5).max_servers == 5
