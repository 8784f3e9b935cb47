"""The least of many numbers that come and go, without looking at all of them."""

import heapq

# Removed numbers that are not worth a look at all of them.
_FEW = 64


class Least:
    """Whole numbers, each as often as it was added and not removed.

    Adding and removing take time in proportion to the logarithm of how many different ones there
    are; asking for the least takes none that adding has not paid for. However long the least stays,
    the memory is in proportion to the most that were there at a time.
    """

    def __init__(self) -> None:
        # Of every number in the heap; 0 until it comes to the top or the heap is made anew.
        self._counts: dict[int, int] = {}
        self._heap: list[int] = []
        self._size = 0

    def __len__(self) -> int:
        return self._size

    def add(self, number: int) -> None:
        count = self._counts.get(number)
        if count is None:
            if len(self._heap) > 2 * self._size + _FEW:
                self._forget_removed()
            heapq.heappush(self._heap, number)
        self._counts[number] = (count or 0) + 1
        self._size += 1

    def remove(self, number: int) -> None:
        """Remove a number once; it must be there."""
        left = self._counts.get(number, 0) - 1
        assert left >= 0, f"{number} is not there"
        self._counts[number] = left
        self._size -= 1
        if left:
            return  # the least one is there as before
        while self._heap and self._counts[self._heap[0]] == 0:
            del self._counts[heapq.heappop(self._heap)]

    def _forget_removed(self) -> None:
        self._counts = {number: count for number, count in self._counts.items() if count}
        self._heap = list(self._counts)
        heapq.heapify(self._heap)

    def move(self, number: int, to: int) -> None:
        """Change a number that is there once."""
        self.add(to)
        self.remove(number)

    @property
    def value(self) -> int | None:
        """The least number; None: there is none."""
        return self._heap[0] if self._heap else None
