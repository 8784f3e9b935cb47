import itertools
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from worker.data.batch import Bags
from worker.data.column_types import check_schema
from worker.data.columns import Columns, columns_from_table, concatenate, join
from worker.data.key_hash import hash_strings
from worker.errors import DataError, UnreadableError
from worker.spec import FeatureSpec, SparseFeature

HASH = {s: int(hash_strings(pa.array([s]))[0]) for s in ("x", "y", "z")}


def spec(
    *sparse: SparseFeature,
    label: str | None = None,
    dense: tuple[str, ...] = (),
    transform: Any = "none",
) -> FeatureSpec:
    return FeatureSpec(label=label, dense=dense, dense_transform=transform, sparse=sparse)


def sparse(column: str = "c", **options: Any) -> SparseFeature:
    return SparseFeature(name=column, column=column, table="t", **options)


def convert(features: FeatureSpec, **columns: Any) -> Columns:
    table = pa.table(columns)
    check_schema(table.schema, features, "f.parquet")
    return columns_from_table(table, features, where=("f.parquet", 3))


def bags_of(values: pa.Array | pa.ChunkedArray, **options: Any) -> Bags:
    return convert(spec(sparse(**options)), c=values).sparse[0]


def as_lists(bags: Bags) -> list[list[int]]:
    if bags.offsets is None:
        return [[int(key)] for key in bags.keys]
    return [bags.keys[a:b].tolist() for a, b in zip(bags.offsets, bags.offsets[1:], strict=False)]


def refused(features: FeatureSpec, **columns: Any) -> DataError:
    with pytest.raises(DataError) as caught:
        convert(features, **columns)
    return caught.value


# Labels


@pytest.mark.parametrize(
    "kind", [pa.bool_(), pa.int8(), pa.uint64(), pa.float16(), pa.float32(), pa.float64()], ids=str
)
def test_labels_of_every_numeric_type_become_floats(kind: pa.DataType) -> None:
    labels = convert(spec(label="y"), y=pa.array([0, 1, 1]).cast(kind)).labels

    assert labels.dtype == np.float32
    assert labels.tolist() == [0, 1, 1]


@pytest.mark.parametrize(
    ("bad", "shown"), [(2.0, "2.0"), (1e-99, "1e-99"), (None, "null"), (float("nan"), "nan")]
)
def test_a_label_that_is_not_0_or_1_is_named_with_its_row(bad: float | None, shown: str) -> None:
    error = refused(spec(label="y"), y=pa.array([0.0, 1.0, bad, bad], pa.float64()))

    assert (error.file, error.row_group, error.column, error.row) == ("f.parquet", 3, "y", 2)
    assert f"got {shown}, expected 0 or 1" in str(error)


def test_samples_without_a_label_have_no_labels_and_can_be_sliced_and_permuted() -> None:
    columns = convert(spec(sparse(), dense=("d",)), c=pa.array([1, 2]), d=pa.array([3.0, 4.0]))

    assert columns.labels.shape == (0,)
    assert columns.batch(1, 2).labels.shape == (0,)
    assert columns.take(np.array([1, 0])).batch(0, 1).dense.tolist() == [[4.0]]


# Dense columns


def test_dense_columns_of_mixed_types_become_one_row_major_array() -> None:
    dense = convert(
        spec(dense=("a", "b", "c", "d")),
        d=pa.array([1, 2, 3], pa.uint8()),
        a=pa.array([1.5, None, float("nan")], pa.float32()),
        b=pa.array([True, None, False]),
        c=pa.array([-7, 8, None], pa.int64()),
    ).dense

    assert dense.dtype == np.float32
    assert dense.flags.c_contiguous
    assert dense.tolist() == [[1.5, 1, -7, 1], [0, 0, 8, 2], [0, 0, 0, 3]]


def test_what_lies_under_a_null_does_not_matter() -> None:
    buffers = [pa.py_buffer(b"\x02"), pa.py_buffer(np.array([np.inf, 4.0]).tobytes())]
    array = pa.Array.from_buffers(pa.float64(), 2, buffers)

    assert array.to_pylist() == [None, 4.0]
    assert convert(spec(dense=("d",)), d=array).dense.tolist() == [[0], [4]]


def test_log1p_takes_negatives_and_nulls_as_zero() -> None:
    values = [np.e - 1, -5.0, None, 0.0, 1e6]
    dense = convert(spec(dense=("d",), transform="log1p"), d=pa.array(values)).dense

    np.testing.assert_allclose(dense[:, 0], [1, 0, 0, 0, np.log1p(1e6)], rtol=1e-6)


@pytest.mark.parametrize("bad", [float("inf"), -float("inf"), 1e39])
def test_a_dense_value_without_a_finite_float32_is_named_with_its_row(bad: float) -> None:
    error = refused(spec(dense=("d",)), d=pa.array([None, float("nan"), 3.0, bad]))

    assert (error.column, error.row_group, error.row) == ("d", 3, 3)


def test_a_dense_column_of_nulls_alone_is_zero() -> None:
    assert convert(spec(dense=("d",)), d=pa.nulls(2)).dense.tolist() == [[0], [0]]


# Keys


def test_scalars_without_nulls_are_bags_of_one() -> None:
    bags = bags_of(pa.array([5, -1, 127], pa.int16()))

    assert bags.keys.tolist() == [5, -1, 127]
    assert bags.keys.dtype == np.int64
    assert bags.offsets is None
    assert bags.weights is None


def test_chunks_with_different_dictionaries_are_joined() -> None:
    chunks = [pa.array(["x", "y"]).dictionary_encode(), pa.array(["z", "x"]).dictionary_encode()]

    assert as_lists(bags_of(pa.chunked_array(chunks))) == [[HASH[s]] for s in "xyzx"]


def test_a_null_scalar_is_an_empty_bag() -> None:
    bags = bags_of(pa.array([5, None, 6]))

    assert as_lists(bags) == [[5], [], [6]]
    assert bags.offsets is not None
    assert bags.offsets.dtype == np.int64


def test_a_column_of_nulls_alone_has_empty_bags() -> None:
    assert as_lists(bags_of(pa.nulls(2))) == [[], []]
    assert as_lists(bags_of(pa.array([[], None], pa.list_(pa.null())))) == [[], []]


LISTS = [[1, 2], None, [], [3, None, 4], [None]]


@pytest.mark.parametrize("kind", [pa.list_(pa.int32()), pa.large_list(pa.int64())], ids=str)
def test_lists_are_bags_without_their_nulls(kind: pa.DataType) -> None:
    assert as_lists(bags_of(pa.array(LISTS, kind))) == [[1, 2], [], [], [3, 4], []]


def test_a_slice_of_lists_is_its_own_rows() -> None:
    assert as_lists(bags_of(pa.array(LISTS).slice(2))) == [[], [3, 4], []]


def test_elements_under_a_null_list_are_not_keys() -> None:
    array = pa.ListArray.from_arrays(
        pa.array([0, 2, 4], pa.int32()), pa.array([1, 2, 3, 4]), mask=pa.array([True, False])
    )

    assert as_lists(bags_of(array)) == [[], [3, 4]]


def test_fixed_size_lists_are_bags() -> None:
    array = pa.array([[1, 2], None, [3, None]], pa.list_(pa.int64(), 2))

    assert as_lists(bags_of(array)) == [[1, 2], [], [3]]
    assert as_lists(bags_of(array.slice(1))) == [[], [3]]


def test_lists_of_dictionaries_of_strings_are_bags() -> None:
    kind = pa.list_(pa.dictionary(pa.int32(), pa.string()))

    assert as_lists(bags_of(pa.array([["x", "z"], [None, "x"]], kind))) == [
        [HASH["x"], HASH["z"]],
        [HASH["x"]],
    ]


def test_max_length_cuts_bags_after_nulls_are_left_out() -> None:
    array = pa.array([[1, None, 2, 3], [4], None, [5, 6]])

    assert as_lists(bags_of(array, max_length=2)) == [[1, 2], [4], [], [5, 6]]
    assert as_lists(bags_of(array, max_length=1)) == [[1], [4], [], [5]]
    assert as_lists(bags_of(array, max_length=2, keep="last")) == [[2, 3], [4], [], [5, 6]]
    assert as_lists(bags_of(array, max_length=1, keep="last")) == [[3], [4], [], [6]]


# Weights


def weighted(**options: Any) -> FeatureSpec:
    return spec(sparse(weights="w", **options))


def test_weights_go_with_their_keys() -> None:
    bags = convert(
        weighted(max_length=2),
        c=pa.array([[1, None, 2, 3], None, [4]]),
        w=pa.array([[0.5, None, 2, 3], [], [4]], pa.list_(pa.float64())),
    ).sparse[0]

    assert as_lists(bags) == [[1, 2], [], [4]]
    assert bags.weights is not None
    assert bags.weights.dtype == np.float32
    assert bags.weights.tolist() == [0.5, 2, 4]


def test_scalar_keys_have_scalar_weights() -> None:
    bags = convert(weighted(), c=pa.array([1, None, 3]), w=pa.array([1, None, 2])).sparse[0]

    assert as_lists(bags) == [[1], [], [3]]
    assert bags.weights is not None
    assert bags.weights.tolist() == [1, 2]


def test_more_weights_than_keys_are_named_with_their_row() -> None:
    error = refused(weighted(), c=pa.array([[1], [2, 3]]), w=pa.array([[1.0], [1.0]]))

    assert (error.column, error.row) == ("w", 1)
    assert "got 1, expected 2" in str(error)


@pytest.mark.parametrize("bad", [None, float("nan"), float("inf")])
def test_a_weight_that_is_no_number_is_named_with_its_row(bad: float | None) -> None:
    lists = refused(weighted(), c=pa.array([[1], [], [2, 3]]), w=pa.array([[1.0], [], [bad, 1.0]]))
    scalars = refused(weighted(), c=pa.array([1, 2]), w=pa.array([1.0, bad]))

    assert (lists.column, lists.row) == ("w", 2)
    assert (scalars.column, scalars.row) == ("w", 1)


# Damage


def test_an_index_outside_its_dictionary_is_a_damaged_row_group() -> None:
    array = pa.DictionaryArray.from_arrays(pa.array([0, 2]), pa.array(["x", "y"]), safe=False)

    with pytest.raises(UnreadableError) as caught:
        bags_of(array)

    assert (caught.value.file, caught.value.row_group, caught.value.column) == ("f.parquet", 3, "c")


# Schemas


def test_a_missing_column_is_named_with_one_that_is_near() -> None:
    error = refused(spec(dense=("ages",)), age=pa.array([1]), label=pa.array([1]))

    assert (error.file, error.column) == ("f.parquet", "ages")
    assert "its 2 columns have no such name, but 'age'." in str(error)


def test_no_column_is_named_where_none_is_near() -> None:
    error = refused(spec(dense=("price",)), age=pa.array([1]), label=pa.array([1]))

    assert "its 2 columns have no such name. " in str(error)


def test_only_a_column_of_the_same_kind_is_named() -> None:
    columns = {
        "tags_": pa.array([["a"]]),
        "tag": pa.array([1.5]),
        "tagss": pa.array([{"a": 1}]),
    }

    assert "such name, but 'tags_' or 'tag'." in str(refused(spec(sparse("tagss_")), **columns))
    assert "such name, but 'tag'." in str(refused(spec(dense=("tags",)), **columns))


def test_a_name_that_two_columns_have_is_refused() -> None:
    schema = pa.schema([("d", pa.int64()), ("d", pa.int64())])

    with pytest.raises(DataError, match="two columns"):
        check_schema(schema, spec(dense=("d",)), "f")


@pytest.mark.parametrize(
    ("features", "kind"),
    [
        (spec(sparse()), pa.struct([("a", pa.int64())])),
        (spec(sparse()), pa.map_(pa.string(), pa.int64())),
        (spec(sparse()), pa.list_(pa.list_(pa.int64()))),
        (spec(label="c"), pa.string()),
        (spec(label="c"), pa.uuid()),
        (spec(dense=("c",)), pa.list_(pa.decimal128(5))),
        (spec(dense=("c",)), pa.list_(pa.float32())),
        (spec(dense=("c",)), pa.timestamp("s")),
        (spec(dense=("c",)), pa.dictionary(pa.int8(), pa.string())),
    ],
)
def test_an_unusable_type_is_refused_with_what_to_do(
    features: FeatureSpec, kind: pa.DataType
) -> None:
    with pytest.raises(DataError) as caught:
        check_schema(pa.schema([("c", kind)]), features, "f")

    assert caught.value.column == "c"
    assert str(kind) in str(caught.value)
    assert "Cast or hash it" in str(caught.value)


def test_weights_of_lists_must_be_lists() -> None:
    schema = pa.schema([("c", pa.list_(pa.int64())), ("w", pa.float32())])

    with pytest.raises(DataError, match="lists of numbers") as caught:
        check_schema(schema, weighted(), "f")
    assert caught.value.column == "w"


# Rows


ROWS = pa.table(
    {
        "y": pa.array([0, 1, 1, 0, 1, 0]),
        "d": pa.array([0.0, 1, 2, 3, 4, 5]),
        "one": pa.array([10, 11, 12, 13, 14, 15]),
        "many": pa.array([[1, 2], None, [3], [], [4, 5, 6], [7]]),
        "w": pa.array([[1.0, 2], None, [3], [], [4, 5, 6], [7]]),
    }
)
FEATURES = spec(sparse("one"), sparse("many", weights="w"), label="y", dense=("d",))


def converted(table: pa.Table) -> Columns:
    return columns_from_table(table, FEATURES, where=("f", 0))


def assert_same(left: Any, right: Any) -> None:
    np.testing.assert_array_equal(left.labels, right.labels)
    np.testing.assert_array_equal(left.dense, right.dense)
    for a, b in zip(left.sparse, right.sparse, strict=True):
        assert as_lists(a) == as_lists(b)
        np.testing.assert_array_equal(
            np.ones(a.keys.size) if a.weights is None else a.weights,
            np.ones(b.keys.size) if b.weights is None else b.weights,
        )


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 6), st.integers(0, 6))
def test_a_batch_is_the_conversion_of_its_rows(a: int, b: int) -> None:
    start, stop = min(a, b), max(a, b)

    batch = converted(ROWS).batch(start, stop)

    assert batch.num_samples == stop - start
    assert_same(batch, converted(ROWS.slice(start, stop - start)))


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(0, 5)))
def test_taken_rows_are_the_conversion_of_those_rows(order: list[int]) -> None:
    positions = np.array(order, np.int64)

    assert_same(converted(ROWS).take(positions), converted(ROWS.take(positions)))


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(0, 6), min_size=1, max_size=4))
def test_joined_batches_are_the_batch_of_all_their_rows(cuts: list[int]) -> None:
    edges = [0, *sorted(cuts), 6]
    columns = converted(ROWS)

    parts = [columns.batch(a, b) for a, b in itertools.pairwise(edges)]

    assert_same(concatenate(parts), columns)


def test_parts_with_and_without_empty_bags_can_be_joined() -> None:
    full = convert(spec(sparse()), c=pa.array([1, 2])).batch(0, 2)
    partial = convert(spec(sparse()), c=pa.array([None, 3])).batch(0, 2)

    assert as_lists(concatenate([full, partial]).sparse[0]) == [[1], [2], [], [3]]
    assert as_lists(concatenate([partial, full]).sparse[0]) == [[], [3], [1], [2]]


def test_batches_are_views_of_the_columns() -> None:
    columns = converted(ROWS)
    batch = columns.batch(1, 5)

    assert np.shares_memory(batch.dense, columns.dense)
    assert np.shares_memory(batch.labels, columns.labels)
    assert all(
        np.shares_memory(mine.keys, all_.keys)
        for mine, all_ in zip(batch.sparse, columns.sparse, strict=True)
    )


def test_nbytes_is_the_memory_of_the_arrays() -> None:
    assert converted(ROWS).nbytes == 6 * 4 + 6 * 4 + 6 * 8 + 7 * 8 + 7 * 8 + 7 * 4


def test_an_empty_table_has_no_samples() -> None:
    columns = converted(ROWS.slice(0, 0))

    assert columns.num_rows == 0
    assert columns.dense.shape == (0, 1)
    assert as_lists(columns.sparse[1]) == []


@pytest.mark.parametrize("kind", [pa.float32(), pa.float64()], ids=str)
def test_whole_numbers_that_came_as_floats_are_keys(kind: pa.DataType) -> None:
    scalar = convert(spec(sparse()), c=pa.array([3.0, None, -7.0, float("nan")], kind)).sparse[0]
    lists = convert(spec(sparse()), c=pa.array([[1.0, 2.0], None, [3.0]], pa.list_(kind))).sparse[0]

    assert scalar.keys.tolist() == [3, -7]
    assert scalar.offsets is not None
    assert scalar.offsets.tolist() == [0, 1, 1, 2, 2]
    assert lists.keys.tolist() == [1, 2, 3]


@pytest.mark.parametrize("bad", [0.5, float("inf"), 2.0**24, -(2.0**25)])
def test_a_float_that_is_no_exact_whole_number_is_named_with_its_row(bad: float) -> None:
    error = refused(spec(sparse()), c=pa.array([[1.0], [2.0, bad]], pa.list_(pa.float32())))

    assert (error.column, error.row) == ("c", 1)
    assert str(bad) in str(error)


# Weights of samples


def weighed(**options: Any) -> FeatureSpec:
    return replace(spec(dense=("d",), **options), weight="w")


@pytest.mark.parametrize(
    "kind",
    [pa.bool_(), pa.int8(), pa.uint64(), pa.float16(), pa.float64(), pa.decimal128(25, 2)],
    ids=str,
)
def test_weights_of_samples_of_every_numeric_type_become_floats(kind: pa.DataType) -> None:
    columns = convert(weighed(), w=pa.array([0, 1, 1]).cast(kind), d=pa.array([1.0, 2, 3]))

    assert columns.weights is not None
    assert columns.weights.dtype == np.float32
    assert columns.weights.tolist() == [0, 1, 1]


@pytest.mark.parametrize(
    ("bad", "shown"),
    [(-1.0, "-1.0"), (None, "null"), (float("nan"), "nan"), (float("inf"), "inf"), (1e39, "1e+39")],
)
def test_a_samples_weight_that_is_none_is_named_with_its_row(bad: float | None, shown: str) -> None:
    error = refused(weighed(), w=pa.array([0.5, 0, bad, bad], pa.float64()), d=pa.array([1.0] * 4))

    assert (error.file, error.row_group, error.column, error.row) == ("f.parquet", 3, "w", 2)
    assert f"got {shown}, expected a finite number >= 0" in str(error)


def test_weights_of_samples_must_be_numbers() -> None:
    error = refused(weighed(), w=pa.array(["1"]), d=pa.array([1.0]))

    assert "a column of sample weights has an unusable type" in str(error)


def test_weights_go_with_their_samples() -> None:
    features = weighed()
    parts = [
        convert(features, w=pa.array([1.0, 2.0]), d=pa.array([1.0, 2.0])),
        convert(features, w=pa.array([3.0]), d=pa.array([3.0])),
    ]
    batches = [part.batch(0, part.num_rows) for part in parts]

    for found in (concatenate(batches), join(list(parts)), join(parts, np.array([2, 0, 1]))):
        assert found.weights is not None
        np.testing.assert_array_equal(found.weights, found.dense[:, 0])
    assert found.batch(1, 3).weights.tolist() == [1, 2]  # type: ignore[union-attr]
    assert found.nbytes == 3 * 4 + 3 * 4  # type: ignore[union-attr]


def test_samples_without_weights_have_none() -> None:
    columns = convert(spec(dense=("d",)), d=pa.array([1.0, 2.0]))

    assert columns.weights is None
    assert concatenate([columns.batch(0, 1), columns.batch(1, 2)]).weights is None
    assert columns.take(np.array([1, 0])).weights is None


# Segments


def test_segments_go_with_their_samples() -> None:
    features = replace(spec(dense=("d",)), segment="s")
    parts = [
        convert(features, s=pa.array(["x", "y"]), d=pa.array([1.0, 2.0])),
        convert(features, s=pa.array(["y"]), d=pa.array([3.0])),
    ]
    batches = [part.batch(0, part.num_rows) for part in parts]

    for found in (concatenate(batches), join(list(parts)), join(parts, np.array([2, 0, 1]))):
        assert found.segments is not None
        told = [found.segments.names[i] for i in found.segments.of]
        assert told == ["x" if d == 1 else "y" for d in found.dense[:, 0]]
    assert found.batch(1, 3).segments.of.size == 2  # type: ignore[union-attr]


@pytest.mark.parametrize("values", [pa.array([0.5]), pa.array([[1]]), pa.array([b"x"])], ids=str)
def test_a_segment_is_an_integer_a_string_or_a_boolean(values: pa.Array) -> None:
    error = refused(replace(spec(dense=("d",)), segment="s"), s=values, d=pa.array([1.0]))

    assert "a segment column has an unusable type" in str(error)
    assert "expected integers, strings or booleans" in str(error)
