"""A checkpoint in one process: the logits that its rows say, and training's own scores."""

import json
import sys
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from embedding import EmbeddingVariable, TableEntries, TableSpec
from embedding.kernels.mixing import buckets_of
from embedding.spec.admission import CounterAdmission
from embedding.spec.composition import Part
from embedding.spec.optimizers import Adagrad, AdamAsync, Optimizer, Sgd
from ps.checkpoint.digest import bucket_digests
from ps.checkpoint.manifest import CheckpointError, Manifest, write_manifest
from ps.checkpoint.read import CheckpointReader
from ps.checkpoint.sealed_json import sealed_text, unsealed
from ps.checkpoint.write import write_shard
from ps.shard.shard import Shard
from ps.spec import StoreSpec
from worker.data.batch import Bags, Batch
from worker.data.planning import make_plan
from worker.inference import ModelError, Predictor, check_model
from worker.spec import DataSpec, FeatureSpec, Lookup, ModelSpec, SparseFeature
from worker.spec_json import saved_model_from_json

# The logit is w . dense + b + the sum of all pooled columns.
CUSTOM = """
import numpy as np
from worker.models import Parameter

class Sum:
    def __init__(self, spec):
        self.parameters = (Parameter("w", (spec.num_dense,)), Parameter("b", ({extra},)))

    def train(self, *arrays):
        raise NotImplementedError

    def predict(self, params, dense, pooled):
        n = dense.shape[1]
        return dense @ params[:n] + params[n] + pooled.sum(axis=1, dtype=np.float32)
"""
FEATURES = FeatureSpec(
    label="label",
    dense=("d1", "d2"),
    dense_transform="none",
    sparse=(
        SparseFeature(name="a", column="a", table="t1"),
        SparseFeature(name="tags", column="tags", table="t1", combiner="mean", weights="w"),
        SparseFeature(name="b", column="b", table="t2"),
    ),
)
T1 = TableSpec(name="t1", dim=3, seed=5)
T2 = TableSpec(
    name="t2", dim=2, admission=CounterAdmission(min_count=2), default_value=0.25, seed=5
)
LOOKUPS = (
    Lookup(feature=0, table="t1", dim=3, column=0),
    Lookup(feature=1, table="t1", dim=3, column=3),
    Lookup(feature=2, table="t2", dim=2, column=6),
)
KEYS = np.arange(-40, 40) * 1_000_003
BATCH = Batch(
    np.empty(0, np.float32),
    np.array([[1, 2], [0.5, -1], [0, 0]], np.float32),
    (
        Bags(KEYS[[3, 3, 50]]),
        Bags(KEYS[[1, 2, 7]], np.array([0, 2, 2, 3]), np.array([1, 3, 2], np.float32)),
        Bags(KEYS[[9, 60, 9]]),
    ),
)
DENSE = np.array([2, 3, 0.5], np.float32)


def model_spec(class_path: str) -> ModelSpec:
    return ModelSpec(
        type="custom", options={"class": class_path}, optimizer=Sgd(), num_dense=2, lookups=LOOKUPS
    )


def vectors_of(table: TableSpec) -> np.ndarray:
    return np.random.default_rng(table.dim).normal(size=(KEYS.size, table.dim)).astype(np.float32)


def write_checkpoint(path: Path, model: ModelSpec) -> Path:
    """Tables t1 and t2 with a row for each of KEYS, on two shards, and DENSE."""
    store = StoreSpec(
        tables=(T1, T2), dense_size=DENSE.size, dense_optimizer=model.optimizer, num_shards=2
    )
    files = []
    for index in range(2):
        shard = Shard(store, index)
        mine = store.routing.buckets[buckets_of(KEYS)] == index
        ones = np.ones(int(mine.sum()), np.int64)
        for table in shard.tables:
            vectors = vectors_of(table.spec)[mine]
            table.import_rows(
                TableEntries(KEYS[mine], ones, ones, vectors, np.ones_like(vectors))  # accumulator
            )
        shard.dense.initialize(DENSE[slice(*store.routing.dense_range(index))])
        files += write_shard(path, shard)
    write_manifest(
        path,
        Manifest(
            kind="full",
            step=17,
            recovery_epoch=0,
            store=store.to_json(),
            model={"spec": asdict(model), "features": asdict(FEATURES)},
            job={},
            files=tuple(files),
        ),
    )
    return path


@pytest.fixture
def checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A checkpoint of the custom model, whose module can be imported."""
    (tmp_path / "sum_model.py").write_text(CUSTOM.format(extra=1))
    monkeypatch.syspath_prepend(tmp_path)
    return write_checkpoint(tmp_path / "full-17", model_spec("sum_model:Sum"))


def expected_logits(a: list[Any], tags: list[Any], b: list[Any]) -> np.ndarray:
    """Logits of BATCH from the vectors of its samples' keys."""
    pooled = [sum(float(v.sum()) for v in sample) for sample in zip(a, tags, b, strict=True)]
    return BATCH.dense @ DENSE[:2] + DENSE[2] + np.array(pooled)


def test_logits_are_those_of_the_saved_rows_and_parameters(checkpoint: Path) -> None:
    predictor = Predictor.from_checkpoint(checkpoint)
    t1, t2 = vectors_of(T1), vectors_of(T2)
    tags = [(t1[1] + 3 * t1[2]) / 4, np.zeros(3), t1[7]]

    logits = predictor.logits(BATCH)

    expected = expected_logits([t1[3], t1[3], t1[50]], tags, [t2[9], t2[60], t2[9]])
    assert logits.dtype == np.float32
    np.testing.assert_allclose(logits, expected, rtol=1e-5)
    assert predictor.step == 17


def test_key_without_row_gets_its_initial_vector_or_the_default_value(checkpoint: Path) -> None:
    predictor = Predictor.from_checkpoint(checkpoint)
    new = np.array([7, 8, 9])
    initial = np.empty((3, 3), np.float32)
    EmbeddingVariable(T1).pull(new, None, initial, np.empty(3, np.uint8))
    unknown = Bags(new)
    sparse = (unknown, Bags(new[:0], np.zeros(4, np.int64), np.empty(0, np.float32)), unknown)

    logits = predictor.logits(replace(BATCH, sparse=sparse))

    default = np.full(2, T2.default_value)
    expected = expected_logits(list(initial), [np.zeros(3)] * 3, [default] * 3)
    np.testing.assert_allclose(logits, expected, rtol=1e-5)


def test_predicting_changes_no_table(checkpoint: Path) -> None:
    tables = {spec.name: EmbeddingVariable(spec) for spec in (T1, T2)}
    model = model_spec("sum_model:Sum")
    predictor = Predictor(model=model, features=FEATURES, tables=tables, dense=DENSE)
    before = [bucket_digests(table, (0, 4096)).tobytes() for table in tables.values()]

    first, second = predictor.logits(BATCH), predictor.logits(BATCH)

    assert first.tobytes() == second.tobytes()
    assert [bucket_digests(t, (0, 4096)).tobytes() for t in tables.values()] == before
    assert not any(len(t) or t.num_unadmitted for t in tables.values())


def test_no_samples_give_no_logits(checkpoint: Path) -> None:
    none, offsets = np.empty(0, np.int64), np.zeros(1, np.int64)
    sparse = (Bags(none), Bags(none, offsets, np.empty(0, np.float32)), Bags(none))

    logits = Predictor.from_checkpoint(checkpoint).logits(
        Batch(np.empty(0, np.float32), np.empty((0, 2), np.float32), sparse)
    )

    assert logits.shape == (0,)


def test_table_that_the_model_needs_must_be_there(checkpoint: Path) -> None:
    with pytest.raises(ValueError, match="needs table 't2' of dim 2, there is none"):
        Predictor(
            model=model_spec("sum_model:Sum"),
            features=FEATURES,
            tables={"t1": EmbeddingVariable(T1)},
            dense=DENSE,
        )


# The scores of training ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("model", "threads"),
    [
        ({"type": "dlrm", "bottom_mlp": [64, 32], "top_mlp": [128, 64]}, 1),
        ({"type": "wide_deep", "mlp": [64]}, 2),
    ],
    ids=["dlrm", "wide_deep_on_two_threads"],
)
def test_scores_equal_those_of_training_bit_for_bit(
    jobs_in_threads: None, samples: Path, tmp_path: Path, model: dict[str, Any], threads: int
) -> None:
    from scheduler import JobConfig, Trainer
    from scheduler.job.specs import evaluation_data

    config = JobConfig.from_dict(
        {
            "data": {
                "train": str(samples / "train-*.parquet"),
                "eval": str(samples / "test.parquet"),
                "dense": ["d1", "d2"],
                "dense_transform": "log1p",
                "sparse": ["a", "b", {"column": "tags", "combiner": "sqrtn"}],
                "batch_size": 250,
                "eval_batch_size": 300,
            },
            "tables": {"b": {"admission": {"type": "counter", "min_count": 3}}},
            "model": model,
            "cluster": {"workers": 2, "servers": 2, "worker_threads": threads},
            "run": {"dir": str(tmp_path / "run")},
        }
    )
    result = Trainer(config).fit()
    data = evaluation_data(config)
    plan = make_plan(config.data.eval or [], data)

    scores = Predictor.from_checkpoint(result.checkpoint, threads=threads).evaluate(plan, data)

    assert result.metrics["tables"]["b"]["unadmitted"] > 0
    assert result.metrics["eval"] == {**scores, "auc_missing": None, "logloss_missing": None}
    assert scores["samples_skipped"] == 0


def evaluation_file(path: Path, rows: int) -> Path:
    rng = np.random.default_rng(3)
    tags = pa.array([[1, 2]] * rows)
    table = pa.table(
        {
            "label": rng.integers(0, 2, rows),
            "d1": rng.normal(size=rows),
            "d2": rng.normal(size=rows),
            "a": KEYS[rng.integers(0, KEYS.size, rows)],
            "b": KEYS[rng.integers(0, KEYS.size, rows)],
            "tags": tags,
            "w": pa.array([[0.5, 2.0]] * rows),
        }
    )
    pq.write_table(table, path, row_group_size=60, compression="none", write_page_checksum=True)
    return path


def test_rows_that_cannot_be_read_are_skipped_and_counted(checkpoint: Path, tmp_path: Path) -> None:
    path = evaluation_file(tmp_path / "e.parquet", 150)
    column = pq.ParquetFile(path).metadata.row_group(1).column(1)
    damaged = bytearray(path.read_bytes())
    damaged[column.data_page_offset + column.total_compressed_size // 2] ^= 0xFF
    path.write_bytes(damaged)
    data = DataSpec(features=FEATURES, batch_size=40, on_bad_file="skip")

    scores = Predictor.from_checkpoint(checkpoint).evaluate(make_plan([str(path)], data), data)

    assert (scores["samples"], scores["samples_skipped"]) == (90, 60)


def test_evaluation_without_label_is_refused(checkpoint: Path, tmp_path: Path) -> None:
    path = evaluation_file(tmp_path / "e.parquet", 10)
    data = DataSpec(features=replace(FEATURES, label=None), batch_size=4)

    with pytest.raises(ValueError, match="needs a label"):
        Predictor.from_checkpoint(checkpoint).evaluate(make_plan([str(path)], data), data)


# What is refused ----------------------------------------------------------------------------------

Edit = Callable[[dict[str, Any]], Any]


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda m: m["model"].clear(), "spec: Field required"),
        (lambda m: m["model"]["spec"].update(type=3), "spec.type"),
        (lambda m: m["model"]["features"].update(extra=1), "features.extra"),
        (lambda m: m["model"]["spec"].update(num_dense=1), "takes 1 dense features, 2 are listed"),
        (lambda m: m["model"]["spec"]["lookups"][2].update(feature=3), "names sparse feature 3"),
        (lambda m: m["model"]["spec"]["lookups"][2].update(table="t3"), "needs table 't3'"),
        (lambda m: m["model"]["spec"]["lookups"][2].update(operation="add"), "operation 'add'"),
        (lambda m: m["store"].pop("dense_size"), "dense_size"),
        (lambda m: m["store"].update(tables=3), r"manifest\.json .*(store|tables)"),
        (lambda m: m["store"]["tables"][0].update(dim=4), "damaged|columns"),
        (lambda m: m["files"][0].update(path=3), r"manifest\.json .*(3|path)"),
        (lambda m: m["files"][-1].update(digest="0" * 64), "is damaged"),
        (lambda m: m.update(format="else"), "is not the manifest of a checkpoint"),
    ],
)
def test_damaged_manifest_is_refused(checkpoint: Path, edit: Edit, message: str) -> None:
    manifest = unsealed(json.loads((checkpoint / "manifest.json").read_text()))
    edit(manifest)
    (checkpoint / "manifest.json").write_text(sealed_text(manifest)[0])

    with pytest.raises(CheckpointError, match=message):
        Predictor.from_checkpoint(checkpoint)


def test_a_lookup_written_before_there_were_compositions_is_read(checkpoint: Path) -> None:
    manifest = unsealed(json.loads((checkpoint / "manifest.json").read_text()))
    for lookup in manifest["model"]["spec"]["lookups"]:
        for name in ("max_norm", "parts", "operation"):
            del lookup[name]
    for feature in manifest["model"]["features"]["sparse"]:
        del feature["max_norm"]
    (checkpoint / "manifest.json").write_text(sealed_text(manifest)[0])

    assert Predictor.from_checkpoint(checkpoint).model.lookups == LOOKUPS


def test_class_that_cannot_be_imported_says_how_to_find_it(tmp_path: Path) -> None:
    checkpoint = write_checkpoint(tmp_path / "c", model_spec("no_such_module:Sum"))

    with pytest.raises(ModelError, match=r"'no_such_module' failed.* on PYTHONPATH"):
        Predictor.from_checkpoint(checkpoint)


def test_class_whose_module_fails_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "failing_model.py").write_text("undefined_name")
    monkeypatch.syspath_prepend(tmp_path)
    checkpoint = write_checkpoint(tmp_path / "c", model_spec("failing_model:Sum"))

    with pytest.raises(ModelError, match="undefined_name"):
        Predictor.from_checkpoint(checkpoint)


@pytest.mark.parametrize("kind", ["custom", "torch"])
def test_verifying_a_checkpoint_imports_no_class(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    (tmp_path / "strange_model.py").write_text(CUSTOM.format(extra=1))
    monkeypatch.syspath_prepend(tmp_path)
    model = replace(model_spec("strange_model:Sum"), type=kind)
    checkpoint = write_checkpoint(tmp_path / "c", model)

    check_model(CheckpointReader(checkpoint))

    assert "strange_model" not in sys.modules


def test_class_that_has_changed_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "grown_model.py").write_text(CUSTOM.format(extra=2))
    monkeypatch.syspath_prepend(tmp_path)
    checkpoint = write_checkpoint(tmp_path / "c", model_spec("grown_model:Sum"))

    with pytest.raises(CheckpointError, match=r"3 dense parameters.* has 4; its class has changed"):
        Predictor.from_checkpoint(checkpoint)


# The specs ----------------------------------------------------------------------------------------

names = st.text(min_size=1, max_size=4)
optimizers: st.SearchStrategy[Optimizer] = st.one_of(
    st.builds(Sgd, learning_rate=st.floats(1e-6, 1)),
    st.builds(Adagrad, initial_accumulator=st.floats(1e-6, 1)),
    st.builds(AdamAsync, beta1=st.floats(0, 0.99), apply_sparse_rmsprop=st.booleans()),
)
sparse_features = st.builds(
    SparseFeature,
    name=names,
    column=names,
    table=names,
    combiner=st.sampled_from(["sum", "mean", "sqrtn"]),
    weights=st.none() | names,
    max_length=st.none() | st.integers(1, 9),
    max_norm=st.none() | st.floats(0.1, 9),
) | st.builds(SparseFeature, name=names, column=names, table=names, combiner=st.just("max"))


@settings(max_examples=60, deadline=None)
@given(
    st.lists(names, max_size=3),
    st.lists(sparse_features, min_size=1, max_size=3),
    optimizers,
    st.dictionaries(names, st.lists(st.integers(1, 9)) | names, max_size=2),
    st.none() | names,
)
def test_specs_come_back_from_json_as_they_were(
    dense: list[str],
    sparse: list[SparseFeature],
    optimizer: Optimizer,
    options: dict[str, Any],
    label: str | None,
) -> None:
    features = FeatureSpec(
        label=label, dense=tuple(dense), dense_transform="log1p", sparse=tuple(sparse)
    )
    lookups = tuple(
        Lookup(feature=i, table=feature.table, dim=2, column=2 * i, max_norm=feature.max_norm)
        for i, feature in enumerate(sparse)
    )
    halves = tuple(Part(table=f"q{half}", dim=1, keys="quotient", divisor=2**62) for half in "ab")
    lookups += (
        Lookup(feature=0, table="q", dim=2, column=9, parts=halves, operation="concatenate"),
    )
    model = ModelSpec(
        type="custom",
        options=options,
        optimizer=optimizer,
        num_dense=len(dense),
        lookups=lookups,
        seed=2**62,
    )
    text = json.dumps({"spec": asdict(model), "features": asdict(features)})

    saved = saved_model_from_json(json.loads(text))

    assert (saved.spec, saved.features) == (model, features)
