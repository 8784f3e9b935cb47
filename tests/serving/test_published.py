"""Runs that are served from where their job publishes them, over what befalls the connection."""

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from served_jobs import SavedModel, some_samples

from ps.following.publisher import Publisher
from serving import Model, ServingError
from serving.published import PublishedRun
from worker.inference import Predictor, probabilities

TOKEN = "a token of sixteen"
SAMPLES = some_samples(np.random.default_rng(77), 300)


@pytest.fixture
def job(tmp_path: Path) -> SavedModel:
    job = SavedModel("plain", tmp_path / "run")
    job.train(3)
    return job


@pytest.fixture
def publish(job: SavedModel) -> Iterator[Callable[..., Publisher]]:
    """Begin to publish the job's checkpoints."""
    begun: list[Publisher] = []

    def begin(port: int = 0) -> Publisher:
        place = job.run / "checkpoints"
        publisher = Publisher(place, secret=TOKEN.encode(), host="127.0.0.1", port=port)
        begun.append(publisher)
        return publisher

    yield begin
    for each in begun:
        each.close()


def address(publisher: Publisher) -> str:
    return f"tcp://127.0.0.1:{publisher.address[1]}"


def wait_for(model: Model, step: int) -> None:
    deadline = time.monotonic() + 60
    while model.version.step != step:
        assert time.monotonic() < deadline, f"step {step} is served"
        time.sleep(0.02)


def test_what_a_job_publishes_is_served_as_it_comes_and_over_a_lost_connection(
    job: SavedModel,
    publish: Callable[..., Publisher],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("serving.published._LONGEST_PAUSE_SECONDS", 0.2)  # before it tries again
    publisher = publish()
    publisher.readable(job.cut().name)
    with Model.open(
        address(publisher), forms=tmp_path / "here", publish_token=TOKEN, follow_seconds=60.0
    ) as model:
        assert model.version.step == 3
        job.train()
        publisher.readable(job.cut().name)
        wait_for(model, 4)  # long before it would look by itself
        assert model.version.form.startswith("overlay")

        publisher.close()
        job.train()
        missed = job.cut()
        job.train()
        newest = job.cut()
        assert model.predict(SAMPLES).version.step == 4
        again = publish(port=publisher.address[1])
        again.readable(newest.name)
        wait_for(model, 6)
        batch = model.schema.batch_of_columns(SAMPLES)
        expected = probabilities(Predictor.from_checkpoint(newest).logits(batch))
        np.testing.assert_array_equal(model.predict(SAMPLES).values, expected)
    assert (tmp_path / "here" / "published" / missed.name).is_dir(), "the newest lies on it"


def test_a_server_begins_with_what_it_had_where_the_job_is_away(
    job: SavedModel, publish: Callable[..., Publisher], tmp_path: Path
) -> None:
    publisher = publish()
    publisher.readable(job.cut().name)
    with Model.open(address(publisher), forms=tmp_path / "here", publish_token=TOKEN):
        publisher.close()
    with Model.open(address(publisher), forms=tmp_path / "here", publish_token=TOKEN) as model:
        assert model.version.step == 3


def test_it_is_said_why_nothing_comes(
    job: SavedModel, publish: Callable[..., Publisher], tmp_path: Path
) -> None:
    publisher = publish()
    where = address(publisher)
    with pytest.raises(ServingError, match=r"another one.*Is the token that of .*--publish-token"):
        Model.open(where, forms=tmp_path / "here", publish_token="another token, not its")
    publisher.close()
    silent = PublishedRun(where, TOKEN, tmp_path / "here")
    with pytest.raises(ServingError, match=r"no checkpoint in 1 s: .*"):
        silent.wait(1.0)
    silent.close()
    with pytest.raises(ServingError, match=r"wants a token: .*--publish-token-file"):
        Model.open(where, forms=tmp_path / "here")
    with pytest.raises(ServingError, match=r"say in which folder .*--forms"):
        Model.open(where, publish_token=TOKEN)
    with pytest.raises(ServingError, match="must look like tcp://HOST:PORT, got 'tcp://nobody'"):
        Model.open("tcp://nobody", forms=tmp_path / "here", publish_token=TOKEN)
