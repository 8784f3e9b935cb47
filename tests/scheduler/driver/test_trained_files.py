"""Which files of a stream no checkpoint needs any more."""

from scheduler.coordinator.growing_plan import Cursor, Extension
from scheduler.driver.trained_files import TrainedFiles
from worker.data.arrived import ArrivedFile, PlannedBatch, Rows
from worker.data.plan import FilePlan


def files(*names: str, first: int = 0) -> tuple[ArrivedFile, ...]:
    return tuple(
        ArrivedFile(number, number, FilePlan(name, 1, (10,), ""))
        for number, name in enumerate(names, first)
    )


def batch(*rows: Rows) -> PlannedBatch:
    return PlannedBatch(rows, 0.0)


def test_a_file_goes_once_only_batches_that_no_checkpoint_needs_have_rows_of_it() -> None:
    trained = TrainedFiles()
    trained.add(
        Extension(
            first=0,
            batches=(batch((0, 0, 0, 6)), batch((0, 0, 6, 10), (1, 0, 0, 2))),
            files=files("a", "b", "c"),
            cursor=Cursor(rest=((1, 0, 2, 10), (2, 0, 0, 10)), next_file=3),
        )
    )

    assert trained.take(1) == []
    assert trained.take(2) == ["a"], "of b rows wait to be planned"
    trained.add(
        Extension(
            first=2,
            batches=(batch((1, 0, 2, 10)), batch((2, 0, 0, 10))),
            cursor=Cursor(next_file=3),
        )
    )
    assert trained.take(2) == []
    assert trained.take(3) == ["b"]
    assert trained.take(4) == ["c"]
    assert trained.take(4) == []


def test_nothing_goes_of_what_is_not_known() -> None:
    trained = TrainedFiles()
    trained.add(Extension(first=5, files=files("a", first=7), cursor=Cursor(next_file=8)))

    assert trained.take(9) == []
