"""Of what happens all the time the newest is remembered."""

import sys

from runtime.tail import Tail


def test_of_what_comes_every_second_the_newest_are_remembered_and_told_once() -> None:
    tail: Tail[int] = Tail(most=4)
    told = 0
    heard: list[int] = []
    for number in range(10):
        tail.append(number)
        if number % 3 == 2:
            heard += tail.since(told)
            told = tail.count
    assert heard == list(range(9))
    assert list(tail) == [6, 7, 8, 9]
    assert tail.since(0) == (6, 7, 8, 9), "who asks too late hears of these"
    assert tail.since(9) == (9,)
    assert tail.since(10) == tail.since(99) == tail.since(sys.maxsize) == ()
