"""Arguments that kernels could not take are refused by name, before anything changes."""

import numpy as np
import pytest

from embedding import EmbeddingVariable, TableEntries, TableSpec
from embedding.spec.admission import CounterAdmission
from embedding.spec.optimizers import Adagrad, Sgd

DIM = 3


def table(*, optimizer=None):
    return EmbeddingVariable(
        TableSpec(
            name="t",
            dim=DIM,
            optimizer=optimizer or Sgd(),
            admission=CounterAdmission(min_count=2),
        )
    )


def state(variable):
    rows, counters = variable.export(), variable.export_counters()
    columns = (rows.keys, rows.frequency, rows.version, rows.vectors, rows.slots, counters.keys)
    return [column.tolist() for column in (*columns, counters.frequency, counters.version)]


def arguments():
    return {
        "keys": np.arange(4),
        "counts": np.ones(4, np.int64),
        "gradients": np.ones((4, DIM), np.float32),
        "has_gradient": np.array([0, 1, 1, 0], np.uint8),
    }


@pytest.mark.parametrize(
    ("name", "wrong"),
    [
        ("keys", np.arange(4, dtype=np.uint64)),
        ("keys", np.arange(8).reshape(4, 2)),
        ("keys", [1, 2, 3, 4]),
        ("counts", np.ones(4, np.int32)),
        ("counts", np.ones(3, np.int64)),
        ("gradients", np.ones((4, DIM))),
        ("gradients", np.ones((4, DIM + 1), np.float32)),
        ("has_gradient", np.ones(4, bool)),
        ("has_gradient", np.ones(5, np.uint8)),
    ],
)
def test_an_apply_names_the_argument_that_is_wrong_and_changes_nothing(name, wrong):
    variable = table()
    variable.apply(**arguments(), step=0, scale=1.0, scalars=(0.1,))
    before = state(variable)

    with pytest.raises(ValueError, match=f"^{name} must be"):
        variable.apply(**(arguments() | {name: wrong}), step=1, scale=1.0, scalars=(0.1,))

    assert state(variable) == before


def test_an_apply_with_scalars_of_another_optimizer_changes_nothing():
    variable = table()

    with pytest.raises(ValueError, match="scalars"):
        variable.apply(**arguments(), step=1, scale=1.0, scalars=(0.1, 0.2, 0.3, 0.4, 0.5))

    assert len(variable) == 0


@pytest.mark.parametrize(
    ("name", "wrong"),
    [
        ("keys", np.arange(4, dtype=np.int32)),
        ("counts", np.ones(4, np.int64)),
        ("values", np.empty((4, DIM), np.float64)),
        ("values", np.empty((DIM, 4), np.float32).T),
        ("admitted", np.empty(4, np.int8)),
        ("admitted", np.frombuffer(bytes(4), np.uint8)),
    ],
)
def test_a_pull_names_the_argument_that_is_wrong(name, wrong):
    given = {
        "keys": np.arange(4),
        "counts": np.ones(4, np.uint32),
        "values": np.empty((4, DIM), np.float32),
        "admitted": np.empty(4, np.uint8),
    }

    with pytest.raises(ValueError, match=f"^{name} "):
        table().pull(**(given | {name: wrong}))


def test_an_import_of_another_width_is_refused():
    variable = table(optimizer=Adagrad())
    one = np.array([1])
    no_slots = TableEntries(one, one, one, np.ones((1, DIM), "f4"), np.ones((1, 0), "f4"))

    with pytest.raises(ValueError, match=r"^slots must be float32\[1, 3\], got float32\[1, 0\]"):
        variable.import_rows(no_slots)

    assert len(variable) == 0


def test_inputs_may_be_read_only_unaligned_or_strided_and_are_left_alone():
    plain, odd = table(), table()
    keys, counts = np.arange(4), np.full(4, 3, np.int64)
    gradients = np.arange(24, dtype=np.float32).reshape(4, 6)
    unaligned = np.frombuffer(b"x" + counts.tobytes(), np.int64, offset=1)
    frozen = np.frombuffer(keys.tobytes(), np.int64)
    scalars = (0.1,)

    plain.apply(keys, counts, gradients[:, ::2].copy(), None, step=1, scale=0.5, scalars=scalars)
    odd.apply(frozen, unaligned, gradients[:, ::2], None, step=1, scale=0.5, scalars=scalars)

    assert state(odd) == state(plain)
    assert gradients.tolist() == np.arange(24).reshape(4, 6).tolist()
