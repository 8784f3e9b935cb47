"""Whole jobs of a user's torch module: the same bits everywhere, and what fails is his line."""

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from killed_actors import disturbed
from ray_of_threads import RayOfThreads

from scheduler import ConfigError, JobConfig, Result, Trainer, TrainingError
from scheduler.driver.resolved import resolve
from scheduler.job.specs import model_spec
from synchromesh.commands.main import main

torch = pytest.importorskip("torch")

from worker.models.torch import ModuleInputs, gpu  # noqa: E402

MODULE = """
import torch
from torch import nn


class Layers(nn.Module):
    def __init__(self, inputs, width=8, dropout=0.1, fails_at=None):
        super().__init__()
        columns = inputs.width + inputs.dims["history"]
        self.register_buffer("scale", torch.full((columns,), 0.5))
        self.layers = nn.Sequential(
            nn.Linear(columns, width), nn.ReLU(), nn.Dropout(dropout), nn.Linear(width, 1)
        )
        self.fails_at = fails_at

    def forward(self, dense, embeddings):
        if len(dense) == self.fails_at:
            raise RuntimeError("so many samples")
        vectors, lengths = embeddings.pop("history")
        assert int(lengths.max()) <= vectors.shape[1]
        history = (torch.tanh(vectors) * torch.arange(1.0, 3.0)[:, None]).sum(1)
        inputs = torch.cat([dense, *embeddings.values(), history], dim=1)
        return self.layers(inputs * self.scale).squeeze(1)


class Flushes(Layers):
    def forward(self, dense, embeddings):
        torch.set_flush_denormal(True)
        return super().forward(dense, embeddings)


class InBatch(Layers):
    def batch_loss(self, dense, embeddings, labels, weights):
        logits = self.forward(dense, embeddings)
        return logits, labels * (torch.logsumexp(logits, 0) - logits)


class Squares(Layers):
    def loss(self, logits, labels):
        return (torch.sigmoid(logits) - labels) ** 2
"""


@pytest.fixture(scope="module")
def module(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("code")
    (folder / "torch_of_jobs.py").write_text(MODULE)
    sys.path.insert(0, str(folder))
    yield folder / "torch_of_jobs.py"
    sys.path.remove(str(folder))
    sys.modules.pop("torch_of_jobs", None)


HISTORY = {
    "column": "tags",
    "name": "history",
    "table": "tags",
    "combiner": "none",
    "max_length": 2,
    "keep": "last",
}


def job(
    data: Path, run: Path, /, *, workers: int = 1, servers: int = 1, **changes: Any
) -> JobConfig:
    sections: dict[str, Any] = {
        "seed": 3,
        "data": {
            "train": str(data / "train-*.parquet"),
            "eval": str(data / "test.parquet"),
            "dense": ["d1", "d2"],
            "dense_transform": "log1p",
            "sparse": ["a", "b", {"column": "tags", "combiner": "mean"}, HISTORY],
            "batch_size": 64,
        },
        "embedding": {"dim": 4},
        "model": {
            "type": "torch",
            "class": "torch_of_jobs:Layers",
            "optimizer": {"type": "adam", "learning_rate": 0.01},
        },
        "training": {"mode": "sync", "global_batch": 256},
        "cluster": {"workers": workers, "servers": servers},
        "run": {"dir": str(run)},
    }
    for section, values in changes.items():
        sections[section] = {**sections.get(section, {}), **values}
    return JobConfig.from_dict(sections)


@pytest.fixture(scope="module")
def trained(
    jobs_in_threads: RayOfThreads,
    module: Path,
    samples: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Result:
    return Trainer(job(samples, tmp_path_factory.mktemp("torch") / "run")).fit()


@pytest.mark.parametrize(
    "changes",
    [
        {"workers": 3, "servers": 2},
        {"workers": 2, "servers": 3},
    ],
    ids=["3 workers, 2 servers", "2 workers, 3 servers"],
)
def test_the_model_has_the_same_bits_on_any_number_of_processes(
    trained: Result, samples: Path, tmp_path: Path, changes: dict[str, int]
) -> None:
    other = Trainer(job(samples, tmp_path / "run", **changes)).fit()

    assert other.metrics["model_digest"] == trained.metrics["model_digest"]
    assert other.metrics["eval"] == trained.metrics["eval"]


def test_the_bits_are_the_same_where_servers_and_coordinators_are_lost(
    trained: Result, samples: Path, tmp_path: Path, jobs_in_threads: RayOfThreads
) -> None:
    cuts = {"every_steps": 4, "every_seconds": None}
    config = job(samples, tmp_path / "run", workers=2, servers=2, checkpoint=cuts)

    with disturbed(jobs_in_threads, ("server", 1, 7), ("coordinator", 0, 13)):
        killed = Trainer(config).fit().metrics

    assert len(killed["recoveries"]) == 2
    assert killed["redone_steps"] > 0
    assert killed["model_digest"] == trained.metrics["model_digest"]


def test_it_learns_and_its_seed_and_options_count(
    trained: Result, samples: Path, tmp_path: Path
) -> None:
    assert trained.metrics["eval"]["auc"] > 0.7
    own = Trainer(
        job(samples, tmp_path / "own", model={"class": "torch_of_jobs:Squares", "width": 16})
    ).fit()
    assert own.metrics["eval"]["auc"] > 0.7
    assert own.metrics["model_digest"] != trained.metrics["model_digest"]


def test_a_loss_over_batches_has_the_same_bits_whoever_computes_them(
    jobs_in_threads: RayOfThreads, module: Path, samples: Path, tmp_path: Path
) -> None:
    digests = set()
    for workers in (1, 3):
        config = job(
            samples,
            tmp_path / f"{workers}",
            workers=workers,
            data={"eval": None},
            model={"class": "torch_of_jobs:InBatch"},
            training={"max_samples": 1024},
        )
        digests.add(Trainer(config).fit().metrics["model_digest"])

    assert len(digests) == 1


def test_with_two_threads_in_each_worker_the_bits_are_those_of_two_threads(
    trained: Result, samples: Path, tmp_path: Path
) -> None:
    digests = set()
    for workers in (1, 2):
        config = job(samples, tmp_path / f"{workers}", workers=workers, model={"width": 64})
        config = JobConfig.from_dict(
            config.model_dump(exclude_unset=True)
            | {"cluster": {"workers": workers, "servers": 1, "worker_threads": 2}}
        )
        digests.add(Trainer(config).fit().metrics["model_digest"])

    assert len(digests) == 1


@pytest.mark.parametrize("dropout", [0.0, 0.1])
def test_a_stream_is_scored_before_it_is_trained(
    jobs_in_threads: RayOfThreads, module: Path, samples: Path, tmp_path: Path, dropout: float
) -> None:
    (tmp_path / "in").mkdir()
    table = pq.read_table(samples / "train-0.parquet").slice(0, 1024)
    pq.write_table(table, tmp_path / "in" / "part-0.parquet")
    config = job(
        samples,
        tmp_path / "run",
        data={"train": None, "eval": None, "stream": {"dir": str(tmp_path / "in")}},
        model={"dropout": dropout},
        training={
            "mode": "gba",
            "online": {"window_seconds": 3600, "until": {"idle_seconds": 0.5}},
        },
    )

    Trainer(config).fit()

    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    windows = [window for line in lines for window in json.loads(line)["windows"]]
    assert sum(window["samples"] for window in windows) == 1024
    assert all(0 < window["logloss"] < 1 for window in windows)


@pytest.fixture
def gpus_that_are_cpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu, "DEVICE", "cpu")
    monkeypatch.setattr(gpu, "require_build", lambda: None)
    monkeypatch.setattr(gpu, "gpu_facts", lambda: {"gpu": "none"})


@pytest.mark.usefixtures("gpus_that_are_cpus", "jobs_in_threads", "module")
def test_workers_with_a_device_train_what_others_do_whether_a_batch_waits_for_another_or_not(
    samples: Path, tmp_path: Path
) -> None:
    digests = {}
    for gpus, workers in ((0, 1), (0.5, 1), (1, 3)):  # one worker has four batches of each step
        config = job(
            samples,
            tmp_path / f"{workers} {gpus}",
            data={"eval": None},
            model={"class": "torch_of_jobs:Squares"},
            training={"mode": "sync", "global_batch": 256, "max_samples": 1024},
            cluster={"workers": workers, "worker_gpus": gpus},
        )
        digests[gpus] = Trainer(config).fit().metrics["model_digest"]

    assert digests[0.5] == digests[1] == digests[0]


@pytest.mark.usefixtures("gpus_that_are_cpus", "jobs_in_threads", "module")
def test_a_worker_that_can_not_use_its_gpu_ends_the_job_and_says_why(
    samples: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_gpu() -> dict[str, str]:
        raise gpu.NoGpuError("torch finds no GPU that it can compute on")

    monkeypatch.setattr(gpu, "gpu_facts", no_gpu)

    with pytest.raises(TrainingError, match="worker 0 on here: torch finds no GPU that it can"):
        Trainer(job(samples, tmp_path / "run", cluster={"worker_gpus": 1})).fit()


def test_gpus_are_refused_where_torch_has_no_cuda_and_warned_of_where_it_sees_none(
    module: Path,
    samples: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    config = job(samples, tmp_path / "run", cluster={"worker_gpus": 1})
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    resolve(config)
    assert "torch sees no GPU on this machine" in caplog.text

    monkeypatch.setattr(torch.version, "cuda", None)
    with pytest.raises(ConfigError, match=r"cluster\.worker_gpus: torch .* is built without CUDA"):
        resolve(config)

    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    resolve(config)  # workers are elsewhere
    assert "workers need such a build where they are" in caplog.text


def answer(capsys: pytest.CaptureFixture[str], *command: object) -> dict[str, Any]:
    capsys.readouterr()
    assert main([str(each) for each in command]) == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


def test_its_checkpoint_scores_predicts_and_is_exported(
    trained: Result, samples: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = samples / "test.parquet"
    scores = answer(capsys, "evaluate", trained.path)
    answer(capsys, "predict", trained.path, data, tmp_path / "out.parquet")
    answer(capsys, "export", trained.path, tmp_path / "out", "--format", "safetensors")

    assert scores.items() >= trained.metrics["eval"].items()
    predicted = pq.read_table(tmp_path / "out.parquet")["prediction"].to_numpy()
    assert np.isfinite(predicted).all()
    state = load_file(tmp_path / "out" / "dense.safetensors")
    assert list(state) == sorted(
        ["scale", *(f"layers.{at}.{kind}" for at in (0, 3) for kind in ("weight", "bias"))]
    )
    assert state["layers.0.weight"].shape == (8, 18)
    inputs = ModuleInputs.of_export(tmp_path / "out")
    assert (inputs.width + 4, inputs.sequences) == (18, {"history": 2})


def load_file(path: Path) -> dict[str, np.ndarray]:
    from safetensors.numpy import load_file

    found: dict[str, np.ndarray] = load_file(path)
    return found


def test_a_failure_while_it_trains_is_his_line(
    jobs_in_threads: RayOfThreads, module: Path, samples: Path, tmp_path: Path
) -> None:
    config = job(samples, tmp_path / "run", model={"fails_at": 64})
    number = 1 + MODULE.splitlines().index('            raise RuntimeError("so many samples")')

    with pytest.raises(TrainingError) as caught:
        Trainer(config).fit()

    assert str(caught.value) == (
        "worker 0: model.class 'torch_of_jobs:Layers': forward failed at"
        f" {module}, line {number}, in forward: RuntimeError: so many samples"
    )


def test_another_float_mode_is_refused_before_anything_starts(
    module: Path, samples: Path, tmp_path: Path
) -> None:
    config = job(samples, tmp_path / "run", model={"class": "torch_of_jobs:Flushes"})
    try:
        with pytest.raises(ConfigError, match="denormal numbers flushed to zero"):
            model_spec(config)
        allowed = config.model_dump(exclude_unset=True)
        allowed["training"]["mixed_cpus"] = True
        assert model_spec(JobConfig.from_dict(allowed)).type == "torch"
    finally:
        torch.set_flush_denormal(False)


def test_what_cant_be_trained_is_refused_before_anything_starts(
    module: Path, samples: Path, tmp_path: Path
) -> None:
    config = job(samples, tmp_path / "run", model={"widht": 8})

    with pytest.raises(ConfigError, match="no such option; did you mean 'width'"):
        Trainer(config).fit()

    assert not (tmp_path / "run").exists()
