"""The log of a plan that grows: what is written before it is told, and how it is gone on with."""

import json
from pathlib import Path

import pytest

from scheduler.coordinator.growing_plan import Cursor, Extension, PlanState
from scheduler.run.plan_log import PlanLog
from worker.data.arrived import ArrivedFile, PlannedBatch
from worker.data.plan import FilePlan


def extension(first: int, *, closes: bool = False) -> Extension:
    batch = PlannedBatch(((first, 0, 0, 5),), 1.5)
    files = (ArrivedFile(first, first, FilePlan("a", 1, (5,), "x")),)
    return Extension(
        first=first,
        batches=(batch,),
        files=files,
        closes=closes,
        cursor=Cursor(position={"after": "a"}, next_file=first + 1),
    )


def written(log: PlanLog, count: int) -> list[Extension]:
    extensions = [extension(first, closes=first % 3 == 2) for first in range(count)]
    for each in extensions:
        log.append(each)
    return extensions


def plan_after(extensions: list[Extension]) -> PlanState:
    last = extensions[-1]
    return PlanState(planned=last.stop, begins=(last.stop,), cursor=last.cursor)


def test_what_was_written_is_read_back_from_any_batch_on(tmp_path: Path) -> None:
    extensions = written(PlanLog(tmp_path, PlanState(), max_bytes=500), 10)

    log = PlanLog(tmp_path, plan_after(extensions[:4]), max_bytes=500)

    assert log.is_whole
    assert len(list((tmp_path / "plan").iterdir())) > 2
    assert list(log.extensions(4)) == extensions[4:]
    assert list(log.extensions(0)) == extensions


def test_a_line_that_was_cut_off_was_told_to_nobody(tmp_path: Path) -> None:
    extensions = written(PlanLog(tmp_path, PlanState()), 3)
    (file,) = (tmp_path / "plan").iterdir()
    file.write_bytes(file.read_bytes()[:-7])

    log = PlanLog(tmp_path, PlanState())
    assert list(log.extensions(0)) == extensions[:2]
    log.append(extensions[2])

    assert list(PlanLog(tmp_path, PlanState()).extensions(0)) == extensions


@pytest.mark.parametrize("damage", ["gap", "text", "other"])
def test_what_does_not_follow_is_removed(tmp_path: Path, damage: str) -> None:
    extensions = written(PlanLog(tmp_path, PlanState()), 4)
    (file,) = (tmp_path / "plan").iterdir()
    lines = file.read_text().splitlines()
    if damage == "gap":
        del lines[2]
    elif damage == "text":
        lines[2] = lines[2][:50]
    else:
        lines[2] = json.dumps({**json.loads(lines[2]), "files": 3})
    file.write_text("\n".join(lines) + "\n")

    log = PlanLog(tmp_path, plan_after(extensions[:1]))

    assert not log.is_whole
    assert list(log.extensions(0)) == []
    log.append(extensions[1])
    assert list(log.extensions(1)) == extensions[1:2]


def test_files_that_no_checkpoint_needs_go(tmp_path: Path) -> None:
    log = PlanLog(tmp_path, PlanState(), max_bytes=1)
    extensions = written(log, 6)

    log.forget(4)

    assert list(log.extensions(4)) == extensions[4:]
    assert len(list((tmp_path / "plan").iterdir())) == 2
    assert not PlanLog(tmp_path, PlanState()).is_whole, "its beginning is gone"
