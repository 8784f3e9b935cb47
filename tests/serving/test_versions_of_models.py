"""Predictions of every version equal those of its checkpoint, bit for bit."""

import contextlib
import json
import os
import shutil
import signal
import threading
import time
import weakref
from pathlib import Path

import numpy as np
import pytest
from served_jobs import JOBS, SavedModel, some_samples

from serving import Model, ServingError, UnknownVersionError
from serving.calls import Call
from serving.form.making import BaseProgress
from serving.form.opening import Form
from serving.session import Session, SessionOptions
from serving.source import Source
from serving.source_apart import SourceApart
from worker.inference import Predictor, probabilities

SLOW = pytest.mark.slow
SAMPLES = some_samples(np.random.default_rng(77), 300)  # keys that were seen, and others


def expected(model: Model, checkpoint: Path) -> np.ndarray:
    """What `synchromesh predict` would write."""
    batch = model.schema.batch_of_columns(SAMPLES)
    return probabilities(Predictor.from_checkpoint(checkpoint).logits(batch))


# Each takes seconds: two of them, with every kind of admission, are enough for every day.
@pytest.mark.parametrize(
    "name",
    [each if each in ("plain", "dynamic") else pytest.param(each, marks=SLOW) for each in JOBS],
)
def test_every_version_predicts_what_its_checkpoint_does(name: str, tmp_path: Path) -> None:
    job = SavedModel(name, tmp_path / "run")
    job.train(6)
    seen = []
    checkpoint = job.cut()

    told: list[BaseProgress] = []

    with Model.open(tmp_path / "run", keep_versions=10, when_making=told.append) as model:
        made = (0, model.current.form.num_rows[0])
        assert (told[0].rows, told[-1].rows) == made
        assert {(each.checkpoint, each.of) for each in told} == {(checkpoint.name, made[1])}
        for number in range(5):
            assert model.version.checkpoint == checkpoint.name
            seen.append(model.predict(SAMPLES).values)
            np.testing.assert_array_equal(seen[-1], expected(model, checkpoint))
            job.train(2, evict=number % 2 == 1)
            checkpoint = job.cut(full=number == 3)
            assert model.refresh() == model.version

        kinds = [version.form.split("-")[0] for version in model.versions]
        assert kinds == ["base", "overlay", "overlay", "overlay", "base", "overlay"]
        for version, values in zip(model.versions, seen, strict=False):
            assert model.rollback(version.step) == version
            np.testing.assert_array_equal(model.predict(SAMPLES).values, values)
    assert len({values.tobytes() for values in seen}) == len(seen)


@pytest.fixture
def job(tmp_path: Path) -> SavedModel:
    job = SavedModel("plain", tmp_path / "run")
    job.train(3)
    job.cut()
    return job


def next_cut(job: SavedModel) -> Path:
    job.train()
    return job.cut()


def test_a_damaged_delta_is_named_and_what_was_served_stays(job: SavedModel) -> None:
    with Model.open(job.run) as model:
        before = model.predict(SAMPLES)
        delta = next_cut(job)
        rows = next(delta.glob("tables/b/rows-*"))
        data = bytearray(rows.read_bytes())
        data[len(data) // 2] ^= 1
        rows.write_bytes(data)

        assert model.refresh() is None

        assert list(model.refused) == [delta.name]
        assert rows.name in model.refused[delta.name]
        after = model.predict(SAMPLES)
        assert after.version == before.version
        np.testing.assert_array_equal(after.values, before.values)


def test_a_delta_whose_parent_is_missing_is_named_and_a_full_one_after_it_served(
    job: SavedModel,
) -> None:
    with Model.open(job.run) as model:
        missing = next_cut(job)
        delta = next_cut(job)
        shutil.rmtree(missing)
        assert model.refresh() is None
        assert missing.name in model.refused[delta.name]

        job.train()
        full = job.cut(full=True)
        assert model.refresh() is not None
        assert model.version.checkpoint == full.name
        assert model.refused == {}


def test_deltas_that_came_at_once_are_one_version(job: SavedModel) -> None:
    with Model.open(job.run) as model:
        next_cut(job)
        newest = next_cut(job)

        model.refresh()

        assert [version.step for version in model.versions] == [3, 5]
        np.testing.assert_array_equal(model.predict(SAMPLES).values, expected(model, newest))


def test_forms_are_used_again_and_those_of_versions_that_are_not_kept_are_removed(
    job: SavedModel,
) -> None:
    with Model.open(job.run, keep_versions=2) as model:
        for _ in range(3):
            next_cut(job)
            model.refresh()
        model.refresh()  # what threads may have had mapped goes once they have gone over
        forms = {path.name: path.stat().st_ino for path in (job.run / "serving").iterdir()}
        assert len(forms) == 3, "two overlays and their base"
    with Model.open(job.run, keep_versions=2) as model:
        model.predict(SAMPLES)
        assert forms[model.version.form] == os.stat(job.run / "serving" / model.version.form).st_ino


def test_a_damaged_form_is_made_again(job: SavedModel) -> None:
    with Model.open(job.run) as model:
        values = model.predict(SAMPLES).values
        form = job.run / "serving" / model.version.form
    os.truncate(form / "dense", 8)

    with Model.open(job.run) as model:
        np.testing.assert_array_equal(model.predict(SAMPLES).values, values)


def test_an_overlay_that_did_not_come_to_the_disk_is_made_again(job: SavedModel) -> None:
    with Model.open(job.run) as model:
        newest = next_cut(job)
        model.refresh()
        form = job.run / "serving" / model.version.form
        assert form.name.startswith("overlay")
    values = form / "tables" / "b" / "values"
    values.write_bytes(bytes(values.stat().st_size))  # as the power went before it was written

    with Model.open(job.run) as model:
        np.testing.assert_array_equal(model.predict(SAMPLES).values, expected(model, newest))


def test_what_files_of_a_form_hold_can_be_verified(job: SavedModel) -> None:
    with Model.open(job.run) as model:
        form = model.current.form
        form.verify()
        file = form.folder / "tables" / "b" / "values"
        data = bytearray(file.read_bytes())
        data[5] ^= 1
        file.write_bytes(data)
        with pytest.raises(ServingError, match=r"tables/b/values is damaged"):
            form.verify()


def test_large_overlays_are_merged_into_a_new_base_of_the_same_version(
    job: SavedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("serving.model._LEAST_MERGED", 10)
    with Model.open(job.run) as model:
        delta = next_cut(job)
        model.refresh()
        assert model.version.form.startswith("overlay")
        assert model._merged is not None
        model._merged.result()

        model.refresh()

        assert model.version.form.startswith("base")
        assert model.version.checkpoint == delta.name
        np.testing.assert_array_equal(model.predict(SAMPLES).values, expected(model, delta))
        newest = next_cut(job)
        model.refresh()
        assert model.version.base == model.versions[-2].form, "it lies on the new base"
        np.testing.assert_array_equal(model.predict(SAMPLES).values, expected(model, newest))


def test_who_answers_requests_has_forms_made_by_another_process(
    job: SavedModel, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("serving.model.APART_FROM_ROWS", 0)
    monkeypatch.setattr("serving.model._LEAST_MERGED", 10)

    def made_here(*_: object) -> None:
        raise AssertionError("no form is made in this process")

    with Model.open(job.run, keep_versions=1) as model:
        model.follow(3600.0)
        apart = model._source
        assert isinstance(apart, SourceApart)
        for kind in ("make_base", "make_overlay"):
            monkeypatch.setattr(f"serving.source.{kind}", made_here)
        delta = next_cut(job)
        model.refresh()
        assert model.version.form.startswith("overlay")
        np.testing.assert_array_equal(model.predict(SAMPLES).values, expected(model, delta))

        assert model._merged is not None
        model._merged.result()
        model.refresh()
        assert model.version.form.startswith("base")
        np.testing.assert_array_equal(model.predict(SAMPLES).values, expected(model, delta))

        damaged = next_cut(job)
        rows = next(damaged.glob("tables/b/rows-*"))
        rows.write_bytes(rows.read_bytes()[::-1])
        assert model.refresh() is None
        assert list(model.refused) == [damaged.name]
        assert rows.name in model.refused[damaged.name]

        assert apart._process is not None
        apart._process.send_signal(signal.SIGINT)  # as Ctrl-C does with all of a terminal's
        assert model.refresh() is None
        apart._process.kill()
        job.train()
        full = job.cut(full=True)
        with contextlib.suppress(ServingError):  # it says that the process died, or starts another
            model.refresh()
        model.refresh()
        assert model.version.checkpoint == full.name
        model.refresh()
        assert {path.name for path in (job.run / "serving").iterdir()} == {
            model.version.form,
            model._merging,
        }
    assert capfd.readouterr().err == ""
    with pytest.raises(ServingError, match="the server is stopping"):
        apart.base_of(full.name)


def test_who_has_nothing_to_compute_keeps_no_version_that_is_gone(job: SavedModel) -> None:
    with Model.open(job.run, keep_versions=1) as model:
        session = Session(model.current, SessionOptions(name="m"))
        model.when_swapped(session.take)
        answered = threading.Event()
        body = json.dumps({"inputs": {n: a.to_pylist() for n, a in SAMPLES.items()}}).encode()
        session.submit(Call("rows", body, None, time.monotonic() + 60), lambda _: answered.set())
        assert answered.wait(60)
        first = weakref.ref(model.current.tables["a"])
        next_cut(job)
        model.refresh()
        deadline = time.monotonic() + 60
        while first() is not None:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        session.close()


def test_a_merge_that_takes_longer_than_its_version_is_kept_is_what_newer_ones_lie_on(
    job: SavedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("serving.model._LEAST_MERGED", 10)
    made, goes_on = threading.Event(), threading.Event()
    base_of = Source.base_of

    def slow(self: Source, checkpoint: str) -> Path:
        form = base_of(self, checkpoint)
        made.set()
        goes_on.wait(60)
        return form

    with Model.open(job.run, keep_versions=1) as model:
        monkeypatch.setattr(Source, "base_of", slow)
        merged = next_cut(job)
        model.refresh()
        assert made.wait(60)
        for _ in range(2):
            next_cut(job)
            model.refresh()
        goes_on.set()
        assert model._merged is not None
        assert Form(model._merged.result()).manifest.checkpoint == merged.name
        newest = next_cut(job)
        model.refresh()

        assert model.version.base.startswith("base-000000000004"), "the merged one"
        np.testing.assert_array_equal(model.predict(SAMPLES).values, expected(model, newest))


def test_a_rollback_holds_until_it_is_ended(job: SavedModel) -> None:
    with Model.open(job.run) as model:
        next_cut(job)
        model.refresh()
        assert model.rollback().step == 3
        next_cut(job)
        assert model.refresh() is not None
        assert model.version.step == 3
        with pytest.raises(UnknownVersionError, match=r"no version of step 9 is kept.* 3, 4, 5"):
            model.rollback(9)
        assert model.release().step == 5


def test_one_checkpoint_is_served_as_it_is(job: SavedModel, tmp_path: Path) -> None:
    first = job.run / "checkpoints" / "full-000000000003"
    next_cut(job)
    with Model.open(first, forms=tmp_path / "forms") as model:
        assert model.refresh() is None
        assert model.version.step == 3
        np.testing.assert_array_equal(model.predict(SAMPLES).values, expected(model, first))
    assert not (job.run / "serving").exists()


def test_what_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ServingError, match=r"neither a run directory .* nor a checkpoint"):
        Model.open(tmp_path)
    (tmp_path / "job.yaml").write_text("run: {}\n")
    with pytest.raises(ServingError, match=r"has no checkpoint yet; come again"):
        Model.open(tmp_path)
    (tmp_path / "checkpoints").mkdir()
    with pytest.raises(ServingError, match=r"no checkpoint that can be served"):
        Model.open(tmp_path)
