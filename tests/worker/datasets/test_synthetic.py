"""Generated data: what a seed fixes, how ids are spread, that the stated best AUC is the best."""

import json
import shutil
from collections import namedtuple
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from worker.datasets import planted
from worker.datasets.files import DatasetError
from worker.datasets.planted import (
    CARDINALITIES,
    CHUNK_ROWS,
    Samples,
    draw,
    draw_purchases,
    exponents,
    top_share,
)
from worker.datasets.synthetic import (
    SCHEMA,
    CriteoLike,
    best_auc_for,
    read_about,
    write_criteo_like,
)
from worker.metrics import exact_auc

SMALL = CriteoLike(rows=1000, test_rows=200, files=2)


@pytest.fixture(scope="module")
def samples() -> Samples:
    """262,144 train rows."""
    chunks = [draw(seed=7, split="train", chunk=i) for i in range(16)]
    return Samples(
        labels=np.concatenate([c.labels for c in chunks]),
        dense=np.concatenate([c.dense for c in chunks], axis=1),
        nulls=np.concatenate([c.nulls for c in chunks], axis=1),
        ids=np.concatenate([c.ids for c in chunks], axis=1),
        logits=np.concatenate([c.logits for c in chunks]),
        strengths=np.concatenate([c.strengths for c in chunks], axis=1),
    )


def test_one_percent_of_a_large_columns_ids_get_90_percent_of_the_samples(
    samples: Samples,
) -> None:
    large = [c for c, n in enumerate(CARDINALITIES) if n >= 10_000]
    assert len(large) == 10
    for c in large:
        assert top_share(CARDINALITIES[c], exponents()[c], 0.01) == pytest.approx(0.9, abs=1e-3)

    for c in large:
        if CARDINALITIES[c] < 100_000:  # the sample is large enough to tell the top 1 %
            counts = np.sort(np.unique(samples.ids[c], return_counts=True)[1])
            top = counts[-(CARDINALITIES[c] // 100) :].sum() / samples.labels.size
            assert top == pytest.approx(0.9, abs=0.01)


def test_ids_are_arbitrary_int64_within_the_cardinality(samples: Samples) -> None:
    distinct = [np.unique(column) for column in samples.ids]

    for ids, cardinality in zip(distinct, CARDINALITIES, strict=True):
        assert ids.size <= cardinality
        if cardinality < 1000:
            assert ids.size > 0.95 * cardinality
    pooled = np.concatenate(distinct)
    assert np.unique(pooled).size == pooled.size, "an id belongs to one column"
    assert 0.49 < (pooled < 0).mean() < 0.51
    assert 0.49 < (pooled & 1).mean() < 0.51


def test_dense_values_are_heavy_tailed_counts_with_nulls(samples: Samples) -> None:
    dense = samples.dense

    np.testing.assert_array_equal(dense, np.floor(dense))
    assert dense.min() == -1.0
    assert np.flatnonzero((dense < 0).any(axis=1)).tolist() == [1]
    assert (dense.max(axis=1) > 100 * np.maximum(np.median(dense, axis=1), 1)).all()
    null_rates = samples.nulls.mean(axis=1)
    assert ((null_rates > 0.045) & (null_rates < 0.21)).sum() >= 8
    assert not dense[samples.nulls].any()


def test_labels_are_draws_of_the_stated_probability(samples: Samples) -> None:
    probability = 1 / (1 + np.exp(-samples.logits))
    assert 0.23 < samples.labels.mean() < 0.27

    for bucket in np.array_split(np.argsort(samples.logits), 20):
        expected = probability[bucket].mean()
        error = (expected * (1 - expected) / bucket.size) ** 0.5
        assert abs(samples.labels[bucket].mean() - expected) < 4.5 * error


def test_best_auc_is_about_80_percent_and_needs_the_pairs(
    samples: Samples, monkeypatch: pytest.MonkeyPatch
) -> None:
    def auc_of_drawn_logits() -> float:
        logits = np.concatenate([draw(seed=7, split="train", chunk=i).logits for i in range(4)])
        return exact_auc(logits, samples.labels[: logits.size])

    best = auc_of_drawn_logits()
    monkeypatch.setattr(planted, "PAIRS", ())  # the same features, judged by less
    without_pairs = auc_of_drawn_logits()

    assert 0.79 < best < 0.82
    assert best - without_pairs > 0.02


def test_same_arguments_draw_the_same_and_others_draw_others() -> None:
    first = draw(seed=7, split="train", chunk=3)

    again = draw(seed=7, split="train", chunk=3)
    np.testing.assert_array_equal(first.ids, again.ids)
    np.testing.assert_array_equal(first.labels, again.labels)
    for other in (
        draw(seed=8, split="train", chunk=3),
        draw(seed=7, split="test", chunk=3),
        draw(seed=7, split="train", chunk=4),
    ):
        assert (first.dense != other.dense).mean() > 0.5


def test_rows_do_not_depend_on_files_row_groups_or_their_number(tmp_path: Path) -> None:
    n = CHUNK_ROWS + 100
    long = CriteoLike(rows=n, test_rows=1, files=3, row_group_rows=5000)
    write_criteo_like(tmp_path / "long", long)
    write_criteo_like(tmp_path / "short", CriteoLike(rows=n - 50, test_rows=1, files=1))

    expected = pq.read_table(tmp_path / "long/train").slice(0, n - 50)
    assert pq.read_table(tmp_path / "short/train").equals(expected)
    parts = sorted((tmp_path / "long/train").iterdir())
    assert [p.name for p in parts] == [f"part-0000{i}.parquet" for i in range(3)]
    rows = [pq.read_metadata(p).num_rows for p in parts]
    assert sum(rows) == n
    assert max(rows) - min(rows) <= 1
    assert pq.read_metadata(parts[0]).row_group(0).num_rows == 5000


def test_about_states_what_the_files_hold(tmp_path: Path) -> None:
    wanted = CriteoLike(rows=60, test_rows=20_000, files=4, seed=9)

    about = write_criteo_like(tmp_path / "d", wanted)

    assert about == read_about(tmp_path / "d")
    assert (about["rows"], about["test_rows"], about["seed"]) == (60, 20_000, 9)
    assert about["cardinalities"]["C3"] == 10_131_227
    train, test = pq.read_table(tmp_path / "d/train"), pq.read_table(tmp_path / "d/test")
    assert train.schema == test.schema == SCHEMA
    assert (train.num_rows, test.num_rows) == (60, 20_000)
    chunks = [draw(seed=9, split="test", chunk=i) for i in range(2)]
    logits = np.concatenate([c.logits for c in chunks])[:20_000]
    labels = test["label"].to_numpy()
    assert abs(about["best_auc"] - exact_auc(logits, labels)) <= about["best_auc_error_bound"]
    assert about["best_auc_error_bound"] < 1e-4
    loss = (np.logaddexp(0, logits) - logits * labels).mean()
    assert about["best_logloss"] == pytest.approx(loss, abs=1e-6)
    assert about["expected_best_auc"] == pytest.approx(about["best_auc"], abs=0.015)
    assert about["expected_best_logloss"] == pytest.approx(about["best_logloss"], abs=0.015)
    assert about["base_rate"] == pytest.approx(labels.mean())


def test_purchases_are_draws_of_clicks_alone_and_change_nothing_else(samples: Samples) -> None:
    bought = [draw_purchases(draw(seed=7, split="train", chunk=i), seed=7, split="train", chunk=i)
              for i in range(4)]  # fmt: skip
    labels = np.concatenate([each.labels for each in bought])
    logits = np.concatenate([each.logits for each in bought])
    clicked = samples.labels[: labels.size] == 1

    assert not labels[~clicked].any()
    assert 0.1 < labels[clicked].mean() < 0.3
    assert 0.7 < exact_auc(logits[clicked], labels[clicked]) < 0.85
    of_clicks = exact_auc(samples.logits[: labels.size][clicked], labels[clicked])
    assert of_clicks < 0.68, "what is clicked says little of what is bought then"
    probability = 1 / (1 + np.exp(-logits))
    for bucket in np.array_split(np.flatnonzero(clicked)[np.argsort(logits[clicked])], 10):
        expected = probability[bucket].mean()
        error = (expected * (1 - expected) / bucket.size) ** 0.5
        assert abs(labels[bucket].mean() - expected) < 4.5 * error


def test_a_data_set_with_purchases_has_one_column_more_and_states_their_best(
    tmp_path: Path,
) -> None:
    wanted = CriteoLike(rows=100, test_rows=9000, files=1)
    plain = write_criteo_like(tmp_path / "plain", wanted)
    about = write_criteo_like(tmp_path / "both", replace(wanted, purchases=True))

    test = pq.read_table(tmp_path / "both/test")
    assert test.column_names[:2] == ["label", "buy"]
    assert test.drop_columns(["buy"]).equals(pq.read_table(tmp_path / "plain/test"))
    assert about["best_auc"] == plain["best_auc"]
    assert "purchases" not in plain
    clicked, buys = test["label"].to_numpy() == 1, test["buy"].to_numpy()
    samples = draw(seed=7, split="test", chunk=0)
    logits = draw_purchases(samples, seed=7, split="test", chunk=0).logits[:9000]
    found = about["purchases"]
    expected = exact_auc(logits[clicked], buys[clicked])
    assert found["of_clicks"]["best_auc"] == pytest.approx(expected, abs=1e-3)
    assert found["of_clicks"]["base_rate"] == pytest.approx(buys[clicked].mean())
    product = 1 / (1 + np.exp(-logits)) / (1 + np.exp(-samples.logits[:9000]))
    assert found["of_impressions"]["best_auc"] == pytest.approx(exact_auc(product, buys), abs=1e-3)
    losses = -(buys * np.log(product) + (1 - buys) * np.log(1 - product))
    assert found["of_impressions"]["best_logloss"] == pytest.approx(losses.mean(), abs=1e-5)
    tests = [str(path) for path in (tmp_path / "both/test").iterdir()]
    assert best_auc_for(tests, "label") == about["best_auc"]
    assert best_auc_for(tests, "buy") is None


def test_default_test_rows_are_a_tenth_and_at_least_one() -> None:
    assert CriteoLike(rows=1000).test_rows == 100
    assert CriteoLike(rows=3).test_rows == 1


def test_one_row_is_a_data_set_without_a_best_auc(tmp_path: Path) -> None:
    about = write_criteo_like(tmp_path / "d", CriteoLike(rows=1))

    assert about["best_auc"] is None
    assert pq.read_table(tmp_path / "d/train").num_rows == 1
    assert best_auc_for([str(tmp_path / "d/test/part-00000.parquet")]) is None


def test_best_auc_is_found_for_test_files_of_one_data_set_only(tmp_path: Path) -> None:
    about = write_criteo_like(tmp_path / "d", SMALL)
    write_criteo_like(tmp_path / "e", SMALL)

    def best(*names: str) -> float | None:
        return best_auc_for([str(tmp_path / name) for name in names])

    assert best("d/test/part-00000.parquet", "d/test/x.parquet") == about["best_auc"]
    assert best("d/train/part-00000.parquet") is None
    assert best("d/test/a.parquet", "e/test/a.parquet") is None
    assert best("elsewhere/test/a.parquet") is None
    assert best_auc_for([]) is None


@pytest.mark.parametrize("content", ["{", "[]", '{"format": "other", "best_auc": 1.0}', "\x00"])
def test_an_about_file_of_another_program_is_ignored(tmp_path: Path, content: str) -> None:
    (tmp_path / "about.json").write_text(content)

    assert read_about(tmp_path) is None
    assert best_auc_for([str(tmp_path / "test/part-00000.parquet")]) is None


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"rows": 0}, "rows must be >= 1, got 0"),
        ({"rows": 5, "test_rows": 0}, "test_rows must be >= 1, got 0"),
        ({"rows": 5, "files": 0}, "files must be >= 1, got 0"),
        ({"rows": 5, "row_group_rows": 0}, "row_group_rows must be >= 1, got 0"),
        ({"rows": 5, "seed": -1}, "seed must be in .* got -1"),
        ({"rows": 5, "seed": 1 << 64}, "seed must be in"),
    ],
)
def test_impossible_data_sets_are_refused(fields: dict[str, int], message: str) -> None:
    with pytest.raises(DatasetError, match=message):
        CriteoLike(**fields)


# Where data sets go


class Stopped(Exception):
    pass


def stop(rows: int) -> None:
    raise Stopped


def tree(path: Path) -> dict[str, bytes]:
    return {str(p.relative_to(path)): p.read_bytes() for p in path.rglob("*") if p.is_file()}


def test_failure_leaves_no_directory_behind(tmp_path: Path) -> None:
    with pytest.raises(Stopped):
        write_criteo_like(tmp_path / "d", SMALL, on_rows=stop)

    assert not (tmp_path / "d").exists()


def test_failed_overwrite_leaves_the_old_data(tmp_path: Path) -> None:
    write_criteo_like(tmp_path, SMALL)
    before = tree(tmp_path)

    with pytest.raises(Stopped):
        write_criteo_like(tmp_path, CriteoLike(rows=10), overwrite=True, on_rows=stop)

    assert tree(tmp_path) == before


def test_overwrite_replaces_all_of_the_old_data(tmp_path: Path) -> None:
    write_criteo_like(tmp_path, SMALL)
    (tmp_path / "valid").mkdir()

    write_criteo_like(tmp_path, CriteoLike(rows=10, files=1), overwrite=True)

    assert sorted(tree(tmp_path)) == [
        "about.json",
        "test/part-00000.parquet",
        "train/part-00000.parquet",
    ]
    assert pq.read_table(tmp_path / "train").num_rows == 10


def test_what_a_killed_run_left_is_no_obstacle(tmp_path: Path) -> None:
    (tmp_path / ".partial/train").mkdir(parents=True)
    (tmp_path / ".partial/train/part-00000.parquet").write_bytes(b"PAR1")

    write_criteo_like(tmp_path, SMALL)

    assert not (tmp_path / ".partial").exists()
    assert pq.read_table(tmp_path / "train").num_rows == 1000


def occupied(out: Path) -> None:
    (out / "train").mkdir(parents=True)


def foreign(out: Path) -> None:
    out.mkdir()
    (out / "thesis.txt").write_text("dear")


@pytest.mark.parametrize(
    ("prepare", "overwrite", "message"),
    [
        (occupied, False, "is not empty; use --overwrite"),
        (foreign, True, "holds 'thesis.txt'"),
        (lambda out: out.write_text("file"), True, "is not a directory"),
    ],
)
def test_a_place_that_is_taken_is_refused_untouched(
    tmp_path: Path, prepare: Callable[[Path], None], overwrite: bool, message: str
) -> None:
    out = tmp_path / "d"
    prepare(out)
    before = sorted(tmp_path.rglob("*"))

    with pytest.raises(DatasetError, match=message):
        write_criteo_like(out, SMALL, overwrite=overwrite)

    assert sorted(tmp_path.rglob("*")) == before


def test_a_full_disk_is_noticed_before_writing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10**9, 10**9, 10**6))

    write_criteo_like(tmp_path / "small", SMALL)
    with pytest.raises(DatasetError, match=r"need about 880 MB, but .* 1 MB free"):
        write_criteo_like(tmp_path / "large", CriteoLike(rows=10_000_000))

    assert not (tmp_path / "large").exists()


def test_about_is_json_with_a_version(tmp_path: Path) -> None:
    write_criteo_like(tmp_path, SMALL)

    about = json.loads((tmp_path / "about.json").read_text())

    assert about["format_version"] == planted.WORLD_VERSION
    assert about["columns"]["sparse"][-1] == "C26"
    assert pa.schema(pq.read_schema(tmp_path / "train/part-00001.parquet")).equals(SCHEMA)
