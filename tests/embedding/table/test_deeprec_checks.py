"""What DeepRec's own tests check of filters and eviction, as our semantics have it.

Rows start at 1, a gradient is 2 per occurrence, SGD at learning rate 0.1, so k updates of one
occurrence each leave 1 - 0.2 k. Ours admits with the batch that reaches min_count.
"""

import numpy as np
import pytest

from embedding import EmbeddingVariable, TableSpec, step_scalars
from embedding.spec.admission import BloomAdmission, CounterAdmission
from embedding.spec.initial_values import Constant
from embedding.spec.optimizers import Adagrad, AdamAsync, Sgd

OPTIMIZERS = [Sgd(), Adagrad(), AdamAsync(), AdamAsync(apply_sparse_rmsprop=True)]
FILTERS = [
    CounterAdmission(min_count=3),
    *(BloomAdmission(min_count=3, max_elements=5, counter_bits=bits) for bits in (8, 16, 32, 64)),
]


def table(admission=None, *, optimizer=None, initial=1.0, default_value=0.0):
    return EmbeddingVariable(
        TableSpec(
            name="t",
            dim=3,
            initializer=Constant(value=initial),
            optimizer=optimizer or Sgd(),
            admission=admission,
            default_value=default_value,
        )
    )


def look_up(variable, keys, counts=None):
    values = np.empty((len(keys), 3), np.float32)
    admitted = np.empty(len(keys), np.uint8)
    variable.pull(keys, counts, values, admitted)
    return values, admitted


def train(variable, batch, *, step):
    """One lookup and update; return the first column by key."""
    keys, counts = np.unique(np.array(batch, np.int64), return_counts=True)
    values, admitted = look_up(variable, keys, counts.astype(np.uint32))
    gradients = np.repeat(2 * counts.astype(np.float32), 3).reshape(-1, 3)
    scalars = step_scalars(variable.spec.optimizer, learning_rate=0.1, step=step)
    variable.apply(keys, counts, gradients, admitted, step=step, scale=1.0, scalars=scalars)
    return dict(zip(keys.tolist(), values[:, 0].tolist(), strict=True))


@pytest.mark.parametrize("optimizer", OPTIMIZERS, ids=str)
@pytest.mark.parametrize("admission", FILTERS, ids=str)
def test_15_and_16_the_third_lookup_is_the_first_real_one(admission, optimizer):
    variable = table(admission, optimizer=optimizer)

    seen = [train(variable, [1], step=step)[1] for step in range(4)]

    assert seen[:3] == [0, 0, 1]
    assert seen[3] not in (0, 1), "trained by the third"


@pytest.mark.parametrize("admission", FILTERS, ids=str)
def test_17_what_is_not_admitted_reads_the_default_value(admission):
    variable = table(admission, initial=0.0, default_value=0.2)

    seen = [train(variable, [1], step=step)[1] for step in range(4)]

    assert seen == pytest.approx([0.2, 0.2, 0.0, -0.2])


@pytest.mark.parametrize("admission", FILTERS, ids=str)
def test_18_occurrences_within_a_batch_count(admission):
    variable = table(admission)
    batch = [1, 1, 1, 1, 2, 2, 2, 3, 3, 4]

    first, second = (train(variable, batch, step=step) for step in range(2))

    assert first == {1: 1, 2: 1, 3: 0, 4: 0}
    assert second == pytest.approx({1: 0.2, 2: 0.4, 3: 1, 4: 0})


def test_19_before_the_fifth_lookup_no_key_is_real():
    variable = table(CounterAdmission(min_count=5))

    seen = [set(train(variable, [0, 1, 2, 5, 6, 7], step=s).values()) for s in range(5)]

    assert seen == [{0.0}] * 4 + [{1.0}]


def test_20_unadmitted_keys_have_frequency_and_version_and_questions_create_nothing():
    variable = table(CounterAdmission(min_count=3))
    for step, batch in enumerate(([1, 2, 3], [1, 3, 5], [1, 5, 7])):
        train(variable, batch, step=step)

    keys = np.arange(1, 8)
    assert variable.frequency(keys).tolist() == [3, 1, 2, 0, 2, 0, 1]
    assert variable.version(keys).tolist() == [2, 0, 1, -1, 2, -1, 2]
    assert len(variable) + variable.num_unadmitted == 5


@pytest.mark.parametrize(
    ("admission", "rows", "counters"),
    [
        (None, {1: 6, 2: 4, 3: 2}, {}),
        (CounterAdmission(min_count=3), {1: 6, 2: 4}, {3: 2}),
        (BloomAdmission(min_count=3, max_elements=5), {1: 6, 2: 4}, {}),
    ],
    ids=str,
)
def test_21_to_23_exports_split_keys_by_admission(admission, rows, counters):
    variable = table(admission)
    for step in range(2):
        train(variable, [1, 1, 1, 2, 2, 3], step=step)

    exported, counted = variable.export(), variable.export_counters()

    assert dict(zip(exported.keys.tolist(), exported.frequency.tolist(), strict=True)) == rows
    assert dict(zip(counted.keys.tolist(), counted.frequency.tolist(), strict=True)) == counters
    assert set(exported.version.tolist()) == {1}


def test_24_the_version_is_the_step_of_the_last_update():
    variable = table()
    for step in range(2):
        train(variable, [5], step=step)

    assert variable.export().version.tolist() == [1]


def test_25_light_rows_go_and_return_with_their_initial_value():
    variable = table()
    train(variable, [0], step=0)  # .8: half the squared sum is .96
    train(variable, [1, 1], step=1)  # .6: .54

    assert variable.evict(l2_weight_threshold=0.9).tolist() == [1]
    assert look_up(variable, np.array([0, 1]))[0][:, 0] == pytest.approx([0.8, 1.0])


def test_26_a_key_outlives_its_steps_by_none():
    variable = table()
    train(variable, [5], step=4)
    steps_to_live = 3

    assert variable.evict(4 + steps_to_live - steps_to_live).tolist() == []
    assert variable.evict(4 + steps_to_live + 1 - steps_to_live).tolist() == [5]


@pytest.mark.parametrize("admission", [None, *FILTERS[:2]], ids=str)
def test_27_lookups_of_an_evaluation_leave_an_empty_table_empty(admission):
    variable = table(admission)

    for batch in ([1, 2], [2, 3], [4]):
        look_up(variable, np.array(batch))

    assert (len(variable), variable.num_unadmitted) == (0, 0)
    assert variable.frequency(np.arange(5)).tolist() == [0] * 5
