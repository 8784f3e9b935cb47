"""The least of numbers that come and go."""

import random

import pytest

from scheduler.coordinator.least import Least


def test_it_is_the_least_of_what_was_added_and_not_removed() -> None:
    rng = random.Random(1)
    least, numbers = Least(), list[int]()
    for _ in range(2000):
        action = rng.random()
        if action < 0.5 or not numbers:
            numbers.append(rng.randrange(50))
            least.add(numbers[-1])
        elif action < 0.8:
            least.remove(numbers.pop(rng.randrange(len(numbers))))
        else:
            place = rng.randrange(len(numbers))
            number, numbers[place] = numbers[place], rng.randrange(50)
            least.move(number, numbers[place])
        assert least.value == min(numbers, default=None)
        assert len(least) == len(numbers)


def test_what_is_not_there_can_not_be_removed() -> None:
    least = Least()
    least.add(3)

    with pytest.raises(AssertionError, match="4 is not there"):
        least.remove(4)


def test_numbers_that_come_back_behind_the_least_take_no_memory() -> None:
    least = Least()
    least.add(0)
    for _ in range(1000):
        least.add(5)
        least.remove(5)

    assert len(least._heap) == 2


def test_numbers_that_pass_behind_a_least_that_stays_take_no_memory() -> None:
    least = Least()
    least.add(0)
    least.add(1)
    for number in range(1, 10_000):
        least.move(number, number + 1)

    assert len(least._heap) == len(least._counts) < 100
    assert least.value == 0
    least.remove(0)
    assert least.value == 10_000
