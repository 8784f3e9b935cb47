import errno

import pytest
from ray.exceptions import RayTaskError

import scheduler.driver.full_disk
from scheduler.driver.full_disk import is_no_room, once_there_is_room
from scheduler.errors import TrainingError

FULL = OSError(errno.ENOSPC, "No space left on device")


def writes(*failures: Exception) -> tuple[list[str], object]:
    left, done = list(failures), []

    def write() -> str:
        if left:
            raise left.pop(0)
        done.append("written")
        return "written"

    return done, write


def of_a_server(cause: Exception) -> TrainingError:
    """How a server's failure to write comes to the end of a job."""
    try:
        raise TrainingError("a checkpoint could not be written") from RayTaskError("w", "t", cause)
    except TrainingError as error:
        return error


def test_a_full_disk_is_waited_for_and_told_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scheduler.driver.full_disk, "PAUSE_SECONDS", 0.0)
    notes: list[str] = []
    looked: list[int] = []
    done, write = writes(FULL, of_a_server(FULL))

    found = once_there_is_room(
        write,  # type: ignore[arg-type]
        seconds=60.0,
        note=notes.append,
        meanwhile=lambda: looked.append(1),
    )

    assert (found, done) == ("written", ["written"])
    assert notes == [f"{FULL}. The job waits until there is room"]
    assert len(looked) == 2


def test_other_failures_and_a_disk_that_stays_full_are_raised() -> None:
    other = of_a_server(PermissionError(errno.EACCES, "Permission denied"))
    for error, seconds in ((other, 60.0), (FULL, -1.0)):
        _, write = writes(error)
        with pytest.raises(type(error)):
            once_there_is_room(write, seconds=seconds, note=print)  # type: ignore[arg-type]
    assert not is_no_room(other)
