"""What a schema promises is what a file gives: types as other programs write them."""

import uuid
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from worker.data.batch import Batch
from worker.data.column_types import column_kinds
from worker.data.key_hash import hash_strings
from worker.data.planning import make_plan
from worker.data.reading import Reader, read_file
from worker.errors import DataError
from worker.spec import DataSpec, FeatureSpec, SparseFeature

UUIDS = [uuid.UUID(int=i << 120 | 7) for i in range(3)]
BYTES = [u.bytes for u in UUIDS]
KEYS = hash_strings(pa.array(BYTES, pa.binary())).tolist()


def features(
    *sparse: str, label: str | None = None, dense: tuple[str, ...] = (), weights: str | None = None
) -> FeatureSpec:
    return FeatureSpec(
        label=label,
        dense=dense,
        dense_transform="none",
        sparse=tuple(SparseFeature(name=c, column=c, table="t", weights=weights) for c in sparse),
    )


def read(paths: list[Path], wanted: FeatureSpec) -> Batch:
    """All rows of files, planned and decoded as a job does; prediction decodes the same."""
    plan = make_plan([str(path) for path in paths], DataSpec(features=wanted, batch_size=1000))
    batch, skipped = Reader(plan, wanted).read(0)
    assert skipped == 0
    if len(paths) == 1:
        ((_, predicted),) = read_file(plan.files[0], wanted, 1000)
        for mine, other in zip(batch.sparse, predicted.sparse, strict=True):
            np.testing.assert_array_equal(mine.keys, other.keys)
        np.testing.assert_array_equal(batch.dense, predicted.dense)
    return batch


def lists_of(batch: Batch) -> list[list[int]]:
    bags = batch.sparse[0]
    if bags.offsets is None:
        return [[key] for key in bags.keys.tolist()]
    return [bags.keys[a:b].tolist() for a, b in zip(bags.offsets, bags.offsets[1:], strict=False)]


def write(path: Path, **columns: Any) -> Path:
    options = columns.pop("options", {})
    pq.write_table(pa.table(columns), path, **options)
    return path


# Extension types


@pytest.mark.parametrize("store_schema", [True, False], ids=["arrow schema", "logical type alone"])
def test_uuids_are_their_16_bytes_in_every_column(tmp_path: Path, store_schema: bool) -> None:
    uuids = pa.array(BYTES, pa.uuid())
    lists = pa.ListArray.from_arrays(pa.array([0, 2, 2, 3], pa.int32()), uuids)
    path = write(tmp_path / "a.parquet", u=uuids, l=lists, options={"store_schema": store_schema})

    assert lists_of(read([path], features("u"))) == [[key] for key in KEYS]
    assert lists_of(read([path], features("l"))) == [KEYS[:2], [], KEYS[2:]]


def test_uuids_with_nulls_are_empty_bags(tmp_path: Path) -> None:
    path = write(tmp_path / "a.parquet", u=pa.array([BYTES[0], None, BYTES[1]], pa.uuid()))

    assert lists_of(read([path], features("u"))) == [[KEYS[0]], [], [KEYS[1]]]


def test_uuids_and_their_text_are_not_taken_for_one_another(tmp_path: Path) -> None:
    values = write(tmp_path / "a.parquet", u=pa.array(BYTES, pa.uuid()))
    texts = write(tmp_path / "b.parquet", u=pa.array([str(u) for u in UUIDS]))

    with pytest.raises(DataError, match="got string, expected uuid"):
        read([values, texts], features("u"))


@pytest.mark.parametrize("store_schema", [True, False], ids=["arrow schema", "logical type alone"])
@pytest.mark.parametrize("in_lists", [False, True], ids=["text", "lists of text"])
def test_json_text_is_refused_when_planning(
    tmp_path: Path, store_schema: bool, in_lists: bool
) -> None:
    text = pa.ExtensionArray.from_storage(pa.json_(), pa.array(["[0,1]", "[]"]))
    if in_lists:
        text = pa.ListArray.from_arrays(pa.array([0, 1, 2], pa.int32()), text)
    path = write(tmp_path / "a.parquet", bag=text, options={"store_schema": store_schema})

    with pytest.raises(DataError, match="got JSON text, expected integers") as caught:
        make_plan([str(path)], DataSpec(features=features("bag"), batch_size=1))

    assert (caught.value.file, caught.value.column) == (str(path), "bag")
    assert "as a list column" in str(caught.value)


def test_other_extension_types_are_what_they_store(tmp_path: Path) -> None:
    flags = pa.ExtensionArray.from_storage(pa.bool8(), pa.array([1, 0, None], pa.int8()))
    tensor = pa.fixed_shape_tensor(pa.int64(), (2,))
    pairs = pa.ExtensionArray.from_storage(
        tensor, pa.array([[1, 2], [3, 4], None], pa.list_(pa.int64(), 2))
    )
    path = write(tmp_path / "a.parquet", f=flags, p=pairs)

    assert lists_of(read([path], features("f"))) == [[1], [0], []]
    assert lists_of(read([path], features("p"))) == [[1, 2], [3, 4], []]
    assert read([path], features("p", dense=("f",))).dense[:, 0].tolist() == [1, 0, 0]


# Lists


@pytest.mark.parametrize("kind", [pa.list_view, pa.large_list_view], ids=["small", "large"])
def test_list_views_are_lists(tmp_path: Path, kind: Any) -> None:
    path = write(
        tmp_path / "a.parquet", x=pa.array([[1, 2], None, [], [3, None]], kind(pa.int64()))
    )

    assert lists_of(read([path], features("x"))) == [[1, 2], [], [], [3]]


INTEGERS = pa.list_(pa.int64())
FLOATS = pa.list_(pa.float64())


@pytest.mark.parametrize(
    ("keys", "weights"),
    [
        (pa.nulls(2), pa.array([[], []], FLOATS)),
        (pa.nulls(2), pa.array([[], None], FLOATS)),
        (pa.array([[], []], INTEGERS), pa.nulls(2)),
        (pa.array([None, []], pa.list_(pa.null())), pa.array([[], []], FLOATS)),
        (pa.array([[], []], pa.list_(pa.null())), pa.nulls(2)),
        (pa.array([[], []], INTEGERS), pa.array([[], []], pa.list_(pa.null()))),
        (pa.nulls(2), pa.nulls(2)),
    ],
)
def test_a_file_without_any_list_of_keys_or_weights_is_an_hour_without_tags(
    tmp_path: Path, keys: pa.Array, weights: pa.Array
) -> None:
    full = write(tmp_path / "0.parquet", c=pa.array([[1, 2], [3]]), w=pa.array([[0.5, 0.5], [1.0]]))
    none = write(tmp_path / "1.parquet", c=keys, w=weights)

    for paths, expected in (
        ([full, none], [[1, 2], [3], [], []]),
        ([none, full], [[], [], [1, 2], [3]]),
        ([none], [[], []]),
    ):
        batch = read(paths, features("c", weights="w"))
        assert lists_of(batch) == expected
        assert batch.sparse[0].weights is not None
        assert batch.sparse[0].weights.size == batch.sparse[0].keys.size


@pytest.mark.parametrize(
    ("keys", "weights", "shown"),
    [
        (pa.nulls(2), pa.array([[], [0.5]]), "got 1, expected 0"),
        (pa.array([[], [4, 5]]), pa.nulls(2), "got 0, expected 2"),
    ],
)
def test_weights_without_keys_and_keys_without_weights_are_named_with_their_row(
    tmp_path: Path, keys: pa.Array, weights: pa.Array, shown: str
) -> None:
    path = write(tmp_path / "a.parquet", c=keys, w=weights)

    with pytest.raises(DataError, match=shown) as caught:
        read([path], features("c", weights="w"))
    assert (caught.value.column, caught.value.row) == ("w", 1)


# Decimals

DECIMALS = [
    pa.decimal32(9, 2),
    pa.decimal64(18, 1),
    pa.decimal128(12, 2),
    pa.decimal128(38, 18),
    pa.decimal256(70, 30),
]


@pytest.mark.parametrize("kind", DECIMALS, ids=str)
def test_decimals_are_labels_dense_values_weights_and_keys(
    tmp_path: Path, kind: pa.DataType
) -> None:
    flags = pa.array([Decimal("1.0"), Decimal("0.0"), Decimal(1)], kind)
    whole = pa.array([Decimal("-120.0"), None, Decimal(3)], kind)
    parts = pa.array([Decimal("-2.5"), None, Decimal("0.5")], kind)
    path = write(tmp_path / "a.parquet", y=flags, x=whole, d=parts)

    batch = read([path], features("x", label="y", dense=("d",), weights="d"))

    assert batch.labels.tolist() == [1, 0, 1]
    assert batch.dense[:, 0].tolist() == [-2.5, 0, 0.5]
    assert lists_of(batch) == [[-120], [], [3]]
    assert batch.sparse[0].weights is not None
    assert batch.sparse[0].weights.tolist() == [-2.5, 0.5]


def test_decimals_without_a_scale_are_the_keys_of_the_same_integers(tmp_path: Path) -> None:
    ids = [2**63 - 1, -(2**63), 2**53 + 1, 0]
    decimals = pa.array([Decimal(i) for i in ids], pa.decimal128(38, 0))
    a = write(tmp_path / "a.parquet", x=decimals)
    b = write(tmp_path / "b.parquet", x=pa.array(ids))

    assert lists_of(read([a, b], features("x"))) == [[i] for i in ids + ids]


def test_lists_of_decimals_are_bags(tmp_path: Path) -> None:
    kind = pa.list_(pa.decimal128(20, 2))
    path = write(tmp_path / "a.parquet", x=pa.array([[Decimal(1), Decimal(2)], None], kind))

    assert lists_of(read([path], features("x"))) == [[1, 2], []]


@pytest.mark.parametrize(
    ("bad", "kind"),
    [
        (Decimal("2.50"), pa.decimal128(12, 2)),
        (Decimal(2**63), pa.decimal128(38, 0)),
        (Decimal(-(2**63) - 1), pa.decimal128(38, 0)),
        (Decimal(10) ** 30, pa.decimal256(70, 30)),
        (Decimal("1E-30"), pa.decimal256(70, 30)),
    ],
)
def test_a_decimal_that_is_no_key_is_named_with_its_row(
    tmp_path: Path, bad: Decimal, kind: pa.DataType
) -> None:
    path = write(tmp_path / "a.parquet", x=pa.array([Decimal(1), None, bad], kind))

    with pytest.raises(DataError, match="exact whole number") as caught:
        read([path], features("x"))
    assert (caught.value.column, caught.value.row) == ("x", 2)
    assert f"got {pa.scalar(bad, kind).as_py()}, expected" in str(caught.value)


def test_a_decimal_label_next_to_1_is_not_1(tmp_path: Path) -> None:
    near = Decimal("0." + "9" * 37)
    path = write(
        tmp_path / "a.parquet",
        x=pa.array([1, 1]),
        y=pa.array([Decimal(1), near], pa.decimal128(38, 37)),
    )

    with pytest.raises(DataError, match="a label is not 0 or 1") as caught:
        read([path], features("x", label="y"))
    assert caught.value.row == 1


# Floats


@pytest.mark.parametrize(
    ("kind", "bits"), [(pa.float16(), 11), (pa.float32(), 24), (pa.float64(), 53)], ids=str
)
def test_floats_are_keys_below_the_magnitude_from_which_they_are_ambiguous(
    tmp_path: Path, kind: pa.DataType, bits: int
) -> None:
    edge = 2**bits - 1
    good = write(tmp_path / "a.parquet", x=pa.array([float(edge), -float(edge)]).cast(kind))

    assert lists_of(read([good], features("x"))) == [[edge], [-edge]]
    for bad in (float(edge + 1), -float(edge + 1)):
        path = write(tmp_path / "b.parquet", x=pa.array([1.0, bad]).cast(kind))
        with pytest.raises(DataError, match=rf"a magnitude below 2\^{bits}") as caught:
            read([path], features("x"))
        assert caught.value.row == 1


# Kinds


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        (pa.int8(), "integer"),
        (pa.uint64(), "integer"),
        (pa.bool_(), "integer"),
        (pa.bool8(), "integer"),
        (pa.float64(), "integer"),
        (pa.decimal128(38, 0), "integer"),
        (pa.decimal256(50, 2), "integer"),
        (pa.string_view(), "string"),
        (pa.binary(16), "string"),
        (pa.dictionary(pa.int8(), pa.large_string()), "string"),
        (pa.uuid(), "uuid"),
        (pa.list_(pa.uuid()), "list of uuid"),
        (pa.list_view(pa.int32()), "list of integer"),
        (pa.large_list_view(pa.string()), "list of string"),
        (pa.date32(), "date32[day]"),
        (pa.timestamp("us", "UTC"), "timestamp[us]"),
        (pa.list_(pa.null()), None),
        (pa.null(), None),
    ],
    ids=str,
)
def test_what_a_column_holds_has_a_name_that_never_changes(
    kind: pa.DataType, name: str | None
) -> None:
    kinds = column_kinds(pa.schema([("x", kind)]), features("x"), "f")

    assert kinds == {("sparse column", "x"): name}


# Padding


def padded(pad: int | str, weights: str | None = None, **options: Any) -> FeatureSpec:
    feature = SparseFeature(name="x", column="x", table="t", pad=pad, weights=weights, **options)
    return FeatureSpec(label=None, dense=(), dense_transform="none", sparse=(feature,))


def test_padding_is_left_out_with_its_weights(tmp_path: Path) -> None:
    lists = pa.array([[5, 0, 0], [0, 0, 0], [0, 6, 7], None], pa.list_(pa.int64(), 3))
    weights = pa.array([[0.5, None, float("nan")], [0, 0, 0], [1, 2, 3], None], FLOATS)
    path = write(tmp_path / "a.parquet", x=lists, w=weights)

    batch = read([path], padded(0, "w"))

    assert lists_of(batch) == [[5], [], [6, 7], []]
    assert batch.sparse[0].weights is not None
    assert batch.sparse[0].weights.tolist() == [0.5, 2, 3]
    assert lists_of(read([path], padded(-1))) == [[5, 0, 0], [0, 0, 0], [0, 6, 7], []]
    assert lists_of(read([path], padded(0, max_length=1))) == [[5], [], [6], []]


@pytest.mark.parametrize(
    ("values", "pad"),
    [
        (pa.array([["a", ""], ["", ""]]), ""),
        (pa.array([["a", "0"], ["0", "0"]], pa.list_(pa.large_string())), "0"),
        (pa.array([[b"a", b"<pad>"], [b"<pad>", b"<pad>"]]), "<pad>"),
    ],
)
def test_padding_of_strings_is_a_string(tmp_path: Path, values: pa.Array, pad: str) -> None:
    path = write(tmp_path / "a.parquet", x=values)

    (key,) = hash_strings(pa.array(["a"])).tolist()
    assert lists_of(read([path], padded(pad))) == [[key], []]


def test_padding_of_other_numbers_is_an_integer(tmp_path: Path) -> None:
    last = 2**64 - 1
    path = write(
        tmp_path / "a.parquet", x=pa.array([[last, 1], [last, last]], pa.list_(pa.uint64()))
    )
    single = write(tmp_path / "b.parquet", x=pa.array([0.0, 3.0, None]))

    assert lists_of(read([path], padded(last))) == [[1], []]
    assert lists_of(read([single], padded(0))) == [[], [3], []]


@pytest.mark.parametrize(
    ("kind", "pad"),
    [
        (pa.string(), 0),
        (pa.int64(), "0"),
        (pa.list_(pa.string()), 0),
        (pa.uuid(), ""),
        (pa.date32(), 0),
    ],
)
def test_padding_that_the_column_cant_hold_is_refused(kind: pa.DataType, pad: int | str) -> None:
    with pytest.raises(DataError, match="pad is no value") as caught:
        column_kinds(pa.schema([("x", kind)]), padded(pad), "f")
    assert caught.value.column == "x"

    column_kinds(pa.schema([("x", pa.null())]), padded(pad), "f")
