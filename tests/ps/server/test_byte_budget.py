import threading
import time
from collections.abc import Callable

from ps.server.byte_budget import ByteBudget


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.001)


class Holder:
    """A thread that holds bytes until it is told to let go."""

    def __init__(self, budget: ByteBudget, nbytes: int) -> None:
        self.holds = threading.Event()
        self.let_go = threading.Event()
        waiting = len(budget._waiting)

        def work() -> None:
            with budget.hold(nbytes):
                self.holds.set()
                self.let_go.wait(60)

        self._thread = threading.Thread(target=work)
        self._thread.start()
        until(lambda: self.holds.is_set() or len(budget._waiting) > waiting)

    def end(self) -> None:
        self.let_go.set()
        self._thread.join(10)


def test_no_more_is_held_than_the_limit_and_the_first_to_ask_is_the_first_to_get() -> None:
    budget = ByteBudget(10)
    first, second, large, small = (Holder(budget, n) for n in (4, 6, 7, 1))
    assert [h.holds.is_set() for h in (first, second, large, small)] == [True, True, False, False]
    assert budget.is_short

    first.end()
    time.sleep(0.02)
    assert not small.holds.is_set(), "it would fit, but another was there before"
    second.end()
    for holder in (large, small):
        assert holder.holds.wait(60)
        holder.end()

    assert not budget.is_short
    assert budget._held == 0


def test_what_is_larger_than_the_limit_is_held_alone() -> None:
    budget = ByteBudget(10)
    small, huge = Holder(budget, 1), Holder(budget, 1000)
    assert not huge.holds.is_set()

    small.end()
    assert huge.holds.wait(60)
    another = Holder(budget, 1)
    assert not another.holds.is_set()
    huge.end()
    assert another.holds.wait(60)
    another.end()


def test_what_fails_gives_its_bytes_back() -> None:
    budget = ByteBudget(10)
    try:
        with budget.hold(10):
            raise ValueError
    except ValueError:
        pass

    assert budget._held == 0
