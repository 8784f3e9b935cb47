"""Runs that are followed: on a disk and in a store, over a job's return to an older checkpoint."""

import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import faulty_store
import numpy as np
import pytest
from faulty_store import failing
from served_jobs import SavedModel, some_samples

from runtime.places import place_of
from serving import Model, ServingError
from worker.inference import Predictor, probabilities

SAMPLES = some_samples(np.random.default_rng(77), 300)
STORE = "faulty://bucket/run"


@pytest.fixture
def job(tmp_path: Path) -> SavedModel:
    job = SavedModel("plain", tmp_path / "run")
    job.train(3)
    job.cut(taken=1000.0)
    return job


@pytest.fixture
def store() -> Iterator[None]:
    faulty_store.empty()
    yield
    faulty_store.empty()


def put(checkpoint: Path) -> None:
    """Have a checkpoint in the store, its manifest last."""
    filesystem, root = (place_of(STORE) / checkpoint.name).opened()  # type: ignore[union-attr]
    files = [path for path in checkpoint.rglob("*") if path.is_file()]
    for path in sorted(files, key=lambda path: path.name == "manifest.json"):
        where = f"{root}/{path.relative_to(checkpoint).as_posix()}"
        filesystem.create_dir(where.rpartition("/")[0], recursive=True)
        with filesystem.open_output_stream(where) as stream:
            stream.write(path.read_bytes())


def next_cut(job: SavedModel, **facts: float) -> Path:
    job.train()
    return job.cut(**facts)


def test_the_age_is_that_of_the_cut_and_not_of_a_file(job: SavedModel) -> None:
    with Model.open(job.run) as model:
        assert model.age(now=1007.5) == 7.5
        checkpoint = next_cut(job)  # as of a version that said nothing of it
        os.utime(checkpoint / "manifest.json", (2000.0, 2000.0))
        model.refresh()
        assert model.age(now=2001.0) == 1.0


@pytest.mark.usefixtures("store")
def test_a_run_in_a_store_is_followed(job: SavedModel, tmp_path: Path) -> None:
    put(job.run / "checkpoints" / "full-000000000003")
    with Model.open(STORE, forms=tmp_path / "forms", follow_seconds=0.02) as model:
        newest = next_cut(job)
        put(newest)
        deadline = time.monotonic() + 60
        while model.version.step == 3:
            assert time.monotonic() < deadline, "it follows"
            time.sleep(0.02)
        assert model.version.form.startswith("overlay")
        batch = model.schema.batch_of_columns(SAMPLES)
        expected = probabilities(Predictor.from_checkpoint(newest).logits(batch))
        np.testing.assert_array_equal(model.predict(SAMPLES).values, expected)


@pytest.mark.usefixtures("store")
def test_a_run_whose_job_keeps_its_checkpoints_in_a_store_is_served_from_there(
    job: SavedModel,
) -> None:
    put(job.run / "checkpoints" / "full-000000000003")
    (job.run / "checkpoints").rename(job.run / "elsewhere")
    (job.run / "job.yaml").write_text(f"checkpoint: {{path: '{STORE}'}}\n")
    with Model.open(job.run) as model:
        assert model.version.step == 3
    assert (job.run / "serving").is_dir()


@pytest.mark.usefixtures("store")
def test_what_is_known_of_a_store_is_not_asked_for_again(job: SavedModel, tmp_path: Path) -> None:
    put(job.run / "checkpoints" / "full-000000000003")
    for _ in range(6):
        put(next_cut(job))
    with Model.open(STORE, forms=tmp_path / "forms") as model:
        with failing(0):
            assert model.refresh() is None
            unchanged = faulty_store.CALLS.made
            put(next_cut(job))
            before = faulty_store.CALLS.made
            assert model.refresh() is not None
            first = faulty_store.CALLS.made - before
        for _ in range(6):
            put(next_cut(job))
            model.refresh()
        put(next_cut(job))
        with failing(0):
            assert model.refresh() is not None
            later = faulty_store.CALLS.made
    assert unchanged <= 3, "one list"
    assert later <= first + 2, "as many calls for a delta, however many lie below it"


@pytest.mark.usefixtures("store")
def test_a_store_that_fails_for_a_while_changes_nothing(job: SavedModel, tmp_path: Path) -> None:
    put(job.run / "checkpoints" / "full-000000000003")
    with Model.open(STORE, forms=tmp_path / "forms") as model:
        put(next_cut(job))
        with failing(1, from_there_on=True), pytest.raises(OSError, match="bucket"):
            model.refresh()
        assert model.version.step == 3
        assert model.refresh() is not None
        assert model.refused == {}


@pytest.mark.usefixtures("store")
def test_forms_of_a_store_need_a_folder(job: SavedModel) -> None:
    put(job.run / "checkpoints" / "full-000000000003")
    with pytest.raises(ServingError, match=r"is in a store; say in which folder .*--forms"):
        Model.open(STORE)
    with pytest.raises(ServingError, match="neither a run directory"):
        Model.open("faulty://bucket/nothing")


def test_steps_that_the_job_took_back_are_not_served_any_more(job: SavedModel) -> None:
    with Model.open(job.run, keep_versions=10) as model:
        for _ in range(3):
            next_cut(job)
            model.refresh()
        assert [version.step for version in model.versions] == [3, 4, 5, 6]

        job.epoch, job.histories = 4, [(3, 0), (4, 4)]
        job.shard.step = 4  # as if it had gone back there
        next_cut(job, full=True)
        model.refresh()
        assert [(v.recovery_epoch, v.step) for v in model.versions] == [(3, 3), (3, 4), (4, 5)]
        job.train()
        next_cut(job)
        model.refresh()
        assert [version.step for version in model.versions] == [3, 4, 5, 7]


def test_another_checkpoint_of_a_name_is_seen(job: SavedModel) -> None:
    with Model.open(job.run) as model:
        damaged = next_cut(job)
        (damaged / "manifest.json").write_text("{}")
        assert model.refresh() is None
        shutil.rmtree(damaged)
        assert model.refresh() is None
        job.shard.step = 3
        assert next_cut(job, full=True).name != damaged.name
        (job.run / "checkpoints" / "full-000000000004").rename(damaged)
        assert model.refresh() is not None
        assert model.version.checkpoint == damaged.name
