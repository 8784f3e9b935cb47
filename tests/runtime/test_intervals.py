import random

from runtime.intervals import Intervals


def test_it_holds_what_a_set_holds() -> None:
    rng = random.Random(1)
    for _ in range(200):
        intervals, numbers = Intervals(), set[int]()
        for _ in range(60):
            number = rng.randrange(-10, 30)
            if rng.random() < 0.9:
                intervals.add(number)
                numbers.add(number)
            else:
                intervals.forget(below=number)
                numbers = {other for other in numbers if other >= number}
            assert [n for n in range(-12, 32) if n in intervals] == sorted(numbers)
            assert [n for first, stop in intervals for n in range(first, stop)] == sorted(numbers)
            starts = [n for n in numbers if n - 1 not in numbers]
            assert len(intervals) == len(starts)
            first_free = next(n for n in range(number, 40) if n not in numbers)
            assert intervals.end_of(number) == first_free


def test_many_numbers_with_two_gaps_are_three_intervals() -> None:
    intervals = Intervals()
    for number in range(100_000):
        if number not in (0, 7, 50_000):
            intervals.add(number)

    assert list(intervals) == [(1, 7), (8, 50_000), (50_001, 100_000)]


def test_many_that_are_added_at_once_are_there_as_if_one_by_one() -> None:
    rng = random.Random(2)
    for _ in range(200):
        together, one_by_one = Intervals(), Intervals()
        for _ in range(8):
            numbers = [rng.randrange(40) for _ in range(rng.randrange(12))]
            together.add_all(numbers)
            for number in numbers:
                one_by_one.add(number)
            assert list(together) == list(one_by_one)


def test_nothing_is_left_after_clear() -> None:
    intervals = Intervals()
    intervals.add(3)

    intervals.clear()

    assert 3 not in intervals
    assert len(intervals) == 0
