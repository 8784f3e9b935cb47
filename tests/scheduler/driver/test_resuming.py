"""A run that its driver has left is gone on with: the same model, every sample once."""

import json
import os
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
from a_result import RESULT
from held_back import hold_back
from lost_driver import driver_lost
from saved_job import saved_job

from ps.checkpoint.manifest import Parent
from ps.checkpoint.read import CheckpointReader
from scheduler import JobConfig, Result, Trainer
from scheduler.coordinator.status import Status
from scheduler.driver.supervisor import Supervisor
from scheduler.errors import RunDirectoryError
from scheduler.run.directory import checkpoints_of

ROWS = 5000


def job(samples: Path, folder: Path, **sections: Any) -> JobConfig:
    return JobConfig.from_dict(saved_job(samples, folder, **sections))


def steps_of(run: Path) -> list[int]:
    return [int(path.name.split("-")[1]) for path in checkpoints_of(run)]


@pytest.fixture(scope="module")
def undisturbed(
    jobs_in_threads: None, samples: Path, tmp_path_factory: pytest.TempPathFactory
) -> Result:
    return Trainer(job(samples, tmp_path_factory.mktemp("undisturbed") / "run")).fit()


def test_a_run_that_is_lost_twice_has_the_undisturbed_model(
    jobs_in_threads: None,
    samples: Path,
    tmp_path: Path,
    undisturbed: Result,
    capsys: pytest.CaptureFixture[str],
) -> None:
    run = tmp_path / "run"
    with driver_lost(lambda status: status.applied_step >= 10 and steps_of(run) != []):
        Trainer(job(samples, run, run={"resume": "auto"})).fit()
    first = steps_of(run)
    (run / "result.json").unlink(missing_ok=True)
    kept = json.loads((run / "fingerprints.json").read_text())
    kept["server"] |= {"digest": "another", "numpy": "0.1"}
    (run / "fingerprints.json").write_text(json.dumps(kept))
    with driver_lost(lambda status: status.applied_step >= 26 and steps_of(run) != first):
        Trainer(job(samples, run, run={"resume": "auto"}, cluster={"servers": 3})).fit()

    last = Trainer(job(samples, run, run={"resume": "require"}, cluster={"workers": 2})).fit()
    again = Trainer(job(samples, run, run={"resume": "auto"})).fit()

    assert last.metrics["model_digest"] == undisturbed.metrics["model_digest"]
    assert last.metrics["samples_trained"] == 2 * ROWS
    assert last.metrics["global_step"] == undisturbed.metrics["global_step"]
    assert last.metrics["evaluations"] == undisturbed.metrics["evaluations"]
    assert last.metrics["train_loss"] == pytest.approx(undisturbed.metrics["train_loss"])
    assert again.metrics == json.loads((run / "result.json").read_text()) == last.metrics
    assert again.checkpoint == last.checkpoint
    said = capsys.readouterr().err
    assert said.count("servers compute other bits than before the run was lost: numpy is") == 1
    assert said.count("compute other bits") == 1
    assert again.evaluated == last.evaluated
    recoveries = last.metrics["recoveries"]
    assert [each["cause"] for each in recoveries] == ["the driver was lost"] * 2
    assert all(each["from_step"] >= each["to_step"] > 0 for each in recoveries)
    assert last.metrics["redone_steps"] == sum(r["redone_steps"] for r in recoveries)
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [each for line in lines for each in line["recoveries"]] == recoveries
    assert len(list((run / "checkpoints").glob("full-*"))) in (1, 2), "a chain goes on"
    assert not list((run / "checkpoints").glob(".partial-*"))
    assert json.loads((run / "epoch.json").read_text()) == {"recovery_epoch": 2}


def test_the_first_checkpoint_of_a_run_that_goes_on_lies_on_the_one_that_it_goes_on_from(
    jobs_in_threads: None, samples: Path, tmp_path: Path, undisturbed: Result
) -> None:
    run = tmp_path / "run"
    often = {"checkpoint": {"every_steps": 2, "full_every": 1000, "keep": 9}}
    with driver_lost(lambda status: status.applied_step >= 10 and len(steps_of(run)) >= 2):
        Trainer(job(samples, run, **often)).fit()
    before = [CheckpointReader(path) for path in checkpoints_of(run)]

    last = Trainer(job(samples, run, run={"resume": "auto"}, cluster={"servers": 3}, **often)).fit()

    assert last.metrics["model_digest"] == undisturbed.metrics["model_digest"]
    found = [CheckpointReader(path) for path in checkpoints_of(run)]
    first = found[len(before)].manifest
    assert (first.kind, first.recovery_epoch) == ("delta", 1)
    assert first.parent == Parent(before[-1].directory.name, before[-1].seal)
    deltas = [each for each in found if each.manifest.kind == "delta"]
    assert len(deltas[-1].chain) == len(deltas) + 1, "one chain, with all servers' keys"
    deltas[-1].verify()


@pytest.mark.parametrize("mode", ["async", "gba", "auto"])
def test_in_every_mode_each_sample_ends_once(
    jobs_in_threads: None, samples: Path, tmp_path: Path, mode: str
) -> None:
    run = tmp_path / "run"
    settings = {"training": {"mode": mode}, "cluster": {"workers": 2, "servers": 2}}
    with driver_lost(lambda status: status.applied_step >= 9 and steps_of(run) != []):
        Trainer(job(samples, run, **settings)).fit()

    last = Trainer(job(samples, run, run={"resume": "auto"}, **settings)).fit().metrics

    ended = last["samples_trained"] + last["samples_dropped"] + last["samples_skipped"]
    assert ended == 2 * ROWS
    assert last["eval"]["auc"] > 0.7


def test_a_damaged_checkpoint_is_passed_over_and_the_model_is_the_same(
    jobs_in_threads: None, samples: Path, tmp_path: Path, undisturbed: Result
) -> None:
    run = tmp_path / "run"
    with driver_lost(lambda status: len(steps_of(run)) >= 2):
        Trainer(job(samples, run, checkpoint={"keep": 5})).fit()
    newest = checkpoints_of(run)[-1]
    file = next((newest / "tables" / "b").glob("rows-*"))
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 255
    file.write_bytes(bytes(data))

    last = Trainer(job(samples, run, run={"resume": "auto"})).fit()

    assert last.metrics["model_digest"] == undisturbed.metrics["model_digest"]
    assert last.metrics["samples_trained"] == 2 * ROWS


def test_a_run_whose_checkpoint_vanished_is_begun_anew_only_by_auto(
    jobs_in_threads: None, samples: Path, tmp_path: Path, undisturbed: Result
) -> None:
    run = tmp_path / "run"
    with driver_lost(lambda status: status.applied_step >= 2):
        Trainer(job(samples, run, checkpoint={"every_steps": None})).fit()
    shutil.rmtree(run / "checkpoints", ignore_errors=True)

    with pytest.raises(RunDirectoryError, match="before it had written a checkpoint"):
        Trainer(job(samples, run, run={"resume": "require"})).fit()
    last = Trainer(job(samples, run, run={"resume": "auto"})).fit()

    assert last.metrics["model_digest"] == undisturbed.metrics["model_digest"]


def test_a_run_that_is_lost_while_it_evaluates_its_trained_model_is_finished(
    jobs_in_threads: None, samples: Path, tmp_path: Path, undisturbed: Result
) -> None:
    run = tmp_path / "run"
    config = job(samples, run, run={"resume": "auto"}, checkpoint={"every_steps": None})

    def lost(_: Supervisor) -> None:
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Supervisor, "until_evaluated", lost)
        with pytest.raises(KeyboardInterrupt):
            Trainer(config).fit()
    assert steps_of(run) == [undisturbed.metrics["global_step"]]

    last = Trainer(config).fit()

    for figure in ("model_digest", "eval", "evaluations", "samples_trained", "global_step"):
        assert last.metrics[figure] == undisturbed.metrics[figure]


def test_a_signal_to_stop_is_answered_by_a_checkpoint_of_that_step(
    jobs_in_threads: None, samples: Path, tmp_path: Path, undisturbed: Result
) -> None:
    run = tmp_path / "run"
    handler = signal.getsignal(signal.SIGTERM)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    config = job(samples, run, checkpoint={"every_steps": None}, cluster={"workers": 2})
    poll, told = Supervisor.poll, []

    def poll_and_stop(self: Supervisor) -> Status:
        status = poll(self)
        if status.applied_step >= 7 and not told:
            told.append(status.applied_step)
            os.kill(os.getpid(), signal.SIGTERM)
        return status

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Supervisor, "poll", poll_and_stop)
        hold_back(patch, lambda: True, growth=0.001)
        with pytest.raises(KeyboardInterrupt, match="stopped before the end; with") as stopped:
            Trainer(config).fit()
    signal.signal(signal.SIGTERM, handler)
    (step,) = steps_of(run)
    last = Trainer(job(samples, run, run={"resume": "auto"})).fit()

    assert step >= told[0]
    assert f"can go on from step {step}" in str(stopped.value)
    assert last.metrics["model_digest"] == undisturbed.metrics["model_digest"]
    assert last.metrics["samples_trained"] == 2 * ROWS


def test_a_finished_run_whose_directory_has_moved_names_its_checkpoint_where_it_is(
    samples: Path, tmp_path: Path
) -> None:
    run = tmp_path / "here"
    run.mkdir()
    (run / "job.yaml").write_text(job(samples, tmp_path / "there").to_yaml())
    (run / "plan.json").write_text("{}")
    before = str(tmp_path / "there" / "checkpoints" / "full-000000000003")
    (run / "result.json").write_text(json.dumps({**RESULT, "checkpoint": before}))

    result = Trainer(job(samples, run, run={"resume": "auto"})).fit()

    assert result.checkpoint == str(run / "checkpoints" / "full-000000000003")
