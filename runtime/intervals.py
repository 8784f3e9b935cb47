"""A set of whole numbers in which most neighbours are there too, kept as intervals."""

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator, Sequence


class Intervals:
    """Whole numbers as intervals, in ascending order, that neither overlap nor touch.

    It takes memory for each gap between the numbers, however many they are: such as the batches
    that are resolved while a few earlier ones are not.

    Args:
        intervals: (first, last + 1) of each, as they are iterated over.
    """

    def __init__(self, intervals: Iterable[tuple[int, int]] = ()) -> None:
        # Interval i holds the numbers from starts[i] to stops[i] - 1.
        self._starts: list[int] = []
        self._stops: list[int] = []
        for first, stop in intervals:
            self._starts.append(first)
            self._stops.append(stop)

    def __len__(self) -> int:
        """How many intervals there are."""
        return len(self._starts)

    def __iter__(self) -> Iterator[tuple[int, int]]:
        """Yield (first, last + 1) of each interval."""
        return zip(self._starts, self._stops, strict=True)

    def __contains__(self, number: int) -> bool:
        at = bisect_right(self._starts, number) - 1
        return at >= 0 and number < self._stops[at]

    def add(self, number: int) -> None:
        """Add a number; one that is there stays."""
        at = bisect_right(self._starts, number)
        if at and number < self._stops[at - 1]:
            return
        joins_left = at > 0 and self._stops[at - 1] == number
        joins_right = at < len(self._starts) and self._starts[at] == number + 1
        if joins_left and joins_right:
            del self._stops[at - 1], self._starts[at]
        elif joins_left:
            self._stops[at - 1] += 1
        elif joins_right:
            self._starts[at] = number
        else:
            self._starts.insert(at, number)
            self._stops.insert(at, number + 1)

    def add_all(self, numbers: Iterable[int]) -> None:
        """Add numbers of which most are neighbours."""
        ordered = sorted(numbers)
        first = 0
        for at in range(1, len(ordered) + 1):
            if at == len(ordered) or ordered[at] > ordered[at - 1] + 1:
                self._add_run(ordered[first], ordered[at - 1] + 1)
                first = at

    def _add_run(self, first: int, stop: int) -> None:
        """Add the numbers from `first` to `stop` - 1, and join what they touch."""
        begin, end = bisect_left(self._stops, first), bisect_right(self._starts, stop)
        if begin < end:
            first, stop = min(first, self._starts[begin]), max(stop, self._stops[end - 1])
        self._starts[begin:end], self._stops[begin:end] = [first], [stop]

    def end_of(self, number: int) -> int:
        """Return the least number from this one on that is not there."""
        at = bisect_right(self._starts, number) - 1
        return max(number, self._stops[at]) if at >= 0 else number

    def forget(self, *, below: int) -> None:
        """Remove all numbers below one."""
        gone = bisect_left(self._stops, below + 1)
        del self._starts[:gone], self._stops[:gone]
        if self._starts and self._starts[0] < below:
            self._starts[0] = below

    def clear(self) -> None:
        self._starts.clear()
        self._stops.clear()


def check_intervals(intervals: Sequence[tuple[int, int]], *, above: int) -> None:
    """Raise ValueError unless (first, last + 1) rise, are not empty, don't touch, begin above."""
    before = above
    for first, stop in intervals:
        if first <= before or stop <= first:
            raise ValueError(f"the interval from {first} to {stop} does not come after {before}")
        before = stop
