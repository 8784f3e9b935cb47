"""Which requests are computed together: the state machine, without a clock."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving.batching import Batcher, Close, Late, Take, Wait, by_load
from serving.errors import OverloadError


def batcher(max_batch: int = 10, max_delay: float = 0.0, max_waiting: int = 3) -> Batcher[str]:
    return Batcher(max_batch=max_batch, max_delay=max_delay, max_waiting=max_waiting)


def test_what_waits_is_taken_together_and_then_computed() -> None:
    queue = batcher()
    queue.offer("a", 0.0, 9.0)
    queue.offer("b", 0.1, 9.0)

    assert queue.next(0.2, 0) == Take("a")
    assert queue.next(0.2, 4) == Take("b")
    assert queue.next(0.2, 6) == Close()
    assert queue.next(0.2, 0) == Wait(None)


def test_a_full_batch_takes_no_more() -> None:
    queue = batcher(max_batch=4)
    queue.offer("a", 0.0, 9.0)
    queue.offer("b", 0.0, 9.0)

    assert queue.next(0.0, 0) == Take("a")
    assert queue.next(0.0, 4) == Close()
    assert len(queue) == 1


def test_others_are_waited_for_until_the_first_has_waited_the_delay() -> None:
    queue = batcher(max_delay=0.5)
    queue.offer("a", 1.0, 9.0)

    assert queue.next(1.2, 0) == Take("a")
    assert queue.next(1.2, 1) == Wait(pytest.approx(0.3))
    queue.offer("b", 1.4, 9.0)
    assert queue.next(1.4, 1) == Take("b")
    assert queue.next(1.5, 2) == Close()


def test_a_request_whose_time_is_over_is_not_computed() -> None:
    queue = batcher()
    queue.offer("a", 0.0, 1.0)
    queue.offer("b", 0.0, 3.0)

    assert queue.next(1.0, 0) == Late("a")
    assert queue.next(1.0, 0) == Take("b")


def test_more_than_may_wait_are_refused() -> None:
    queue = batcher(max_waiting=2)
    queue.offer("a", 0.0, 9.0)
    queue.offer("b", 0.0, 9.0)

    with pytest.raises(OverloadError, match="2 requests wait, no more may"):
        queue.offer("c", 0.0, 9.0)

    queue.next(0.0, 0)
    queue.offer("c", 0.0, 9.0)


@given(
    st.lists(st.tuples(st.integers(1, 20), st.floats(0, 0.3), st.floats(0.01, 1)), max_size=30),
    st.integers(1, 40),
    st.floats(0, 0.5),
)
def test_each_request_comes_once_in_order_and_none_waits_longer_than_the_delay(
    arrivals: list[tuple[int, float, float]], max_batch: int, max_delay: float
) -> None:
    queue: Batcher[int] = Batcher(max_batch=max_batch, max_delay=max_delay, max_waiting=100)
    now, times = 0.0, []
    for _, gap, _ in arrivals:
        now += gap
        times.append(now)
    waiting = list(range(len(arrivals)))
    now, samples, seen, open_since = 0.0, 0, [], None
    while True:
        while waiting and times[waiting[0]] <= now:
            number = waiting.pop(0)
            queue.offer(number, times[number], times[number] + arrivals[number][2])
        step = queue.next(now, samples)
        if isinstance(step, Take | Late):
            seen.append(step.item)
            assert isinstance(step, Late) == (now >= times[step.item] + arrivals[step.item][2])
            if isinstance(step, Take):
                assert samples < max_batch
                open_since = times[step.item] if samples == 0 else open_since
                samples += arrivals[step.item][0]
        elif isinstance(step, Close):
            assert samples > 0
            samples = 0
        elif step.seconds is None:
            assert samples == 0
            if not waiting:
                break
            now = times[waiting[0]]
        else:
            assert open_since is not None
            assert now + step.seconds <= open_since + max_delay + 1e-9
            now = min([now + step.seconds, *(times[number] for number in waiting[:1])])
    assert seen == list(range(len(arrivals)))


def test_the_session_with_the_fewest_requests_comes_first() -> None:
    assert by_load([2, 1, 1, 0]) == [3, 1, 2, 0]
