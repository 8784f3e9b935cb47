"""Rows as Arrow columns, bit for bit, and what is refused."""

import re

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from embedding import CounterEntries, EmbeddingVariable, TableEntries, TableSpec, rule_for
from embedding.arrow import counters_from_arrow, counters_to_arrow, from_arrow, to_arrow
from embedding.spec.optimizers import OPTIMIZERS, Adagrad, AdamAsync, RmsProp, Sgd

DIM = 3
COLUMNS = ("keys", "frequency", "version", "vectors", "slots")

with_options = [Sgd(momentum=0.9), RmsProp(momentum=0.5), AdamAsync(apply_sparse_rmsprop=True)]
every_optimizer = [kind() for kind in OPTIMIZERS.values()] + with_options


def some_rows(spec, n=50):
    rng = np.random.default_rng(3)
    width = rule_for(spec.optimizer, sparse=True).row_width(spec.dim)
    values = rng.normal(size=(n, width)).astype(np.float32)
    values[0], values[1] = -0.0, np.float32(1e-45)
    keys = np.concatenate([[-(2**63), 2**63 - 1, 0, -1], rng.integers(1, 2**62, n)])[:n]
    frequency, version = rng.integers(0, 2**63 - 1, (2, n))
    return TableEntries(
        keys, frequency, version, values[:, : spec.dim].copy(), values[:, spec.dim :].copy()
    )


def bits(entries):
    return [np.ascontiguousarray(getattr(entries, name)).tobytes() for name in COLUMNS]


@pytest.fixture
def spec():
    return TableSpec(name="t", dim=DIM, optimizer=AdamAsync())


@pytest.fixture
def table(spec):
    return to_arrow(some_rows(spec), spec)


@pytest.mark.parametrize("optimizer", every_optimizer, ids=lambda o: o.type)
def test_rows_with_the_slots_of_every_optimizer_come_back(optimizer):
    spec = TableSpec(name="t", dim=DIM, optimizer=optimizer)
    variable, again = EmbeddingVariable(spec), EmbeddingVariable(spec)
    variable.import_rows(some_rows(spec))

    exported = variable.export_arrow()
    again.import_arrow(exported)

    assert bits(again.export()) == bits(variable.export())
    slots = [f"slot_{slot.name}" for slot in rule_for(optimizer, sparse=True).slots]
    assert exported.schema.names == ["key", "frequency", "version", "vector", *slots]


def test_columns_have_the_types_of_the_format(table):
    found = {field.name: str(field.type) for field in table.schema}

    numbers = dict.fromkeys(("key", "frequency", "version"), "int64")
    lists = dict.fromkeys(("vector", "slot_m", "slot_v"), "fixed_size_list<item: float>[3]")
    assert found == {**numbers, **lists}


def test_slots_have_columns_of_their_own():
    spec = TableSpec(name="t", dim=2, optimizer=AdamAsync())
    one = np.ones(1, np.int64)
    slots = np.array([[1, 2, 3, 4]], np.float32)

    row = to_arrow(TableEntries(one, one, one, slots[:, :2], slots), spec).to_pylist()[0]

    assert (row["slot_m"], row["slot_v"]) == ([1, 2], [3, 4])


def test_rows_in_any_pieces_and_columns_in_any_order_come_back(spec, table):
    pieces = pa.concat_tables([table.slice(0, 7), table.slice(7, 0), table.slice(7)])
    shuffled = pieces.select(sorted(table.schema.names))
    batch = table.to_batches()[0]

    for form in (shuffled, batch):
        assert bits(from_arrow(form, spec)) == bits(some_rows(spec))
    part = from_arrow(batch.slice(5, 10), spec)
    assert bits(part) == bits(some_rows(spec).take(np.arange(5, 15)))


def test_no_rows_come_back(spec):
    nothing = to_arrow(TableEntries.empty(spec), spec)

    assert bits(from_arrow(nothing, spec)) == bits(TableEntries.empty(spec))
    assert from_arrow(nothing, spec).slots.shape == (0, 2 * DIM)


def test_rows_come_back_through_parquet(spec, table, tmp_path):
    pq.write_table(table, tmp_path / "rows.parquet")

    again = from_arrow(pq.read_table(tmp_path / "rows.parquet"), spec)

    assert bits(again) == bits(some_rows(spec))


def test_keys_and_vectors_are_not_copied(spec):
    entries = some_rows(spec)

    again = from_arrow(to_arrow(entries, spec), spec)

    for name in ("keys", "frequency", "version", "vectors"):
        assert np.shares_memory(getattr(again, name), getattr(entries, name))


def test_counters_come_back():
    numbers = np.array([2**63 - 1, -(2**63), 0])
    counters = CounterEntries(numbers, numbers + 1, numbers[::-1].copy())

    again = counters_from_arrow(counters_to_arrow(counters))

    for name in ("keys", "frequency", "version"):
        assert getattr(again, name).tolist() == getattr(counters, name).tolist()


# What is refused ----------------------------------------------------------------------------------


def replaced(table, name, column):
    return table.set_column(table.schema.get_field_index(name), name, column)


def with_nulls(table, name):
    values = [None, *table[name].to_pylist()[1:]]
    return replaced(table, name, pa.array(values, table[name].type))


WRONG = {
    "rows of table t need a column 'version' of int64; it is missing": lambda t: t.drop("version"),
    "rows of table t need a column 'slot_v' of fixed_size_list<item: float>[3]; it is missing": (
        lambda t: t.drop("slot_v")
    ),
    "rows of table t have no column 'slot_accumulator'; the columns are key, frequency, version,"
    " vector, slot_m, slot_v": lambda t: t.append_column("slot_accumulator", t["slot_m"]),
    "need a column 'key' of int64; it is there 2 times": (
        lambda t: t.append_column("key", t["version"])
    ),
    "column 'frequency' of rows of table t must be int64, got int32": (
        lambda t: replaced(t, "frequency", pa.array(np.zeros(len(t), np.int32)))
    ),
    "column 'vector' of rows of table t must be fixed_size_list<item: float>[3], got"
    " fixed_size_list<item: double>[3]": (
        lambda t: replaced(t, "vector", t["vector"].cast(pa.list_(pa.float64(), DIM)))
    ),
    "column 'slot_m' of rows of table t must be fixed_size_list<item: float>[3], got"
    " list<item: float>": lambda t: replaced(t, "slot_m", t["slot_m"].cast(pa.list_(pa.float32()))),
    "column 'key' has 1 nulls": lambda t: with_nulls(t, "key"),
    "column 'vector' has 1 nulls": lambda t: with_nulls(t, "vector"),
    "column 'slot_v' has 2 nulls": lambda t: replaced(
        t,
        "slot_v",
        pa.array([[1, None, None], *t["slot_v"].to_pylist()[1:]], t["slot_v"].type),
    ),
    "column 'vector', row 1 holds NaN or infinity": lambda t: replaced(
        t,
        "vector",
        pa.array([[0, 0, 0], [0, np.nan, 0], *t["vector"].to_pylist()[2:]], t["vector"].type),
    ),
    "column 'slot_m', row 0 holds NaN or infinity": lambda t: replaced(
        t, "slot_m", pa.array([[0, 0, np.inf], *t["slot_m"].to_pylist()[1:]], t["slot_m"].type)
    ),
}


@pytest.mark.parametrize("message", WRONG, ids=lambda message: message[:60])
def test_wrong_columns_are_refused_by_name_and_nothing_is_imported(spec, table, message):
    variable = EmbeddingVariable(spec)

    with pytest.raises(ValueError, match=re.escape(message)):
        variable.import_arrow(WRONG[message](table))

    assert len(variable) == 0


def test_a_vector_of_another_width_is_refused(table):
    with pytest.raises(ValueError, match=r"column 'vector' .* must be .*\[4\], got .*\[3\]"):
        from_arrow(table, TableSpec(name="t", dim=4, optimizer=AdamAsync()))


def test_rows_of_a_diverged_model_come_back_where_that_is_wanted(spec):
    entries = some_rows(spec)
    entries.vectors[3] = [np.nan, np.inf, -np.inf]

    again = from_arrow(to_arrow(entries, spec), spec, allow_nonfinite=True)

    assert bits(again) == bits(entries)


def test_rows_of_another_table_are_not_written(spec):
    entries = some_rows(spec)

    with pytest.raises(ValueError, match=r"slots must be float32\[50, 3\]"):
        to_arrow(entries, TableSpec(name="t", dim=DIM, optimizer=Adagrad()))
    with pytest.raises(ValueError, match="vectors must be float32"):
        to_arrow(entries, TableSpec(name="t", dim=2, optimizer=AdamAsync()))
