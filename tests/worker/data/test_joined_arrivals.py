"""Two folders become files of samples with their labels: when, and again after a death."""

import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from runtime.storage import StorageError
from worker.data.arrivals import Arrivals
from worker.data.arrived import NewFile
from worker.data.directory_stream import DirectoryStream
from worker.data.joined_arrivals import JoinedArrivals, first_position
from worker.data.label_join import LabelJoin
from worker.data.streams import Arrival
from worker.data.task_join import TaskJoin, joined_tasks
from worker.errors import DataError
from worker.spec import FeatureSpec, SparseFeature, TaskLabel

FEATURES = FeatureSpec(
    label="label",
    dense=("d",),
    dense_transform="none",
    sparse=(SparseFeature(name="a", column="a", table="a"),),
)
SAMPLES = FeatureSpec(
    label=None, dense=("d",), dense_transform="none", sparse=FEATURES.sparse, key="key"
)
LABELS = FeatureSpec(label="click", dense=(), dense_transform="none", sparse=(), key="key")
WINDOW = 10.0


class Folder(DirectoryStream):
    """A stream that can be out of reach, and says what was removed."""

    def __init__(self, folder: Path) -> None:
        super().__init__(str(folder), removes=True)
        self.is_there = True

    def poll(self, *, most: int, now: float) -> list[Arrival]:
        if not self.is_there:
            raise StorageError(self.folder, "it does not answer", "Wait")
        self._next_listing = 0.0  # however long the last listing took
        return super().poll(most=most, now=now)


class Both:
    """Both folders, and what joins them."""

    def __init__(self, root: Path, **options: Any) -> None:
        self.features = options.get("features", FEATURES)
        told = options.get("labels", LABELS)
        self.root = root
        for name in ("samples", "labels"):
            (root / name).mkdir(exist_ok=True)
        self.samples, self.labels = Folder(root / "samples"), Folder(root / "labels")
        agreed: dict[tuple[str, str], tuple[str, str]] = {}
        both = [
            Arrivals(
                stream,
                features,
                kinds=(),
                on_bad_file=options.get("on_bad_file", "fail"),
                on_bad_record=options.get("on_bad_record", "fail"),
                aside=root / "aside",
                agreed=agreed,
            )
            for stream, features in ((self.samples, SAMPLES), (self.labels, told))
        ]
        self.joined = JoinedArrivals(
            *both,
            features=self.features,
            make_join=options.get(
                "make_join",
                lambda: LabelJoin(
                    window_seconds=WINDOW,
                    late_seconds=options.get("late", WINDOW),
                    again=options.get("again", False),
                ),
            ),
            folder=root / "arrived",
            most_remembered=options.get("most", 10**6),
        )
        self.begin = first_position(self.samples.position, self.labels.position)
        self.joined.seek(options.get("position", self.begin))

    def take(self, now: float) -> list[tuple[Any, int]]:
        """Return keys and labels of what is joined by now."""
        return [each for file in self.joined.take(most=64, now=now) for each in rows_of(file)]

    def write_samples(self, at: float, *keys: Any, **columns: Any) -> None:
        table = {"key": keys, "d": [at] * len(keys), "a": list(range(len(keys)))}
        put(pa.table({**table, **columns}), self.root / "samples" / f"{at:05.1f}.parquet", at)

    def write_labels(self, at: float, *keys: Any, value: Any = 1) -> None:
        table = pa.table({"key": keys, "click": [value] * len(keys)})
        put(table, self.root / "labels" / f"{at:05.1f}.parquet", at)


def put(table: pa.Table, path: Path, at: float) -> None:
    pq.write_table(table, path, row_group_size=2)
    os.utime(path, (at, at))


def rows_of(file: NewFile) -> Iterator[tuple[Any, int]]:
    table = pq.read_table(file.plan.path)
    assert sum(file.plan.row_group_rows) == table.num_rows
    yield from zip(table["key"].to_pylist(), table["label"].to_pylist(), strict=True)


@pytest.fixture
def both(tmp_path: Path) -> Both:
    return Both(tmp_path)


def test_samples_come_once_they_have_their_label(both: Both) -> None:
    both.write_samples(100, 1, 2, 3)
    both.write_samples(101, 4, 5)

    assert both.take(102) == []
    assert both.joined.waits
    both.write_labels(103, 5, 2)
    assert both.take(104) == [(2, 1), (5, 1)]
    assert both.take(109.9) == []
    assert both.take(110) == [(1, 0), (3, 0)]
    assert both.take(111) == [(4, 0)]
    assert not both.joined.waits


def test_a_file_of_joined_samples_has_all_columns_and_arrives_when_it_is_made(both: Both) -> None:
    both.write_samples(100, 7, 8, other=["x", "y"])
    both.write_labels(101, 8)

    (file,) = both.joined.take(most=64, now=120.0)

    assert pq.read_table(file.plan.path).to_pylist() == [
        {"key": 7, "d": 100.0, "a": 0, "label": 0},
        {"key": 8, "d": 100.0, "a": 1, "label": 1},
    ]
    assert file.at == 120.0


def test_it_counts_when_files_arrived_and_not_when_they_are_read(both: Both) -> None:
    both.write_samples(100, 1, 2)
    both.write_labels(109, 1)
    both.write_labels(111, 2)

    assert both.take(500) == [(1, 1), (2, 0)]
    assert both.joined.figures.counts.late == 1


def test_while_labels_are_out_of_reach_nothing_is_a_negative(both: Both) -> None:
    both.write_samples(100, 1, 2)
    both.labels.is_there = False

    with pytest.raises(StorageError):
        both.take(200)
    with pytest.raises(StorageError):
        both.take(300)
    both.labels.is_there = True
    both.write_labels(105, 2)
    assert both.take(301) == [(1, 0), (2, 1)]


def test_samples_that_are_too_many_stay_in_their_stream(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("worker.data.joined_arrivals.FILES_AT_ONCE", 1)
    both = Both(tmp_path, most=3, late=0.0)
    for at in range(100, 108):
        both.write_samples(at, at, -at)
    both.write_labels(107, -106, 103)

    found = both.take(109)
    assert both.joined.figures.remembered[0] == 4, "a file more than there is room for"
    assert both.joined.lag().files == 6
    for second in range(110, 120):
        found += both.take(second)
        assert both.joined.figures.remembered[0] <= 4
    (note,) = both.joined.take_notes()
    assert "max_waiting" in note

    right = [(key, int(key in (-106, 103))) for at in range(100, 108) for key in (at, -at)]
    assert sorted(found) == sorted(right)


def test_keys_that_do_not_fit_are_told_once(both: Both) -> None:
    both.write_samples(1, *range(50))
    both.write_labels(1, *range(1000, 1099))
    both.write_samples(60, *range(50, 60))
    both.take(now=61)
    assert both.joined.take_notes() == []  # of 99 labels

    both.write_labels(62, *range(2000, 2001))
    for at in (63, 90, 120):
        both.write_samples(at, at)
        both.take(now=at + 0.5)
    (note,) = both.joined.take_notes()
    assert "100 labels are of no sample" in note
    assert "data.label_stream.key (key)" in note


def test_labels_of_which_some_find_their_sample_are_not_complained_of(both: Both) -> None:
    both.write_samples(1, 1)
    both.write_labels(2, 1, *range(1000, 1400))
    for at in (3, 40, 80):
        both.write_samples(at, at)
        both.take(now=at + 0.5)
    assert both.joined.figures.counts.orphans >= 100
    assert both.joined.take_notes() == []


@pytest.mark.parametrize("step", range(0, 24, 5))
def test_another_one_goes_on_with_the_same_outcome(tmp_path: Path, step: int) -> None:
    both = Both(tmp_path)
    found, positions = [], [both.begin]
    for second in range(24):
        at = 100.0 + second
        both.write_samples(at, second, 100 + second)
        both.write_labels(at, second - 1, 100 + second - second % 7)
        found += both.take(at)
        positions.append(both.joined.position)
        if len(positions) == step + 2:
            begins_with = len(found)
    found += both.take(150)

    again = Both(tmp_path, position=positions[step + 1])

    rest = [each for _ in range(9) for each in again.take(150)]
    assert sorted(rest) == sorted(found[begins_with:])
    assert again.joined.figures.counts == both.joined.figures.counts


@pytest.mark.parametrize("saves", [False, True])
def test_what_waited_at_a_step_is_known_to_who_begins_there(
    tmp_path: Path, saves: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if saves:
        monkeypatch.setattr("worker.data.joined_arrivals.LEAST_SAVED", 1)
    both = Both(tmp_path)
    both.write_samples(100, "a", "b", "c")
    both.take(101)
    both.write_labels(102, "b")
    assert both.take(102) == [("b", 1)]
    position = both.joined.position
    both.write_labels(103, "c")
    assert both.take(104) == [("c", 1)]

    other = Both(tmp_path, position=position)

    assert other.joined.position == position
    assert other.joined.figures.counts.waiting == 2
    assert other.take(105) == [("c", 1)]
    assert other.take(110) == [("a", 0)]


def test_files_are_let_go_of_once_nobody_begins_before_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("worker.data.joined_arrivals.LEAST_SAVED", 1)
    both = Both(tmp_path, late=0.0)
    made = []
    for second in range(30):
        at = 100.0 + second
        both.write_samples(at, second)
        both.write_labels(at, second - 5)
        made += both.joined.take(most=64, now=at)
    position = both.joined.position
    assert len(made) == 25

    for file in made:
        both.joined.remove(file.plan.path)

    def left(name: str) -> list[str]:
        return sorted(path.stem for path in (tmp_path / name).iterdir())

    # Five wait; others are there since what is known is not written down with each step.
    assert 5 <= len(left("samples")) < 20
    assert len(left("labels")) < 15
    assert len(left("arrived/rows")) <= 10
    assert left("arrived/joined") == []
    both.write_labels(130, 25)
    assert Both(tmp_path, late=0.0, position=position).take(131) == [(25, 1)]


def test_rows_that_wait_are_read_again_where_their_copy_is_gone(both: Both, tmp_path: Path) -> None:
    both.write_samples(100, 1, 2)
    both.take(101)
    position = both.joined.position
    for path in (tmp_path / "arrived" / "rows").iterdir():
        path.unlink()

    assert Both(tmp_path, position=position).take(120) == [(1, 0), (2, 0)]


def test_what_was_known_at_a_step_and_is_gone_is_said(both: Both, tmp_path: Path) -> None:
    both.write_samples(100, 1)
    both.take(101)
    position = both.joined.position
    for path in (tmp_path / "arrived" / "log").iterdir():
        path.unlink()

    with pytest.raises(DataError, match="what waited for its label is not known any more"):
        Both(tmp_path, position=position)
    with pytest.raises(ValueError, match="no position"):
        Both(tmp_path, position={"step": 1})


def test_the_end_waits_for_the_labels_of_what_has_arrived(both: Both) -> None:
    both.write_samples(100, 1)
    both.take(101)
    both.joined.finish()
    assert both.take(102) == []
    both.write_samples(103, 2)

    assert both.take(110) == [(1, 0)]
    assert both.joined.took_all
    assert not both.joined.waits, "what came after the end was not taken"


# Bad input


def test_a_key_that_is_null_ends_the_job_or_is_left_out(tmp_path: Path) -> None:
    both = Both(tmp_path)
    both.write_samples(100, 1, 2, 3, None)
    with pytest.raises(DataError, match=r"a key of labels is null.*\n?.*row 1"):
        both.take(101)

    other = Both(tmp_path, on_bad_record="quarantine")

    other.write_labels(100, None, 1)
    assert other.take(120) == [(1, 1), (2, 0), (3, 0)]
    assert other.joined.skipped == (0, 2)
    assert pq.read_table(tmp_path / "aside")["_reason"].to_pylist()[0].startswith("a key of labels")


def test_a_wrong_label_ends_the_job_or_is_left_out(tmp_path: Path) -> None:
    both = Both(tmp_path)
    both.write_samples(100, 1)
    both.write_labels(101, 1, value=3)
    with pytest.raises(DataError, match="a label is not 0 or 1"):
        both.take(102)

    assert Both(tmp_path, on_bad_record="skip").take(120) == [(1, 0)]


def test_keys_of_another_kind_are_refused(both: Both) -> None:
    both.write_samples(100, 1)
    both.write_labels(101, "1")

    with pytest.raises(DataError, match="a key of labels differs between files"):
        both.take(102)


@pytest.mark.parametrize("name", ["samples", "labels"])
def test_a_stream_without_the_key_is_refused(both: Both, tmp_path: Path, name: str) -> None:
    put(pa.table({"d": [1.0], "a": [1], "click": [1]}), tmp_path / name / "1.parquet", 100)

    with pytest.raises(DataError, match="lacks a column") as caught:
        both.take(101)

    assert "key" in str(caught.value)


def test_keys_that_are_lists_are_refused(both: Both) -> None:
    both.write_samples(100, [1, 2], [3])

    with pytest.raises(DataError, match="a key of labels has an unusable type"):
        both.take(101)


def test_a_file_that_can_t_be_read_is_left_out(tmp_path: Path) -> None:
    both = Both(tmp_path, on_bad_file="skip")
    both.write_samples(100, *range(1000))
    path = tmp_path / "samples" / "100.0.parquet"
    data = bytearray(path.read_bytes())
    data[40:400] = bytes(360)
    path.write_bytes(data)
    os.utime(path, (100, 100))
    both.write_samples(101, 5000)

    assert both.take(120) == [(5000, 0)]
    assert both.joined.skipped == (1, 0)
    assert both.joined.first_refused == [str(path)]


TASKS = (
    TaskLabel(name="click", column="clicked"),
    TaskLabel(name="convert", column="buy", where="click"),
)


def of_tasks(root: Path, **options: Any) -> Both:
    def make_join() -> TaskJoin:
        joins = [
            LabelJoin(window_seconds=window, late_seconds=0, again=False) for window in (5.0, 20.0)
        ]
        return TaskJoin(joins, TASKS, together=False)

    labels = [TaskLabel(name=task.name, column=task.column, missing="mask") for task in TASKS]
    return Both(
        root,
        features=replace(FEATURES, label=None, tasks=joined_tasks(TASKS)),
        labels=replace(LABELS, label=None, tasks=tuple(labels)),
        make_join=make_join,
        **options,
    )


def test_tasks_come_each_with_its_label_and_so_they_do_to_who_goes_on(tmp_path: Path) -> None:
    def tell(both: Both, at: float, **columns: list[Any]) -> None:
        put(pa.table(columns), both.root / "labels" / f"{at:05.1f}.parquet", at)

    def take(both: Both, now: float) -> list[dict[str, Any]]:
        files = both.joined.take(most=64, now=now)
        return [row for file in files for row in pq.read_table(file.plan.path).to_pylist()]

    def row(key: int, click: int | None, convert: int | None) -> dict[str, Any]:
        labels = {"synchromesh.label.click": click, "synchromesh.label.convert": convert}
        return {"key": key, "d": 100.0, "a": key - 1, **labels}

    both = of_tasks(tmp_path)
    both.write_samples(100, 1, 2, 3)
    tell(both, 101, key=[1, 2], clicked=[1, 1], buy=pa.nulls(2, pa.int8()))
    assert take(both, 102) == [row(1, 1, None), row(2, 1, None)]
    position = both.joined.position
    tell(both, 104, key=[2], clicked=pa.nulls(1, pa.int8()), buy=[1])
    rest = [row(2, None, 1), row(3, 0, None), row(1, None, 0)]
    for own in (both, of_tasks(tmp_path, position=position)):
        assert [*take(own, 104), *take(own, 106), *take(own, 120)] == rest
        assert not own.joined.waits
    assert both.joined.figures.counts_of["buy"].joined == 1
    assert both.joined.figures.counts.samples == 3


def test_a_label_of_a_task_that_is_none_is_refused_by_its_column(tmp_path: Path) -> None:
    both = of_tasks(tmp_path)
    put(
        pa.table({"key": [1], "clicked": [None], "buy": [2]}),
        tmp_path / "labels" / "100.0.parquet",
        100,
    )

    with pytest.raises(DataError, match=r"buy.*got 2, expected 0 or 1"):
        both.take(101)
