"""Processes of one role that would compute other bits are found, whenever they come up."""

from typing import Any

import pytest

from scheduler.driver.like_processes import LikeProcesses
from scheduler.errors import TrainingError


def fingerprint(**changes: str) -> dict[str, Any]:
    facts = {"numpy_features": "X86_V2 X86_V3", "float_mode": "usual", **changes}
    return {**facts, "digest": str(facts)}


@pytest.mark.parametrize("role", ["server", "worker"])
def test_a_later_one_with_other_machinery_is_refused_by_what_differs(role: str) -> None:
    like = LikeProcesses(mixed=False)
    like.check(role, 0, fingerprint())
    like.check(role, 1, fingerprint())

    with pytest.raises(TrainingError) as caught:
        like.check(role, 7, fingerprint(numpy_features="X86_V2"))

    assert str(caught.value) == (
        f"{role} 7 would compute other bits than {role} 0: numpy_features is 'X86_V2' and 'X86_V2"
        " X86_V3'. Use like machines and the same libraries, or allow it with"
        " training.mixed_cpus=true"
    )


def test_a_worker_with_another_gpu_is_refused_and_one_with_none() -> None:
    like = LikeProcesses(mixed=False)
    like.check("worker", 0, fingerprint(gpu="NVIDIA L4", cuda="13.0"))
    like.check("worker", 1, fingerprint(gpu="NVIDIA L4", cuda="13.0"))

    with pytest.raises(TrainingError, match="gpu is 'NVIDIA A100' and 'NVIDIA L4'"):
        like.check("worker", 2, fingerprint(gpu="NVIDIA A100", cuda="13.0"))
    with pytest.raises(TrainingError, match="gpu is None and 'NVIDIA L4'; cuda is None and"):
        like.check("worker", 3, fingerprint())


def test_servers_may_run_on_other_machines_than_workers() -> None:
    like = LikeProcesses(mixed=False)
    like.check("server", 0, fingerprint(numpy_features="ASIMD"))
    like.check("worker", 0, fingerprint())


@pytest.mark.parametrize("role", ["server", "worker", "coordinator"])
def test_an_unusual_float_mode_is_refused_in_the_only_process_of_a_role(role: str) -> None:
    like = LikeProcesses(mixed=False)

    with pytest.raises(TrainingError, match=f"{role} 0 starts in an unusual .*: flushed"):
        like.check(role, 0, fingerprint(float_mode="flushed"))


def test_a_job_can_allow_all() -> None:
    like = LikeProcesses(mixed=True)
    like.check("server", 0, fingerprint())
    like.check("server", 1, fingerprint(numpy_features="ASIMD", float_mode="flushed"))


def test_a_run_that_goes_on_elsewhere_is_told_so_once_a_role() -> None:
    told: list[str] = []
    before = {"server": fingerprint(), "worker": fingerprint()}
    like = LikeProcesses(mixed=False, before=before, note=told.append)

    like.check("server", 0, fingerprint(numpy_features="ASIMD"))
    like.check("server", 1, fingerprint(numpy_features="ASIMD"))
    like.check("worker", 0, fingerprint())
    like.check("coordinator", 0, fingerprint())

    assert len(told) == 1
    assert told[0].startswith("servers compute other bits than before the run was lost: numpy_fea")
    assert like.fingerprints["server"] == fingerprint(numpy_features="ASIMD")
