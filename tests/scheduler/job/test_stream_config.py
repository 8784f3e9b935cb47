"""What a job file says of a stream is checked by name, with what to write instead."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from scheduler import ConfigError, JobConfig
from scheduler.job.paths import with_absolute_paths
from scheduler.job.sources import (
    DirectoryConfig,
    KafkaConfig,
    LabelFolderConfig,
    LabelTopicConfig,
)
from scheduler.job.specs import (
    arriving_features,
    evaluation_data,
    label_features,
    training_data,
)


def job(stream: dict[str, Any], **sections: Any) -> JobConfig:
    data = {"stream": stream, "dense": ["x"], "sparse": ["C1"], **sections.pop("data", {})}
    return JobConfig.from_dict(
        {
            "data": data,
            "model": {"type": "deepfm", "mlp": [8]},
            "run": {"dir": "runs/x"},
            **sections,
        }
    )


@pytest.mark.parametrize(
    "stream",
    [
        {"dir": "in"},
        {"dir": "s3://bucket/in?region=eu-west-1", "after": "2026-11-29/17/part-1.parquet"},
        {"dir": "memory://in", "start": "now", "poll_seconds": 0.001},
        {"type": "directory", "dir": "in", "trained_files": "remove", "archive": "old"},
        {"dir": "in", "trained_files": "remove", "archive": "in/_old"},
    ],
)
def test_what_can_be_meant_is_taken(stream: dict[str, Any]) -> None:
    assert job(stream).data.stream is not None


@pytest.mark.parametrize(
    ("stream", "text"),
    [
        ({"dir": "xyz://host/in"}, r"data\.stream\.dir: nothing opens xyz://.*s3://BUCKET"),
        ({"dir": "in", "after": "../x"}, r"data\.stream\.after.*got '\.\./x'"),
        ({"dir": "in", "after": "/x"}, r"data\.stream\.after.*got '/x'"),
        ({"dir": "in", "after": ""}, r"data\.stream\.after.*got ''"),
        ({"dir": "in", "after": "a", "start": "now"}, r"after is 'a'.*leave one of them out"),
        ({"dir": "in", "poll_seconds": 1e-9}, r"data\.stream\.poll_seconds.*0\.001"),
        ({"dir": "in", "poll_seconds": 1e9}, r"data\.stream\.poll_seconds.*3600"),
        ({"dir": "in", "close_seconds": 1e-9}, r"data\.stream\.close_seconds"),
        ({"dir": "in", "settle_seconds": 1e8}, r"data\.stream\.settle_seconds"),
        ({"dir": "in", "archive": "old"}, r"archive is 'old'.*trained_files: remove"),
        (
            {"dir": "in", "trained_files": "remove", "archive": "s3://b/old"},
            r"archive must be in the same store as dir, 'in'",
        ),
        (
            {"dir": "in", "trained_files": "remove", "archive": "in/old"},
            r"archive 'in/old' lies in dir 'in'",
        ),
        ({"type": "rabbit", "dir": "in"}, r"data\.stream\.type.*'rabbit'"),
        ({"dirr": "in"}, r"unknown key data\.stream\.dirr; did you mean 'dir'"),
    ],
)
def test_what_can_be_no_stream_is_refused(stream: dict[str, Any], text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        job(stream)


KAFKA = {"type": "kafka", "brokers": "a:9092,b:9092", "topic": "clicks", "format": "json"}
COLUMNS = {"label": "float32", "x": "float64", "C1": "list<int64>"}


def test_a_topic_can_be_meant() -> None:
    assert job({**KAFKA, "columns": COLUMNS}).data.stream is not None
    assert job({**KAFKA, "format": "arrow", "start": "committed"}).data.stream is not None
    avro = {"format": "avro", "avro_schema": "click.avsc", "avro_framing": "confluent"}
    config = with_absolute_paths(job({**KAFKA, **avro}), {}, Path("/here"))
    assert config.data.stream is not None
    assert config.data.stream.avro_schema == "/here/click.avsc"
    assert JobConfig.from_dict(yaml.safe_load(config.to_yaml())) == config


@pytest.mark.parametrize(
    ("stream", "text"),
    [
        ({"brokers": "localhost"}, r"data\.stream\.brokers: must be HOST:PORT.*'localhost'"),
        ({"topic": "a b"}, r"data\.stream\.topic.*'a b'"),
        ({"format": "csv"}, r"data\.stream\.format.*'csv'"),
        ({}, r"data\.stream: columns must say what messages of format json hold"),
        ({"columns": {"label": "float"}}, r"columns: label must be one of bool, .*'float'"),
        ({"columns": {"label": "int8"}}, r"data\.stream\.columns lacks x, C1"),
        ({"columns": COLUMNS, "avro_schema": "x"}, "avro_schema is not for format json"),
        ({"format": "avro"}, "avro_schema must say what"),
        ({"format": "arrow", "avro_framing": "confluent"}, "avro_framing is not for format arrow"),
        ({"columns": COLUMNS, "dir": "in"}, r"unknown key data\.stream\.dir"),
        ({"columns": COLUMNS, "on_lost": "cry"}, r"data\.stream\.on_lost.*'cry'"),
    ],
)
def test_what_can_be_no_topic_is_refused(stream: dict[str, Any], text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        job({**KAFKA, **stream})


def test_every_key_of_a_stream_is_on_its_page() -> None:
    page = (Path(__file__).parents[3] / "docs" / "jobs.md").read_text()
    sections = (DirectoryConfig, KafkaConfig, LabelFolderConfig, LabelTopicConfig)
    keys = {key for section in sections for key in section.model_fields}

    assert [key for key in sorted(keys) if f"`{key}`" not in page] == []


@pytest.mark.parametrize(
    ("data", "text"),
    [
        ({"epochs": 3}, "data.epochs is 3, .* leave it out, or write epochs: 1"),
        ({"shuffle": "rows"}, "data.shuffle is rows, .* leave it out, or write shuffle: none"),
    ],
)
def test_what_is_for_files_is_named_with_its_value(data: dict[str, Any], text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        job({"dir": "in"}, data=data)


@pytest.mark.parametrize("seconds", [1e-6, 1e9])
def test_windows_are_of_a_length_that_somebody_looks_at(seconds: float) -> None:
    with pytest.raises(ConfigError, match=r"training\.online\.window_seconds"):
        job({"dir": "in"}, training={"online": {"window_seconds": seconds}})


# Labels


LABELS = {"dir": "labels", "key": "id", "window_seconds": 60}


def test_labels_may_be_in_a_stream_of_their_own() -> None:
    config = job({"dir": "in"}, data={"label_stream": {**LABELS, "label": "click"}})

    assert config.data.label_stream is not None
    assert config.data.label_stream.remembered_seconds() == 60
    assert arriving_features(config).columns() == ["id", "x", "C1"]
    assert label_features(config).columns() == ["click", "id"]
    assert training_data(config).features.columns() == ["label", "x", "C1"]
    here = with_absolute_paths(config, {}, Path("/here"))
    assert here.data.label_stream is not None
    assert getattr(here.data.label_stream, "dir") == "/here/labels"  # noqa: B009
    assert JobConfig.from_dict(yaml.safe_load(here.to_yaml())) == here


def test_samples_of_a_topic_need_no_label_then_but_the_key() -> None:
    columns = {"x": "float32", "C1": "int64"}
    with pytest.raises(ConfigError, match=r"data\.stream\.columns lacks id"):
        job({**KAFKA, "columns": columns}, data={"label_stream": LABELS})

    topic = {**KAFKA, "topic": "labels", "key": "id", "window_seconds": 1}
    declared = {"columns": {"id": "int64", "label": "int8"}}
    stream = {**KAFKA, "columns": {**columns, "id": "int64"}}
    config = job(stream, data={"label_stream": {**topic, **declared}})

    assert isinstance(config.data.label_stream, LabelTopicConfig)
    with pytest.raises(ConfigError, match=r"data\.label_stream\.columns lacks label"):
        job(stream, data={"label_stream": {**topic, "columns": {"id": "int64"}}})
    with pytest.raises(ConfigError, match="are one topic, 'clicks'"):
        job(stream, data={"label_stream": {**topic, **declared, "topic": "clicks"}})


@pytest.mark.parametrize(
    ("labels", "text"),
    [
        ({"window_seconds": -1}, r"data\.label_stream\.window_seconds"),
        ({"window_seconds": None}, r"data\.label_stream\.window_seconds"),
        ({"window_seconds": 0}, "no label would find its sample. Give remember_seconds"),
        ({"remember_seconds": 1e9}, r"data\.label_stream\.remember_seconds"),
        ({"key": "label"}, "key is 'label', a label"),
        ({"dir": "in"}, "lie in one another"),
        ({"dir": "in/labels"}, "lie in one another"),
        ({"max_waiting": 0}, r"data\.label_stream\.max_waiting"),
        ({"close_seconds": 1}, r"unknown key data\.label_stream\.close_seconds"),
        ({"type": "rabbit"}, r"data\.label_stream\.type.*'rabbit'"),
    ],
)
def test_labels_that_could_not_be_found_are_refused(labels: dict[str, Any], text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        job({"dir": "in"}, data={"label_stream": {**LABELS, **labels}})


def test_labels_of_files_are_in_them() -> None:
    with pytest.raises(ConfigError, match=r"data\.label_stream needs data\.stream"):
        JobConfig.from_dict(
            {
                "data": {"train": "x.parquet", "label_stream": LABELS, "sparse": ["C1"]},
                "model": {"type": "deepfm", "mlp": [8]},
                "run": {"dir": "runs/x"},
            }
        )


# Segments


@pytest.mark.parametrize("segment", ["country", {"column": "C1", "most": 3}])
def test_windows_may_be_told_apart_by_a_column(segment: Any) -> None:
    config = job({"dir": "in"}, training={"online": {"segment": segment}})

    column = config.training.online.segment
    assert column is not None
    assert training_data(config).features.columns()[:2] == ["label", column.column]
    assert evaluation_data(config).features.segment is None


@pytest.mark.parametrize(
    ("stream", "online", "text"),
    [
        ({"dir": "in"}, {"segment": "c", "evaluate": "none"}, "evaluate: none has none"),
        ({"dir": "in"}, {"segment": {"column": "c", "most": 256}}, r"segment\.most.*255"),
        (
            {"type": "kafka", "brokers": "b:1", "topic": "t", "format": "json",
             "columns": {"label": "int8", "x": "float32", "C1": "int64"}},
            {"segment": "c"},
            r"data\.stream\.columns lacks c",
        ),
    ],
)  # fmt: skip
def test_segments_that_could_not_be_told_are_refused(
    stream: dict[str, Any], online: dict[str, Any], text: str
) -> None:
    with pytest.raises(ConfigError, match=text):
        job(stream, training={"online": online})


def test_what_is_of_streams_needs_one() -> None:
    for key, value in (("segment", "c"), ("until", {"idle_seconds": 1})):
        with pytest.raises(ConfigError, match=rf"training\.online\.{key} needs data\.stream"):
            JobConfig.from_dict(
                {
                    "data": {"train": "x.parquet", "sparse": ["C1"]},
                    "model": {"type": "deepfm", "mlp": [8]},
                    "training": {"online": {key: value}},
                    "run": {"dir": "runs/x"},
                }
            )
