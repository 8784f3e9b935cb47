"""What a run is gone on with: the newest checkpoint that is whole, of the same job and data."""

import json
import logging
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from a_result import RESULT

from embedding.spec.optimizers import Sgd
from embedding.spec.table import TableSpec
from ps.checkpoint.manifest import Manifest, Parent, write_manifest
from ps.checkpoint.write import write_shard
from ps.shard.shard import Shard
from ps.spec import StoreSpec
from scheduler import ConfigError, JobConfig
from scheduler.coordinator.clock import ClockState
from scheduler.coordinator.coordinator_state import CoordinatorState
from scheduler.coordinator.ledger_state import LedgerState
from scheduler.coordinator.mode_control import ModeState
from scheduler.errors import RunDirectoryError
from scheduler.job.specs import training_data
from scheduler.run.directory import RunDirectory, checkpoints_of
from scheduler.run.earlier import EarlierRun, earlier_run
from scheduler.run.recoveries import RecoveryFigures
from scheduler.run.saved_cuts import remove_superseded, saved_cuts
from worker.data.planning import make_plan
from worker.errors import DataError

STORE = StoreSpec(
    tables=(TableSpec(name="C1", dim=2, optimizer=Sgd(learning_rate=0.5)),),
    dense_size=3,
    dense_optimizer=Sgd(learning_rate=0.25),
    num_shards=1,
)


class Job:
    """A job with a file of data and a run directory."""

    def __init__(self, folder: Path) -> None:
        self.data = folder / "train.parquet"
        self.run = folder / "run"
        self.write_data(40)

    def write_data(self, rows: int) -> None:
        columns = {"label": pa.array([0] * rows), "C1": pa.array(range(rows))}
        pq.write_table(pa.table(columns), self.data)

    def config(self, *overrides: str, resume: str = "auto", workers: int = 2) -> JobConfig:
        return JobConfig.from_dict(
            {
                "data": {"train": str(self.data), "sparse": ["C1"], "batch_size": 4},
                "model": {"type": "deepfm", "mlp": [8]},
                "training": {"global_batch": 8, **dict(o.split("=") for o in overrides)},
                "cluster": {"workers": workers},
                "run": {"dir": str(self.run), "resume": resume},
            }
        )

    def begin(self) -> None:
        """Begin the run and leave it as a killed driver does."""
        config = self.config()
        run = RunDirectory(config, least_checkpoint_bytes=0)
        run.write_plans(make_plan(config.data.train, training_data(config)), None)
        run.write_control({"ray_address": "x"})
        run._lease.close()

    def save(self, step: int, *, epoch: int = 0, training: bool = True) -> Path:
        path = self.run / "checkpoints" / f"full-{step:012d}"
        path.mkdir(parents=True)
        shard = Shard(STORE, 0)
        shard.initialize(0, dense=np.zeros(3, np.float32))
        state = CoordinatorState(
            step=step,
            ledger=LedgerState(),
            modes=ModeState(mode="sync", automatic=False),
            clock=ClockState(),
            paused=True,
            num_workers=3,
        )
        manifest = Manifest(
            kind="full",
            step=step,
            recovery_epoch=epoch,
            store=STORE.to_json(),
            model={},
            job={},
            files=tuple(write_shard(path, shard)),
            training=json.loads(json.dumps(state.to_json())) if training else {},
        )
        write_manifest(path, manifest)
        return path


@pytest.fixture
def job(tmp_path: Path) -> Job:
    job = Job(tmp_path)
    job.begin()
    return job


def look(config: JobConfig) -> EarlierRun | None:
    """Look, and let others look."""
    found = earlier_run(config)
    if found is not None:
        found.lease.close()
    return found


def found_step(config: JobConfig) -> int:
    found = look(config)
    assert found is not None
    assert found.cut is not None
    return found.cut.state.step


def test_the_newest_checkpoint_is_gone_on_from_with_the_plan_of_the_run(job: Job) -> None:
    job.save(3)
    job.save(10, epoch=2)

    found = look(job.config(resume="require"))

    assert found is not None
    assert found.cut is not None
    assert (found.cut.state.step, found.cut.state.paused, found.cut.state.num_workers) == (
        10, False, 3
    )  # fmt: skip
    assert found.recovery_epoch == 2
    assert found.plan == make_plan([str(job.data)], training_data(job.config()))
    assert (found.step, found.samples, found.recoveries) == (10, 0, ())
    changed = look(job.config(workers=5))
    assert changed is not None
    assert changed.cut is not None
    assert changed.cut.state.num_workers == 5


def test_how_far_a_run_came_is_read_from_its_metrics_and_its_failure(job: Job) -> None:
    job.save(3)
    told = {"time": 1.0, "cause": "x", "from_step": 5, "to_step": 2, "redone_steps": 3,
            "redone_samples": 24, "seconds": 1.5}  # fmt: skip
    lines = [
        {"global_step": 6, "samples": 48, "recoveries": [told]},
        {"global_step": 7, "samples": "many", "recoveries": []},
        {"global_step": 8, "samples": 64, "recoveries": []},
    ]
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (job.run / "metrics.jsonl").write_text("junk\n" + text + '{"global_step": 9')

    found = look(job.config())
    (job.run / "failure.json").write_text('{"global_step": 11, "applied_samples": 88}')
    later = look(job.config())

    assert found is not None
    assert later is not None
    assert (found.step, found.samples) == (8, 64)
    assert found.recoveries == (RecoveryFigures(**told),)
    assert (later.step, later.samples) == (11, 88)


def test_a_damaged_checkpoint_is_passed_over_with_a_warning(
    job: Job, caplog: pytest.LogCaptureFixture
) -> None:
    job.save(3)
    (job.save(5) / "tables/C1/rows-00000-of-00001.arrow").unlink()
    (job.save(7) / "manifest.json").write_text("{}")
    job.save(9, training=False)

    with caplog.at_level(logging.WARNING):
        assert found_step(job.config()) == 3

    for text in ("full-000000000005", "full-000000000007", "full-000000000009",
                 "An older one is taken"):  # fmt: skip
        assert text in caplog.text


def test_of_many_checkpoints_that_can_t_be_used_the_newest_say_why(job: Job) -> None:
    for step in range(1, 8):
        (job.save(step) / "manifest.json").write_text("{")

    with pytest.raises(RunDirectoryError, match=r"0007 can't.*0006 can't.*; nor can 5 older") as e:
        look(job.config())

    assert "0005" not in str(e.value)


def test_nothing_is_removed_where_no_checkpoint_is_whole(job: Job) -> None:
    (job.save(5) / "manifest.json").write_text("{")

    for resume in ("auto", "require"):
        with pytest.raises(RunDirectoryError, match=r"no checkpoint of .* can be gone on from"):
            look(job.config(resume=resume))
    assert checkpoints_of(job.run)


def test_without_a_checkpoint_auto_begins_anew_and_require_refuses(
    job: Job, tmp_path: Path
) -> None:
    with pytest.raises(RunDirectoryError, match="ended before it had written a checkpoint"):
        look(job.config(resume="require"))
    found = earlier_run(job.config())
    assert found is not None
    assert found.cut is None
    run = RunDirectory(job.config(), least_checkpoint_bytes=0, lease=found.lease)
    run.close()

    assert {path.name for path in job.run.iterdir()} == {".lease.lock", "job.yaml", "run.json"}
    assert look(job.config(resume="never")) is None
    job.run = tmp_path / "none"
    assert look(job.config()) is None
    with pytest.raises(RunDirectoryError, match=r"run.resume is require, and run.dir .* no run"):
        look(job.config(resume="require"))


def test_another_job_other_data_or_a_damaged_plan_are_refused_and_change_nothing(
    job: Job,
) -> None:
    job.save(3)
    plan = (job.run / "plan.json").read_text()
    before = {path: path.read_bytes() for path in job.run.iterdir() if path.is_file()}

    with pytest.raises(ConfigError, match=r"training.mode is 'sync', it was 'async'"):
        look(job.config("mode=sync"))
    job.write_data(41)
    with pytest.raises(DataError, match="changed since it was planned"):
        look(job.config())
    job.write_data(40)
    assert found_step(job.config()) == 3
    assert {path: path.read_bytes() for path in job.run.iterdir() if path.is_file()} == before
    for damaged in (plan[:-30], plan.replace('"batch_size": 4', '"batch_size": 8'), "[]"):
        (job.run / "plan.json").write_text(damaged)
        with pytest.raises(RunDirectoryError, match=r"plan.json is damaged"):
            look(job.config())


def test_a_run_that_ended_has_its_result_and_one_that_runs_is_not_touched(job: Job) -> None:
    job.save(3)
    first = earlier_run(job.config())
    assert first is not None
    with pytest.raises(RunDirectoryError, match="belongs to a job that runs"):
        earlier_run(job.config())
    first.lease.close()

    (job.run / "result.json").write_text(json.dumps(RESULT))
    for resume in ("auto", "require"):
        found = look(job.config(resume=resume))
        assert found is not None
        assert found.result == RESULT
    (job.run / "result.json").write_text("{}")
    with pytest.raises(RunDirectoryError, match=r"result\.json is damaged"):
        earlier_run(job.config(resume="auto"))


def test_a_run_that_is_gone_on_with_keeps_its_lines_and_enters_the_next_epoch(job: Job) -> None:
    job.save(3, epoch=4)
    (job.run / "metrics.jsonl").write_text('{"a": 1}\n{"b"')
    (job.run / "failure.json").write_text("{}")
    leftover = job.run / "checkpoints" / ".partial-full-000000000009-abcd1234"
    leftover.mkdir()
    found = earlier_run(job.config())
    assert found is not None

    run = RunDirectory(
        job.config(), least_checkpoint_bytes=0, lease=found.lease, goes_on=found.recovery_epoch
    )
    run.add_metrics({"c": 2})
    run.close()

    assert run.recovery_epoch == 5
    assert (job.run / "metrics.jsonl").read_text() == '{"a": 1}\n{"c": 2}\n'
    assert not leftover.exists()
    assert not (job.run / "failure.json").exists()
    again = look(job.config())
    assert again is not None
    assert again.recovery_epoch == 5


def test_checkpoints_that_nobody_needs_any_more_are_removed(job: Job) -> None:
    def delta(step: int, parent: str) -> None:
        path = job.run / "checkpoints" / f"delta-{step:012d}"
        path.mkdir()
        lies_on = Parent(f"{parent}", "0" * 64)
        manifest = Manifest(
            kind="delta", step=step, recovery_epoch=0, store={}, model={}, job={}, files=(),
            parent=lies_on,
        )  # fmt: skip
        write_manifest(path, manifest)

    full = {step: job.save(step).name for step in (10, 20, 30)}
    delta(15, full[10])
    delta(25, full[20])
    delta(26, "delta-000000000025")

    damaged = {job.run / "checkpoints" / full[30]}
    assert remove_superseded(job.run, 2, damaged) == []
    gone = remove_superseded(job.run, 2)

    assert [path.name for path in gone] == ["delta-000000000015", full[10]]
    assert [path.name for path in checkpoints_of(job.run)] == [
        full[20], "delta-000000000025", "delta-000000000026", full[30]
    ]  # fmt: skip
    assert remove_superseded(job.run, 2) == []


def test_what_a_later_history_has_written_is_newer_whatever_step_the_one_before_had(
    job: Job,
) -> None:
    for step, epoch in ((20, 0), (40, 0), (30, 1)):
        job.save(step, epoch=epoch)
    (job.run / "checkpoints" / "full-000000000020" / "manifest.json").write_text("{}")

    assert found_step(job.config()) == 30
    assert {path.name for path in remove_superseded(job.run, 1)} == {
        "full-000000000020", "full-000000000040"
    }  # fmt: skip
    assert found_step(job.config()) == 30


def test_what_has_turned_out_to_be_damaged_is_left_out_and_not_told_again(job: Job) -> None:
    older, newer = job.save(8), job.save(16)

    assert [cut.path for cut in saved_cuts(job.run, pytest.fail)] == [newer, older]
    assert [cut.path for cut in saved_cuts(job.run, pytest.fail, without={newer})] == [older]
