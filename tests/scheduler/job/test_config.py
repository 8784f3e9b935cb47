"""The job file: a public contract."""

from datetime import date
from pathlib import Path
from typing import Any

import pytest
import yaml

from embedding.spec.admission import BloomAdmission, CounterAdmission, ProbabilisticAdmission
from embedding.spec.eviction import Eviction
from embedding.spec.initial_values import Constant, Normal, Uniform
from embedding.spec.optimizers import Adagrad
from ps.net.listener import MAX_CONNECTIONS
from scheduler import ConfigError, JobConfig
from scheduler.job.paths import with_absolute_paths
from scheduler.job.specs import model_spec, store_spec, training_data

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture
def job() -> dict[str, Any]:
    return {
        "data": {"train": "a/*.parquet", "dense": ["x"], "sparse": ["C1", "C2"]},
        "model": {"type": "deepfm", "mlp": [8]},
        "run": {"dir": "runs/x"},
    }


def test_defaults_are_written_out_and_read_back(job: dict[str, Any]) -> None:
    config = JobConfig.from_dict(job)

    assert JobConfig.from_dict(yaml.safe_load(config.to_yaml())) == config


def test_one_path_or_column_is_short_for_a_list_of_one(job: dict[str, Any]) -> None:
    config = JobConfig.from_dict(job)

    assert config.data.train == ["a/*.parquet"]
    assert config.data.sparse[0].column == "C1"
    assert config.data.sparse[0].table_name == "C1"


def test_the_global_batch_is_one_batch_a_worker_by_default(job: dict[str, Any]) -> None:
    job["cluster"] = {"workers": 3}
    config = JobConfig.from_dict(job)

    assert (config.global_batch, config.group_size) == (3 * 2048, 3)


@pytest.mark.parametrize(
    ("section", "values", "named"),
    [
        ("checkpoint", {"keep": 0}, "checkpoint.keep"),
        ("checkpoint", {"full_every": 0}, "checkpoint.full_every"),
        ("checkpoint", {"full_every": 1001}, "checkpoint.full_every"),
        ("checkpoint", {"every_seconds": 0}, "checkpoint.every_seconds"),
        ("checkpoint", {"compression": "gzip"}, "checkpoint.compression"),
        ("checkpoint", {"every_step": 5}, "every_steps"),
        ("cluster", {"max_failures": -2}, "cluster.max_failures"),
        ("run", {"dir": "runs/x", "resume": True}, "run.resume"),
        ("run", {"dir": "runs/x", "resume": "auto", "overwrite": True}, "run: overwrite"),
    ],
)
def test_what_is_said_of_checkpoints_and_resuming_is_checked_by_name(
    job: dict[str, Any], section: str, values: dict[str, Any], named: str
) -> None:
    with pytest.raises(ConfigError, match=named):
        JobConfig.from_dict({**job, section: values})


def test_no_more_workers_may_join_than_a_server_has_connections_for(job: dict[str, Any]) -> None:
    job["cluster"] = {"workers": 4000}

    most = JobConfig.from_dict(job).max_workers

    assert 4000 < most < MAX_CONNECTIONS - 64


def test_tables_override_the_defaults_field_by_field(job: dict[str, Any]) -> None:
    job["embedding"] = {"dim": 8, "optimizer": {"type": "adagrad", "learning_rate": 0.5}}
    job["tables"] = {
        "C1": {
            "initializer": {"type": "normal", "stddev": 0.1},
            "admission": {"type": "counter", "min_count": 3},
            "eviction": {"steps_to_live": 7},
            "default_value": 0.25,
        }
    }
    config = JobConfig.from_dict(job)
    tables = {t.name: t for t in store_spec(config, model_spec(config)).tables}

    assert tables["C1"].initializer == Normal(stddev=0.1)
    assert tables["C1"].admission == CounterAdmission(min_count=3)
    assert tables["C1"].eviction == Eviction(steps_to_live=7)
    assert tables["C1"].default_value == 0.25
    assert tables["C1"].optimizer == tables["C2"].optimizer == Adagrad(learning_rate=0.5)
    assert tables["C2"].admission is None


def test_linear_weights_have_tables_of_their_own_that_start_at_zero(job: dict[str, Any]) -> None:
    config = JobConfig.from_dict(job)
    tables = {t.name: t for t in store_spec(config, model_spec(config)).tables}

    assert tables["C1_linear"].dim == 1
    assert tables["C1_linear"].initializer == Constant(value=0.0)
    assert tables["C1"].dim == 16


def test_features_may_share_a_table(job: dict[str, Any]) -> None:
    job["data"]["sparse"] = ["C1", {"name": "C2", "table": "C1", "combiner": "mean"}]
    job["model"] = {"type": "dlrm"}
    config = JobConfig.from_dict(job)
    model = model_spec(config)

    assert [lookup.table for lookup in model.lookups] == ["C1", "C1"]
    assert [table.name for table in store_spec(config, model).tables] == ["C1"]


def test_max_norm_and_max_reach_the_lookups(job: dict[str, Any]) -> None:
    job["data"]["sparse"] = ["C1", {"name": "C2", "combiner": "max", "max_norm": 2}]

    model = model_spec(JobConfig.from_dict(job))

    assert [(lookup.table, lookup.max_norm) for lookup in model.lookups] == [
        ("C1", None), ("C2", 2.0), ("C1_linear", None), ("C2_linear", None)
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("feature", "message"),
    [
        ({"combiner": "max", "weights": "w"}, "data.sparse.1: combiner max takes no weights"),
        ({"max_norm": 0}, "data.sparse.1.max_norm: .*greater than 0"),
        ({"combiner": "tile"}, "data.sparse.1.combiner: .*'max'"),
    ],
)
def test_a_pooling_that_makes_no_sense_is_refused(
    job: dict[str, Any], feature: dict[str, Any], message: str
) -> None:
    job["data"]["sparse"] = ["C1", {"name": "C2", **feature}]

    with pytest.raises(ConfigError, match=message):
        JobConfig.from_dict(job)


def test_a_composition_takes_the_place_of_its_table(job: dict[str, Any]) -> None:
    halves = {"type": "multi_hash", "modulus": 9, "operation": "concatenate"}
    job["tables"] = {"C1": {"composition": halves, "admission": {"min_count": 3}}}
    config = JobConfig.from_dict(job)
    model = model_spec(config)

    tables = {table.name: table for table in store_spec(config, model).tables}

    assert list(tables) == ["C1_quotient", "C1_remainder", "C2", "C1_linear", "C2_linear"]
    assert tables["C1_remainder"].dim == 8
    assert tables["C1_remainder"].admission == CounterAdmission(min_count=3)
    assert (model.lookups[0].table, model.lookups[0].dim) == ("C1", 16)
    assert JobConfig.from_dict(yaml.safe_load(config.to_yaml())) == config


@pytest.mark.parametrize(
    ("tables", "message"),
    [
        (
            {"C1": {"composition": {"type": "multi_hash"}}},
            r"tables.C1.composition.*modulus is required",
        ),
        (
            {"C1": {"composition": {"type": "multi_hash", "modulus": 1}}},
            r"tables.C1.composition.*: modulus must be in",
        ),
        (
            {"C1": {"dim": 16, "composition": {"type": "qr", "modulus": 5}}},
            r"tables.C1.composition.*multi_hash",
        ),
        (
            {"C1": {"composition": {"type": "dynamic_dimension", "min_counts": [2, 2]}}},
            r"tables.C1.composition.*: min_counts must be strictly increasing.*got \[2, 2\]",
        ),
        (
            {"C1": {"composition": {"type": "dynamic_dimension", "min_counts": [2, 3]}}},
            "tables.C1.composition: dim must be a multiple of its 3 blocks, got 16",
        ),
        (
            {"C1": {"composition": {"type": "adaptive", "static_rows": 4096}}},
            "tables.C1.composition: adaptive needs an admission rule",
        ),
        (
            {
                "C1": {
                    "admission": {"min_count": 2},
                    "composition": {"type": "adaptive", "static_rows": 5000},
                }
            },
            r"tables.C1.composition.*: static_rows must be a multiple of 4096.*got 5000",
        ),
        (
            {"C1_linear": {"composition": {"type": "multi_hash", "modulus": 5}}},
            "tables.C1_linear.composition: first-order weights",
        ),
        (
            {"C1": {"composition": {"type": "multi_hash", "modulus": 5}}, "C1_quotient": {}},
            "tables.C1_quotient: no feature uses this table",
        ),
    ],
)
def test_a_composition_that_cannot_be_is_refused(
    job: dict[str, Any], tables: dict[str, Any], message: str
) -> None:
    job["tables"] = tables

    with pytest.raises(ConfigError, match=message):
        model_spec(JobConfig.from_dict(job))


def test_a_part_with_the_name_of_another_table_is_refused(job: dict[str, Any]) -> None:
    job["data"]["sparse"] = ["C1", {"name": "C2", "table": "C1_remainder"}]
    job["tables"] = {"C1": {"composition": {"type": "multi_hash", "modulus": 5}}}
    config = JobConfig.from_dict(job)

    with pytest.raises(ConfigError, match=r"C1.composition: its table C1_remainder has the name"):
        store_spec(config, model_spec(config))


@pytest.mark.parametrize(
    ("override", "path", "value"),
    [
        ("cluster.workers=5", ("cluster", "workers"), 5),
        ("data.sparse.1.table=C1", ("data", "sparse", 1, "table"), "C1"),
        ("training.max_seconds=null", ("training", "max_seconds"), None),
        ("model.mlp=[4, 2]", ("model", "mlp"), [4, 2]),
        ("tables.C1.admission={type: counter, min_count: 2}", ("tables", "C1", "dim"), None),
    ],
)
def test_every_key_can_be_overridden(
    job: dict[str, Any], tmp_path: Path, override: str, path: tuple[Any, ...], value: Any
) -> None:
    job["data"]["sparse"] = ["C1", {"column": "C2"}]
    (tmp_path / "job.yaml").write_text(yaml.safe_dump(job))

    found: Any = JobConfig.from_yaml(tmp_path / "job.yaml", [override]).model_dump()
    for part in path:
        found = found[part]

    assert found == value


@pytest.mark.parametrize("override", ["a", "=1", "data.sparse.9.table=x", "name.x=1", "seed=[1"])
def test_an_override_that_leads_nowhere_is_refused(
    job: dict[str, Any], tmp_path: Path, override: str
) -> None:
    (tmp_path / "job.yaml").write_text(yaml.safe_dump(job))

    with pytest.raises(ConfigError, match="override"):
        JobConfig.from_yaml(tmp_path / "job.yaml", [override])


@pytest.mark.parametrize(
    ("section", "values", "said"),
    [
        ("tables", {"C1": {"admission": {"min_cuont": 2}}}, "did you mean 'min_count'?"),
        ("tables", {"C1": {"admision": None}}, "unknown key tables.C1.admision"),
        ("embedding", {"initializer": {"scale": 1}}, "embedding.initializer.type is required"),
        ("embedding", {"initializer": {"type": "unifrom"}}, "did you mean 'uniform'?"),
        ("embedding", {"optimizer": {"type": "adagrad", "lr": 1}}, "unknown key"),
        ("embedding", {"dim": 0}, "embedding.dim"),
        ("embedding", {"admission": {"type": "blom"}}, "did you mean 'bloom'?"),
        (
            "embedding",
            {"admission": {"type": "bloom", "min_count": 300, "max_elements": 10}},
            "embedding.admission: min_count must be in [1, 255] with counter_bits 8",
        ),
        (
            "tables",
            {"C1": {"admission": {"type": "bloom", "min_count": 3}}},
            "tables.C1.admission.max_elements is required",
        ),
        (
            "tables",
            {"C1": {"admission": {"type": "probabilistic", "probability": 0}}},
            "tables.C1.admission: probability must be in (0, 1]",
        ),
        ("embedding", {"eviction": {}}, "embedding.eviction: at least one of steps_to_live"),
        (
            "tables",
            {"C1": {"eviction": {"max_rows": 262143}}},
            "tables.C1.eviction: max_rows must be >= 262144, 64 for each of 4096 buckets",
        ),
        ("embedding", {"eviction": {"l2_weight_threshold": 0}}, "l2_weight_threshold must be > 0"),
        (
            "embedding",
            {"eviction": {"max_rows": 10**6, "evict_first": "oldest"}},
            "embedding.eviction.evict_first",
        ),
        ("embedding", {"eviction": {"max_rows": 10**6, "every_steps": 0}}, "every_steps must be"),
        ("embedding", {"eviction": {"max_row": 10**6}}, "did you mean 'max_rows'?"),
        (
            "embedding",
            {"initializer": {"type": "glorot_uniform", "fan_in": 0}},
            "embedding.initializer: fan_in must be",
        ),
        ("model", {"type": "dlrm", "since": date(2020, 1, 1)}, "option 'since' must be"),
        (
            "model",
            {"type": "dlrm", "optimizer": {"type": "adagrad", "lr": 1}},
            "unknown key model.optimizer.lr; known: clip_norm, ",
        ),
        (
            "model",
            {"type": "dlrm", "optimizer": {"type": "adam", "schedule": {"step": 3}}},
            "unknown key model.optimizer.schedule.step",
        ),
        ("model", None, "model is empty; give it keys"),
        ("embedding", None, "embedding is empty; give it keys, or leave it out"),
        ("embedding", {"optimizer": "adam"}, "got 'adam'; write {type: adam}"),
        ("embedding", {"dim": True}, "embedding.dim must be a number, got True; YAML reads yes"),
        (
            "embedding",
            {"admission": {"min_count": True}},
            "embedding.admission.min_count must be a number, got True",
        ),
        (
            "tables",
            {"C1": {"optimizer": {"type": "adam", "schedule": {"warmup_steps": True}}}},
            "tables.C1.optimizer.schedule.warmup_steps must be a number, got True",
        ),
        ("tables", {"C1": 8}, "tables.C1 must have keys of its own (`key: value`), got 8"),
        ("training", {"max_seconds": False}, "training.max_seconds must be a number, got False"),
        ("training", {"mode": "Sync"}, "training.mode: input should be 'sync', 'gba', 'async', "),
        ("cluster", {"inject": [{"kind": "kill", "index": True}]}, "index must be a number"),
        ("cluster", {"inject": ["slow"]}, "got 'slow'; write {kind: slow}"),
        ("cluster", {"worker_threads": 10**9}, "cluster.worker_threads: "),
        ("cluster", {"workers": 10**30}, "cluster.workers: "),
        ("cluster", {"relays": -1}, "cluster.relays: must be auto or a whole number from 0 to 256"),
        ("cluster", {"relays": "many"}, "cluster.relays: must be auto or a whole number from"),
        ("cluster", {"retry_seconds": 1e300}, "cluster.retry_seconds: "),
        (
            "cluster",
            {"stall_seconds": "soon"},
            "cluster.stall_seconds must be a number, got 'soon'",
        ),
        ("cluster", {"resources": {"worker": {"gpu": -1}}}, "cluster.resources.worker.gpu: "),
        ("cluster", {"compress": "zstd"}, "cluster.compress must be true or false, got 'zstd'"),
        ("run", {"dir": ""}, "run.dir: must be a path, got ''"),
        ("run", {"dir": 2026}, "run.dir must be text, got 2026; put it into quotes"),
        ("run", {"dir": "x", "init_from": "a\0b"}, "run.init_from: must be a path"),
        ("data", {"train": "", "sparse": ["a"]}, "data.train.0: must be a path, got ''"),
        ("data", {"train": [], "sparse": ["a"]}, "data.train must have at least 1 item, got []"),
        (
            "data",
            {"train": "x", "eval": [], "sparse": ["a"]},
            "data.eval must have at least 1 item",
        ),
        ("data", {"train": "x", "sparse": "a"}, "data.sparse must be a list, got 'a'; write [a]"),
        (
            "data",
            {"train": "x", "sparse": [{"column": "a", "pad": 0.5}]},
            "data.sparse.0.pad: must be a whole number or text, as the column has it, got 0.5",
        ),
        (
            "data",
            {"train": "x", "sparse": [{"column": "a", "table": ""}]},
            "data.sparse.0.table must not be an empty text",
        ),
        (
            "data",
            {"train": "x", "sparse": [{"column": "a", "max_length": 10**30}]},
            "data.sparse.0.max_length: ",
        ),
        (
            "data",
            {"train": "x", "sparse": ["a"], "batch_size": "1e3"},
            "data.batch_size must be a whole number, got '1e3'",
        ),
        ("model", {"type": "dlrm", "names": {1: 2}}, "option 'names' must be"),
        ("training", {"mode": "bsp"}, "got 'bsp'"),
        (
            "cluster",
            {"workers": 3, "max_workers": 2},
            "cluster.max_workers must be at least cluster.workers (3), got 2",
        ),
        ("training", {"auto": {"windows": 0}}, "training.auto: windows must be >= 1, got 0"),
        ("training", {"auto": {"to_sync_ratio": 0.9}}, "to_sync_ratio must be above 1"),
        ("training", {"async_learning_rate_scale": 0}, "training.async_learning_rate_scale: "),
        (
            "training",
            {"mode": "auto", "shifts": [{"at": 5, "mode": "gba"}]},
            "shifts can't be planned in mode auto",
        ),
        (
            "training",
            {"mode": "sync", "shifts": [{"at": 5, "mode": "gba"}, {"at": 5, "mode": "sync"}]},
            "shifts must be at rising times above 0, got [5, 5]",
        ),
        ("training", {"mode": "sync", "shifts": [{"at": 5, "mode": "ssp"}]}, "'async', got 'ssp'"),
        ("training", {"staleness_bound": -1}, "training.staleness_bound: "),
        ("training", {"stale_weight": {"type": "power", "base": 1}}, "base must be in [0, 1)"),
        ("training", {"stale_weight": {"type": "exp"}}, "stale_weight.type must be one of cutoff"),
        (
            "training",
            {"stale_weight": {"type": "inverse"}, "on_stale": "reissue"},
            "training: on_stale: reissue trains again what weighs 0",
        ),
        ("training", {"backup_batches": 0}, "training.backup_batches: "),
        (
            "training",
            {"mode": "backup", "backup_batches": 2},
            "training.backup_batches must be less than the 2 local batches",
        ),
        (
            "training",
            {"global_batch": 131_073 * 2048},
            "training.global_batch may be at most 131072 times data.batch_size (2048)",
        ),
        ("cluster", {"workers": 8001}, "cluster.workers: "),
        ("cluster", {"max_workers": 8001}, "cluster.max_workers: "),
        ("cluster", {"prefetch_batches": 8193}, "cluster.prefetch_batches: "),
        ("cluster", {"lease_timeout_seconds": 0}, "cluster.lease_timeout_seconds: "),
        ("training", {"eval_every_steps": 5}, "needs data.eval"),
        ("run", {"dir": "x", "progress_every_seconds": float("nan")}, "finite"),
    ],
)
def test_mistakes_are_named_with_their_field(
    job: dict[str, Any], section: str, values: dict[str, Any] | None, said: str
) -> None:
    job[section] = values

    with pytest.raises(ConfigError) as caught:
        JobConfig.from_dict(job)

    assert said in str(caught.value)


def test_options_of_the_model_are_read_back_as_they_were_written(job: dict[str, Any]) -> None:
    job["model"] = {"type": "custom", "class": "a:B", "type_of": True, "options": {"x": [1, 2.5]}}

    config = JobConfig.from_dict(job)

    options = {"class": "a:B", "type_of": True, "options": {"x": [1, 2.5]}}
    assert config.model.options == options
    written = yaml.safe_load(config.to_yaml())
    assert written["model"] == {
        "type": "custom",
        "optimizer": written["model"]["optimizer"],
        "clip_global_norm": None,
        **options,
    }
    assert JobConfig.from_dict(written) == config


def test_a_default_that_no_table_can_have_is_refused_with_the_table(job: dict[str, Any]) -> None:
    job["embedding"] = {"default_value": 1e300}
    config = JobConfig.from_dict(job)

    with pytest.raises(ConfigError, match=r"tables\.C[12], with .*: default_value must be at most"):
        store_spec(config, model_spec(config))


def test_a_budget_of_bytes_is_refused_where_the_width_of_the_rows_is_known(
    job: dict[str, Any],
) -> None:
    job["tables"] = {"C1": {"eviction": {"max_bytes": 10**6}}}
    config = JobConfig.from_dict(job)

    with pytest.raises(ConfigError, match=r"tables\.C1\.eviction: max_bytes must be >= \d+ "):
        model_spec(config)


def test_a_column_named_twice_is_refused(job: dict[str, Any]) -> None:
    job["data"]["sparse"] = ["C1", "C1"]

    with pytest.raises(ConfigError, match="'C1' twice"):
        JobConfig.from_dict(job)


def test_relative_paths_become_absolute_and_urls_stay(job: dict[str, Any], tmp_path: Path) -> None:
    job["data"] |= {"train": ["a.parquet", "s3://bucket/b", "/c"], "eval": "d"}
    job["run"]["init_from"] = "runs/old"

    config = with_absolute_paths(JobConfig.from_dict(job), {}, tmp_path)

    assert config.data.train == [str(tmp_path / "a.parquet"), "s3://bucket/b", "/c"]
    assert config.data.eval == [str(tmp_path / "d")]
    assert config.run.dir == str(tmp_path / "runs/x")
    assert config.run.init_from == str(tmp_path / "runs/old")


def test_relative_paths_of_tables_and_of_home_become_absolute(
    job: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    train = ["delta://t", "delta://a@b@3", "delta://s3://b/t@3", "iceberg://./t@3", "~/x"]
    job["data"] |= {
        "train": train,
        "eval": ["iceberg://catalog/ns.t@5", "delta://~/t", "delta:///t"],
    }

    config = with_absolute_paths(JobConfig.from_dict(job), {}, tmp_path)

    assert config.data.train == [
        f"delta://{tmp_path}/t", f"delta://{tmp_path}/a@b@3", "delta://s3://b/t@3",
        f"iceberg://{tmp_path}/t@3", "/home/me/x",
    ]  # fmt: skip
    assert config.data.eval == ["iceberg://catalog/ns.t@5", "delta:///home/me/t", "delta:///t"]


def test_lanes_are_the_batches_of_a_global_batch(job: dict[str, Any]) -> None:
    job["training"] = {"global_batch": 4 * 2048}

    assert training_data(JobConfig.from_dict(job)).lanes == 4


def test_a_job_file_that_is_no_text_is_refused(tmp_path: Path) -> None:
    (tmp_path / "job.yaml").write_bytes(bytes([0xFF, 0xFE, 0x00, 0x81]))

    with pytest.raises(ConfigError, match="not a text file"):
        JobConfig.from_yaml(tmp_path / "job.yaml")


@pytest.mark.parametrize("path", sorted((ROOT / "jobs").glob("*.yaml")), ids=lambda p: p.name)
def test_every_example_job_is_a_legal_job(path: Path) -> None:
    config = JobConfig.from_yaml(path)
    if config.model.type == "torch":
        pytest.importorskip("torch")

    assert store_spec(config, model_spec(config)).tables


def test_admission_is_by_counter_unless_it_says_otherwise(job: dict[str, Any]) -> None:
    job["embedding"] = {"admission": {"min_count": 4}}
    job["tables"] = {
        "C1": {"admission": {"type": "bloom", "min_count": 2, "max_elements": 1000}},
        "C2": {"admission": {"type": "probabilistic", "probability": 0.5}},
    }
    config = JobConfig.from_dict(job)
    tables = {t.name: t for t in store_spec(config, model_spec(config)).tables}

    assert tables["C1"].admission == BloomAdmission(min_count=2, max_elements=1000)
    assert tables["C2"].admission == ProbabilisticAdmission(probability=0.5)
    assert tables["C1_linear"].admission == tables["C1"].admission
    assert tables["C2_linear"].admission == tables["C2"].admission


def test_a_key_that_is_not_admitted_has_no_first_order_weight_either(job: dict[str, Any]) -> None:
    job["tables"] = {
        "C1": {
            "admission": {"min_count": 3},
            "eviction": {"steps_to_live": 7, "l2_weight_threshold": 0.1},
        },
        "C2": {"admission": {"min_count": 3}, "eviction": {"l2_weight_threshold": 0.1}},
    }
    config = JobConfig.from_dict(job)
    tables = {t.name: t for t in store_spec(config, model_spec(config)).tables}

    assert tables["C1_linear"].admission == CounterAdmission(min_count=3)
    # The threshold is for vectors of another dim; first-order weights start below any.
    assert tables["C1_linear"].eviction == Eviction(steps_to_live=7)
    assert tables["C1_linear"].track_usage
    assert tables["C2_linear"].admission == CounterAdmission(min_count=3)
    assert tables["C2_linear"].eviction is None
    assert not tables["C2_linear"].track_usage


def test_first_order_weights_can_have_rules_of_their_own(job: dict[str, Any]) -> None:
    job["embedding"] = {"track_usage": False}
    job["tables"] = {
        "C1": {
            "admission": {"min_count": 3},
            "eviction": {"steps_to_live": 7},
            "track_usage": True,
        },
        "C1_linear": {"admission": {"min_count": 1}},
        "C2": {"admission": {"min_count": 3}},
        "C2_linear": {"eviction": {"l2_weight_threshold": 0.1}},
    }
    config = JobConfig.from_dict(job)
    tables = {t.name: t for t in store_spec(config, model_spec(config)).tables}

    assert tables["C1_linear"].admission == CounterAdmission(min_count=1)
    assert tables["C1_linear"].eviction == Eviction(steps_to_live=7)
    assert tables["C2_linear"].admission == CounterAdmission(min_count=3)
    assert tables["C2_linear"].eviction == Eviction(l2_weight_threshold=0.1)


def test_a_name_means_first_order_weights_only_to_models_that_have_them(
    job: dict[str, Any],
) -> None:
    job["model"] = {"type": "dlrm"}
    job["data"]["sparse"] = ["C1", {"name": "C2", "table": "C1_linear"}]
    job["tables"] = {"C1": {"admission": {"min_count": 3}}}
    config = JobConfig.from_dict(job)
    tables = {t.name: t for t in store_spec(config, model_spec(config)).tables}

    assert tables["C1_linear"].initializer == tables["C1"].initializer == Uniform()
    assert tables["C1_linear"].admission is None
