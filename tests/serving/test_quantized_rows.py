"""Rows of fewer bits: how far they are off, what they take, and that versions still follow."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from served_jobs import SavedModel, some_samples

from serving import Model, ServingError
from serving.form.files import write_manifest
from serving.form.opening import Form
from serving.rows.quantized import INT8, kind_for, read_int8, width_of, write_int8

SAMPLES = some_samples(np.random.default_rng(77), 300)


def written(vectors: np.ndarray) -> np.ndarray:
    n, dim = vectors.shape
    values = np.full((n + 1, width_of(dim, INT8)), 7, np.float32)
    write_int8(values, np.arange(n), vectors)
    out = np.full((n, dim), np.nan, np.float32)
    read_int8(values, np.arange(n), out)
    assert (values[-1] == 7).all()
    return out


@pytest.mark.parametrize("dim", [1, 3, 4, 16, 33])
@pytest.mark.parametrize("scale", [1e-30, 1e-4, 1.0, 1e20])
@pytest.mark.parametrize("shift", [0.0, 3.0, -1000.0])
def test_values_are_off_by_half_a_step_at_most(dim: int, scale: float, shift: float) -> None:
    rng = np.random.default_rng(dim)
    vectors = ((rng.normal(size=(50, dim)) + shift) * scale).astype(np.float32)

    found = written(vectors)

    exact = vectors.astype(np.float64)
    bound = np.ptp(exact, axis=1) / 500 + np.abs(exact).max(axis=1) / 60_000
    assert (np.abs(found - exact) <= bound[:, None]).all()


def test_rows_of_one_value_and_rows_that_are_not_finite() -> None:
    vectors = np.array(
        [[0, 0, 0], [-0.5, -0.5, -0.5], [1, np.nan, 2], [1, np.inf, 2], [-3e38, 3e38, 0]],
        np.float32,
    )

    found = written(vectors)

    np.testing.assert_array_equal(found[:2], vectors[:2])
    assert np.isnan(found[2:]).all()


def test_a_row_that_is_not_there_is_left_as_it_was() -> None:
    out = np.full((2, 4), 5, np.float32)
    values = np.empty((1, 2), np.float32)
    write_int8(values, np.array([0]), np.ones((1, 4), np.float32))

    read_int8(values, np.array([-1, 0]), out)

    np.testing.assert_array_equal(out, [[5] * 4, [1] * 4])


def test_tables_that_would_not_be_smaller_are_kept_as_they_were_trained(tmp_path: Path) -> None:
    specs = {spec.name: spec for spec in SavedModel("plain", tmp_path).spec.tables}

    assert [width_of(16, kind) for kind in (0, 2, INT8)] == [16, 8, 5]
    assert kind_for(specs["a"], "int8") == INT8
    assert kind_for(specs["tags"], "bf16") == 2  # bfloat16 already
    assert kind_for(specs["tags"], "int8") == 2  # of 4 bytes a word is for bias and scale


@pytest.mark.parametrize("rows", ["bf16", "int8"])
def test_versions_with_rows_of_fewer_bits_follow_their_run_and_stay_near(
    rows: str, tmp_path: Path
) -> None:
    job = SavedModel("plain", tmp_path / "run")
    job.train(6)
    job.cut()
    with (
        Model.open(job.run, rows=rows, keep_versions=9) as kept,  # type: ignore[arg-type]
        Model.open(job.run, keep_versions=9) as trained,
    ):
        for _ in range(3):
            found, expected = kept.predict(SAMPLES).values, trained.predict(SAMPLES).values
            np.testing.assert_allclose(found, expected, atol=0.01)
            assert (found != expected).any()
            job.train(2)
            job.cut()
            assert kept.refresh() is not None
            assert trained.refresh() is not None
        assert [each.form.rsplit("-", 1)[1] for each in kept.versions] == [rows] * 4
        assert [each.form.split("-")[0] for each in kept.versions] == ["base", *["overlay"] * 3]
        assert kept.current.form.vector_bytes < trained.current.form.vector_bytes
        one, other = kept.current.form.folder, trained.current.form.folder
        assert one.is_dir()
        assert other.is_dir(), "neither server removes the other's forms"
    with Model.open(job.run, rows=rows) as again:  # type: ignore[arg-type]
        np.testing.assert_array_equal(again.predict(SAMPLES).values, kept.predict(SAMPLES).values)


def test_a_form_that_does_not_know_how_its_rows_are_kept_is_refused(tmp_path: Path) -> None:
    job = SavedModel("plain", tmp_path / "run")
    job.train(1)
    job.cut()
    with Model.open(job.run) as model:
        form = model.current.form
        write_manifest(form.folder, replace(form.manifest, rows="float16"))  # type: ignore[arg-type]
        with pytest.raises(ServingError, match="it keeps rows as 'float16'"):
            Form(form.folder)
