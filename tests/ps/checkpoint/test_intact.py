"""The newest checkpoint that a job can go on from, and what is said of those passed over."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from ps.checkpoint.files import CheckpointFiles
from ps.checkpoint.intact import newest_intact
from ps.checkpoint.manifest import read_manifest, write_manifest


@pytest.fixture
def run(cut_job: Any, tmp_path: Path) -> Path:
    """full-4, delta-5, delta-6, full-7, delta-8, with zeros before the steps."""
    cut_job.train(3)
    for kind in ("full", "delta", "delta", "full", "delta"):
        cut_job.train()
        path = cut_job.cut(changed_only=kind == "delta")
        assert path.parent == tmp_path
    return tmp_path


def found(run: Path, **options: Any) -> tuple[str | None, list[str]]:
    intact = newest_intact(run, **options)
    newest = None if intact.reader is None else short(intact.reader.directory)
    return newest, [short(passed.path) for passed in intact.passed]


def short(path: Path) -> str:
    kind, step = path.name.split("-")
    return f"{kind}-{int(step)}"


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def test_the_newest_is_taken_and_no_others_are_spoken_of(run: Path) -> None:
    (run / ".partial-full-9-ab").mkdir()
    (run / "full-10").mkdir()  # was never finished
    assert found(run) == ("delta-8", [])
    assert found(run / "nowhere") == (None, [])


def test_what_lies_on_a_damaged_one_goes_with_it(run: Path) -> None:
    truncate(next((run / "full-000000000007").rglob("rows-*")))

    assert found(run) == ("delta-6", ["delta-8", "full-7"])
    (reason, _) = (passed.reason for passed in newest_intact(run).passed)
    assert "full-000000000007/tables/" in reason
    assert "is damaged" in reason
    truncate(run / "full-000000000004" / "manifest.json")
    assert found(run) == (None, ["full-4", "delta-8", "full-7", "delta-6", "delta-5"])


def test_a_manifest_that_can_not_be_read_is_told_where_it_would_have_been_taken(run: Path) -> None:
    truncate(run / "delta-000000000008" / "manifest.json")
    truncate(run / "delta-000000000005" / "manifest.json")

    assert found(run) == ("full-7", ["delta-8"])


def test_contents_are_checked_where_that_is_asked(run: Path) -> None:
    path = next((run / "delta-000000000008").rglob("blocks-*"))
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)

    assert found(run) == ("delta-8", [])
    assert found(run, suspects=[run / "delta-000000000008"]) == ("full-7", ["delta-8"])


def test_a_damaged_base_is_read_once_for_all_that_lie_on_it(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = run / "full-000000000004"
    path = next(base.rglob("blocks-*"))
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    read: list[Path] = []
    verify = CheckpointFiles.verify
    monkeypatch.setattr(CheckpointFiles, "verify", lambda f: (read.append(f.directory), verify(f)))

    skip = [run / f"{name:0>12}" for name in ("full-000000000007", "delta-000000000008")]
    newest = found(run, suspects=[base, run / "delta-000000000006"], skip=skip)

    assert newest == (None, ["delta-6", "delta-5", "full-4"])
    assert read == [run / "delta-000000000006", base]


def test_one_that_another_run_wrote_is_named_and_left(run: Path) -> None:
    manifest, _ = read_manifest(run / "full-000000000007" / "manifest.json")
    write_manifest(run / "full-000000000007", replace(manifest, job={"run": "theirs"}))

    newest, passed = found(run, run_id="ours")

    assert newest == "delta-6"
    assert "full-7" in passed
    reasons = [each.reason for each in newest_intact(run, run_id="ours").passed]
    assert any("is of another run (theirs)" in reason for reason in reasons)


def test_the_later_recovery_epoch_is_the_history_that_holds(run: Path) -> None:
    manifest, _ = read_manifest(run / "full-000000000004" / "manifest.json")
    write_manifest(
        run / "full-000000000004", replace(manifest, recovery_epoch=manifest.recovery_epoch + 1)
    )

    assert found(run) == ("full-4", [])


def test_one_without_the_state_of_training_can_be_passed_over(run: Path) -> None:
    manifest, _ = read_manifest(run / "delta-000000000008" / "manifest.json")
    write_manifest(run / "delta-000000000008", replace(manifest, training={}))

    assert found(run) == ("delta-8", [])
    assert found(run, with_training=True) == ("full-7", ["delta-8"])
