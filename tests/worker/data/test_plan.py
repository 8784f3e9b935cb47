import json
import logging
import pickle
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from worker.data.plan import FilePlan, Plan
from worker.data.planning import check_unchanged, make_plan
from worker.errors import DataError, UnreadableError
from worker.spec import DataSpec, FeatureSpec, SparseFeature

FEATURES = FeatureSpec(
    label="y",
    dense=(),
    dense_transform="none",
    sparse=(SparseFeature(name="c", column="c", table="t"),),
)


def plan_of(*row_groups: tuple[int, ...], **options: Any) -> Plan:
    files = tuple(FilePlan(f"f{i}", 0, rows, "") for i, rows in enumerate(row_groups))
    return Plan(files=files, **{"batch_size": 4, **options})


def write(path: Path, keys: pa.Array, **options: Any) -> str:
    pq.write_table(pa.table({"y": pa.array([0] * len(keys)), "c": keys}), path, **options)
    return str(path)


def spec(**options: Any) -> DataSpec:
    return DataSpec(features=FEATURES, batch_size=4, **options)


Row = tuple[int, int, int]


def rows_of(plan: Plan, batch_id: int) -> list[Row]:
    """File, row group and position in the file's order of each row of a batch."""
    epoch, rows = plan.epoch_of(batch_id), []
    for piece in plan.pieces(batch_id):
        order = plan.row_order(epoch, piece.file, piece.row_group)
        positions: Any = range(piece.start, piece.stop)
        if order is not None:
            positions = order[piece.start : piece.stop].tolist()
        rows += [(piece.file, piece.row_group, position) for position in positions]
    return rows


def epoch_rows(plan: Plan, epoch: int) -> list[Row]:
    """The rows of an epoch in its order: lane after lane."""
    count = plan.batches_per_epoch
    ids = range(epoch * count, (epoch + 1) * count)
    return [
        row for lane in range(plan.lanes) for i in ids if plan.lane_of(i) == lane
        for row in rows_of(plan, i)
    ]  # fmt: skip


plans = st.builds(
    lambda files, batch_size, lanes, epochs, shuffle, seed: plan_of(
        *map(tuple, files),
        batch_size=batch_size,
        lanes=lanes,
        epochs=epochs,
        shuffle=shuffle,
        seed=seed,
    ),
    st.lists(st.lists(st.integers(0, 12), max_size=4), max_size=5),
    st.integers(1, 15),
    st.integers(1, 7),
    st.integers(1, 3),
    st.sampled_from(["none", "files", "rows"]),
    st.integers(-(2**63), 2**63 - 1),
)


@settings(max_examples=300, deadline=None)
@given(plans)
def test_every_row_is_in_exactly_one_batch_of_each_epoch(plan: Plan) -> None:
    every = Counter(
        (f, g, r)
        for f, file in enumerate(plan.files)
        for g, rows in enumerate(file.row_group_rows)
        for r in range(rows)
    )

    for epoch in range(plan.epochs):
        first = epoch * plan.batches_per_epoch
        found = Counter(
            row for i in range(plan.batches_per_epoch) for row in rows_of(plan, first + i)
        )
        assert found == every


@settings(max_examples=300, deadline=None)
@given(plans)
def test_only_the_last_batch_of_an_epoch_is_shorter(plan: Plan) -> None:
    assert plan.batches_per_epoch == -(-plan.rows_per_epoch // plan.batch_size)
    for i in range(plan.total_batches):
        is_last = (i + 1) % plan.batches_per_epoch == 0
        expected = plan.batch_size
        if is_last:
            expected = plan.rows_per_epoch - (plan.batches_per_epoch - 1) * plan.batch_size
        assert plan.rows_of(i) == expected == len(rows_of(plan, i))
        assert 0 < expected <= plan.batch_size
        assert plan.lane_of(i) == i % plan.batches_per_epoch % plan.lanes


@settings(max_examples=200, deadline=None)
@given(plans)
def test_each_lane_reads_consecutive_rows_of_the_epochs_order(plan: Plan) -> None:
    one_lane = plan_of(
        *(file.row_group_rows for file in plan.files),
        batch_size=max(1, plan.rows_per_epoch),
        epochs=plan.epochs,
        shuffle=plan.shuffle,
        seed=plan.seed,
    )

    for epoch in range(plan.epochs if plan.rows_per_epoch else 0):
        assert epoch_rows(plan, epoch) == rows_of(one_lane, epoch)


def test_without_shuffle_rows_come_in_the_order_of_files_and_rows() -> None:
    plan = plan_of((3, 0, 2), (), (4,), epochs=2)

    expected = [
        (0, 0, 0),
        (0, 0, 1),
        (0, 0, 2),
        (0, 2, 0),
        (0, 2, 1),
        *((2, 0, r) for r in range(4)),
    ]
    assert epoch_rows(plan, 0) == epoch_rows(plan, 1) == expected


def test_shuffled_files_keep_the_order_of_their_rows() -> None:
    plan = plan_of(*[(2, 3)] * 20, shuffle="files", epochs=2)

    first, second = ([row[0] for row in epoch_rows(plan, e)][::5] for e in (0, 1))

    assert sorted(first) == sorted(second) == list(range(20))
    assert first != second
    assert first != sorted(first)
    assert [row[1:] for row in epoch_rows(plan, 0)] == [(0, 0), (0, 1), (1, 0), (1, 1), (1, 2)] * 20


def test_shuffled_rows_order_row_groups_and_their_rows_anew() -> None:
    plan = plan_of(*[(30, 30)] * 5, shuffle="rows", epochs=2)

    orders = [epoch_rows(plan, epoch) for epoch in (0, 1)]

    for order in orders:
        groups = [row[:2] for row in order][::30]
        assert len(set(groups)) == 10
        assert groups != sorted(groups)
        assert order[:30] != sorted(order[:30])
    first, second = ([row[:2] for row in order][::30] for order in orders)
    assert first != second
    rows = [[row[2] for row in order if row[:2] == (0, 0)] for order in orders]
    assert rows[0] != rows[1]


def test_the_shuffle_depends_on_the_seed_alone() -> None:
    def order(seed: int) -> list[Row]:
        return epoch_rows(plan_of((9, 9), (9,), shuffle="rows", seed=seed), 0)

    assert order(1) == order(1)
    assert order(1) != order(2)


def test_a_seeds_permutation_never_changes() -> None:
    order = plan_of((8,), shuffle="rows", seed=7).row_order(0, 0, 0)

    assert order is not None
    assert order.dtype == np.int64
    assert order.tolist() == [7, 2, 1, 6, 3, 5, 4, 0]


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 200), st.integers(0, 5))
def test_a_row_order_is_a_permutation(rows: int, epoch: int) -> None:
    order = plan_of((rows,), shuffle="rows", epochs=6).row_order(epoch, 0, 0)

    assert order is not None
    assert sorted(order.tolist()) == list(range(rows))


def test_batch_ids_outside_the_plan_are_refused() -> None:
    plan = plan_of((8,), epochs=2)

    for batch_id in (-1, 4):
        with pytest.raises(IndexError, match=r"\[0, 4\)"):
            plan.pieces(batch_id)


@pytest.mark.parametrize("option", ["batch_size", "lanes"])
def test_a_plan_without_batches_or_lanes_is_refused(option: str) -> None:
    with pytest.raises(ValueError, match=option):
        plan_of((8,), **{option: 0})


@settings(max_examples=50, deadline=None)
@given(plans)
def test_a_plan_survives_json_and_pickling(plan: Plan) -> None:
    if plan.total_batches:
        plan.pieces(0)

    assert Plan.from_json(json.loads(json.dumps(plan.to_json()))) == plan
    assert pickle.loads(pickle.dumps(plan)) == plan


# Files


def test_a_plan_has_the_sizes_and_row_groups_of_its_files(tmp_path: Path) -> None:
    b = write(tmp_path / "b.parquet", pa.array(range(10)), row_group_size=4)
    a = write(tmp_path / "a.parquet", pa.array(range(3)))

    plan = make_plan([b, a], spec(lanes=2, epochs=3, shuffle="files", seed=5))

    assert [file.path for file in plan.files] == [b, a]
    assert [file.row_group_rows for file in plan.files] == [(4, 4, 2), (3,)]
    assert [file.size for file in plan.files] == [Path(p).stat().st_size for p in (b, a)]
    assert (plan.lanes, plan.epochs, plan.shuffle, plan.seed) == (2, 3, "files", 5)
    assert plan.total_batches == 12


def test_the_digest_differs_where_the_footer_does(tmp_path: Path) -> None:
    paths = [write(tmp_path / f"{i}.parquet", pa.array([i, 5])) for i in range(2)]
    again = write(tmp_path / "again.parquet", pa.array([0, 5]))

    one, other, same = make_plan([*paths, again], spec()).files

    assert one.footer_digest != other.footer_digest
    assert one.footer_digest == same.footer_digest


def test_a_plan_knows_whether_its_files_are_what_they_were(tmp_path: Path) -> None:
    paths = [write(tmp_path / f"{i}.parquet", pa.array(range(10 + i))) for i in range(40)]
    plan = Plan.from_json(json.loads(json.dumps(make_plan(paths, spec()).to_json())))
    check_unchanged(plan)

    write(Path(paths[7]), pa.array(range(11)))
    with pytest.raises(DataError, match=r"changed since it was planned(.|\n)*7\.parquet"):
        check_unchanged(plan)
    Path(paths[7]).unlink()
    with pytest.raises(DataError, match=r"is gone \(file .*7\.parquet.*put it back where it was"):
        check_unchanged(plan)


def test_a_footer_longer_than_the_first_request_is_read(tmp_path: Path) -> None:
    path = write(tmp_path / "f.parquet", pa.array(range(1200)), row_group_size=1)
    assert int.from_bytes(Path(path).read_bytes()[-8:-4], "little") > 1 << 16

    assert make_plan([path], spec()).files[0].row_group_rows == (1,) * 1200


def test_files_without_rows_have_no_samples(tmp_path: Path) -> None:
    write(tmp_path / "a.parquet", pa.array([], pa.int64()))
    table = pa.table({"y": pa.array([1]), "c": pa.array([1])})
    with pq.ParquetWriter(tmp_path / "b.parquet", table.schema) as writer:
        writer.write_table(table.slice(0, 0))
        writer.write_table(table)
    pq.ParquetWriter(tmp_path / "c.parquet", table.schema).close()

    plan = make_plan([str(tmp_path)], spec())

    assert [file.row_group_rows for file in plan.files] == [(0,), (0, 1), ()]
    assert rows_of(plan, 0) == [(1, 1, 0)]


def test_no_rows_make_no_batches(tmp_path: Path) -> None:
    plan = make_plan([write(tmp_path / "a.parquet", pa.array([], pa.int64()))], spec())

    assert (plan.rows_per_epoch, plan.total_batches) == (0, 0)


BROKEN = {
    "empty": lambda data: b"",
    "short": lambda data: data[:6],
    "cut at the start of the footer": lambda data: data[: -int.from_bytes(data[-8:-4], "little")],
    "cut by a byte": lambda data: data[:-1],
    "footer length too large": lambda data: data[:-8] + b"\xff\xff\xff\x7f" + b"PAR1",
    "footer of noise": lambda data: data[:-40] + b"\xff" * 32 + data[-8:],
    "text": lambda data: b"label,c\n1,2\n" * 9,
}


@pytest.mark.parametrize("damage", BROKEN.values(), ids=BROKEN.keys())
def test_an_unreadable_footer_is_named_or_left_out(
    tmp_path: Path, damage: Any, caplog: pytest.LogCaptureFixture
) -> None:
    good = write(tmp_path / "good.parquet", pa.array(range(5)))
    bad = tmp_path / "bad.parquet"
    bad.write_bytes(damage(Path(good).read_bytes()))

    with pytest.raises(UnreadableError) as caught:
        make_plan([good, str(bad)], spec())
    with caplog.at_level(logging.WARNING):
        plan = make_plan([good, str(bad)], spec(on_bad_file="skip"))

    assert caught.value.file == str(bad)
    assert plan.skipped_files == (str(bad),)
    assert [file.path for file in plan.files] == [good]
    assert str(bad) in caplog.text


def test_a_footer_whose_counts_of_rows_differ_is_unreadable(tmp_path: Path) -> None:
    path = Path(write(tmp_path / "f.parquet", pa.array(range(8191))))
    data = path.read_bytes()
    footer = len(data) - 8 - int.from_bytes(data[-8:-4], "little")
    # 8191 as the footer's variable-length integer; the first one is the count of the whole file.
    at = data.index(b"\xfe\x7f", footer)
    path.write_bytes(data[:at] + b"\xfc\x7f" + data[at + 2 :])

    with pytest.raises(UnreadableError, match="8190"):
        make_plan([str(path)], spec())


def test_a_file_that_lacks_a_column_is_refused_even_where_bad_files_are_skipped(
    tmp_path: Path,
) -> None:
    good = write(tmp_path / "good.parquet", pa.array(range(5)))
    pq.write_table(pa.table({"y": [1], "C": [1]}), tmp_path / "other.parquet")

    with pytest.raises(DataError, match="column 'c'") as caught:
        make_plan([good, str(tmp_path / "other.parquet")], spec(on_bad_file="skip"))

    assert caught.value.file == str(tmp_path / "other.parquet")


def test_files_that_disagree_on_a_type_are_both_named(tmp_path: Path) -> None:
    integers = write(tmp_path / "a.parquet", pa.array([1]))
    strings = write(tmp_path / "b.parquet", pa.array(["1"]))

    with pytest.raises(DataError) as caught:
        make_plan([integers, strings], spec())

    assert caught.value.column == "c"
    assert integers in str(caught.value)
    assert strings in str(caught.value)


@pytest.mark.parametrize(
    "arrays",
    [
        [pa.array([1], pa.int8()), pa.array([1], pa.uint64()), pa.array([True])],
        [pa.array(["a"]), pa.array([b"a"]), pa.array(["a"]).dictionary_encode()],
        [pa.nulls(1), pa.array(["a"]), pa.nulls(2)],
        [pa.array([[]], pa.list_(pa.null())), pa.array([[1]], pa.large_list(pa.int32()))],
    ],
    ids=["integers", "strings", "nulls", "lists"],
)
def test_files_with_types_of_the_same_keys_agree(tmp_path: Path, arrays: list[pa.Array]) -> None:
    for i, array in enumerate(arrays):
        write(tmp_path / f"{i}.parquet", array)

    assert len(make_plan([str(tmp_path)], spec()).files) == len(arrays)


def test_the_order_of_an_epoch_is_kept_between_batches() -> None:
    plan = plan_of(*[(1000,) * 100] * 100, batch_size=2048, lanes=4, shuffle="rows", epochs=2)
    last = plan.total_batches - 1

    plan.pieces(last)
    order = plan._order(1)
    plan.pieces(0)

    assert plan._order(1) is order
    assert sum(piece.stop - piece.start for piece in plan.pieces(last)) == plan.rows_of(last)


# Errors


@pytest.mark.parametrize("kind", [DataError, UnreadableError])
def test_errors_survive_pickling(kind: type[DataError]) -> None:
    error = kind(
        what="a label is not 0 or 1", file="f", column="y", row_group=0, row=7, got="g", remedy="r"
    )

    copy = pickle.loads(pickle.dumps(error))

    assert type(copy) is kind
    assert str(copy) == str(error)
    assert (copy.file, copy.column, copy.row_group, copy.row) == ("f", "y", 0, 7)


def test_an_error_says_what_where_got_and_what_to_do() -> None:
    error = DataError(what="it failed", file="f", row_group=0, got="got 1", remedy="Do that")

    assert str(error) == "it failed (file 'f', row group 0): got 1. Do that"
