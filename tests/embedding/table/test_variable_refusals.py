"""What a table refuses, and that nothing has changed then."""

import dataclasses

import numpy as np
import pytest

from embedding import EmbeddingVariable, TableEntries, TableSpec, step_scalars
from embedding.spec.admission import CounterAdmission
from embedding.spec.initial_values import Constant
from embedding.spec.optimizers import Sgd

DIM = 3


def table(*, min_count=None, initial=1.0, optimizer=None, **fields):
    admission = None if min_count is None else CounterAdmission(min_count=min_count)
    return EmbeddingVariable(
        TableSpec(
            name="t",
            dim=DIM,
            initializer=Constant(value=initial),
            optimizer=optimizer or Sgd(),
            admission=admission,
            **fields,
        )
    )


def pull(variable, keys, counts=None):
    keys = np.asarray(keys, np.int64)
    values = np.full((len(keys), variable.spec.dim), np.nan, np.float32)
    admitted = np.full(len(keys), 9, np.uint8)
    variable.pull(keys, None if counts is None else np.array(counts, np.uint32), values, admitted)
    return values, admitted


def apply(variable, keys, *, counts=None, has_gradient=None, gradient=2.0, step=0, lr=0.1):
    keys = np.asarray(keys, np.int64)
    variable.apply(
        keys,
        np.ones(len(keys), np.int64) if counts is None else np.array(counts, np.int64),
        np.full((len(keys), variable.spec.dim), gradient, np.float32),
        None if has_gradient is None else np.array(has_gradient, np.uint8),
        step=step,
        scale=1.0,
        scalars=step_scalars(variable.spec.optimizer, learning_rate=lr, step=step),
    )


def state(variable):
    """Everything that a table holds, as plain values."""
    rows, counters = variable.export(), variable.export_counters()
    columns = [getattr(rows, field.name).tolist() for field in dataclasses.fields(TableEntries)]
    return columns, counters.keys.tolist(), counters.frequency.tolist(), counters.version.tolist()


# Gradients that are not finite ------------------------------------------------------------------


def gradients_with(bad):
    gradients = np.full((4, DIM), 2.0, np.float32)
    gradients[2, 1] = bad
    return gradients


def apply_rows(variable, gradients, has_gradient=None):
    scalars = step_scalars(variable.spec.optimizer, learning_rate=0.1, step=1)
    flags = None if has_gradient is None else np.array(has_gradient, np.uint8)
    keys, ones = np.array([1, 2, 3, 4]), np.ones(4, np.int64)
    variable.apply(keys, ones, gradients, flags, step=1, scale=1.0, scalars=scalars)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_gradient_that_is_not_finite_is_refused_before_anything_changes(bad):
    variable = table()
    apply(variable, [1, 3])
    before = state(variable)

    with pytest.raises(ValueError, match=r"table t: the gradients of 1 of 4 keys.* key 3"):
        apply_rows(variable, gradients_with(bad))

    assert state(variable) == before


def test_a_gradient_that_is_not_finite_is_skipped_and_counted_where_asked():
    variable = EmbeddingVariable(table().spec, on_non_finite="skip")
    apply(variable, [1, 3])

    apply_rows(variable, gradients_with(np.nan))

    assert variable.num_non_finite == 1
    assert pull(variable, [1, 2, 3, 4])[0][:, 0].tolist() == pytest.approx([0.6, 0.8, 0.8, 0.8])
    # Its key is counted as one without a gradient is.
    assert variable.frequency(np.array([1, 2, 3, 4])).tolist() == [2, 1, 2, 1]


def test_what_stands_for_no_gradient_may_be_anything():
    variable = table()

    apply_rows(variable, gradients_with(np.nan), has_gradient=[1, 1, 0, 1])

    assert len(variable) == 3
    assert variable.num_non_finite == 0


# Arguments that are refused ---------------------------------------------------------------------


@pytest.mark.parametrize("scale", [np.nan, np.inf, 1e39])
def test_a_scale_that_is_not_finite_is_refused_before_anything_changes(scale):
    variable = table()
    ones = np.ones(1, np.int64)
    with pytest.raises(ValueError, match="scale must be"):
        variable.apply(
            ones, ones, np.ones((1, DIM), np.float32), None, step=0, scale=scale, scalars=[0.1]
        )
    assert len(variable) == 0


def test_scalars_that_are_not_finite_are_refused_before_anything_changes():
    variable = table()
    ones = np.ones(1, np.int64)
    with pytest.raises(ValueError, match="finite scalars"):
        variable.apply(
            ones, ones, np.ones((1, DIM), np.float32), None, step=0, scale=1.0, scalars=[np.nan]
        )
    assert len(variable) == 0


def test_negative_counts_are_refused():
    variable = table(min_count=3)
    with pytest.raises(ValueError, match="counts must be >= 0, got -5"):
        apply(variable, [1, 2], counts=[1, -5])
    assert state(variable) == state(table(min_count=3))


@pytest.mark.parametrize(
    "arguments",
    [
        {"rows_per_bucket": -1},
        {"l2_weight_threshold": -1.0},
        {"l2_weight_threshold": np.nan},
        {"rows_per_bucket": 1, "evict_first": "least_frequentt"},
    ],
)
def test_an_eviction_out_of_range_is_refused(arguments):
    variable = table()
    apply(variable, [1, 2])
    with pytest.raises(ValueError, match=list(arguments)[-1]):
        variable.evict(**arguments)
    assert len(variable) == 2


def test_an_unknown_choice_is_refused():
    with pytest.raises(ValueError, match="on_non_finite must be one of fail, skip, got 'ignore'"):
        EmbeddingVariable(table().spec, on_non_finite="ignore")


@pytest.mark.parametrize(
    "fields",
    [
        {"optimizer": "adam"},
        {"admission": "counter"},
        {"eviction": 3},
        {"initializer": "zeros"},
        {"name": "\u00e9"},
    ],
)
def test_a_spec_of_another_type_is_refused(fields):
    with pytest.raises(ValueError, match=next(iter(fields))):
        TableSpec(**{"name": "t", "dim": 2, **fields})
