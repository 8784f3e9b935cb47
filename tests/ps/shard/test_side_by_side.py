import threading
from collections.abc import Iterator
from functools import partial

import pytest

from ps.shard.side_by_side import RunAll, Threads, in_turn


@pytest.fixture(params=["in turn", "threads"])
def run_all(request: pytest.FixtureRequest) -> Iterator[RunAll]:
    if request.param == "in turn":
        yield in_turn
        return
    threads = Threads(3)
    yield threads
    threads.close()


def test_all_tasks_have_run_when_it_returns(run_all: RunAll) -> None:
    done: list[int] = []
    tasks = [partial(done.append, i) for i in range(3)]
    for rounds in range(1, 50):
        run_all(tasks)
        assert sorted(done) == sorted(rounds * [0, 1, 2])


@pytest.mark.parametrize("failing", [0, 1, 2])
def test_what_a_task_raises_is_raised(run_all: RunAll, failing: int) -> None:
    def fail() -> None:
        raise ValueError("no room")

    tasks = [fail if i == failing else (lambda: None) for i in range(3)]
    with pytest.raises(ValueError, match="no room"):
        run_all(tasks)


def test_closed_threads_leave_tasks_to_the_caller() -> None:
    threads = Threads(2)
    threads.close()
    done: list[int] = []

    threads([partial(done.append, i) for i in range(3)])

    assert done == [0, 1, 2]


def test_threads_run_tasks_at_the_same_time_and_end_all_of_them_before_one_failure_is_raised() -> (
    None
):
    threads = Threads(2)
    both = threading.Barrier(2)
    ended = []

    def fail() -> None:
        both.wait(60)
        raise ValueError("no room")

    def end() -> None:
        both.wait(60)
        ended.append(True)

    try:
        with pytest.raises(ValueError, match="no room"):
            threads([fail, end])
        assert ended == [True]
    finally:
        threads.close()
