"""Which files of a stream no checkpoint needs any more, as the plan goes on."""

from collections import deque
from dataclasses import dataclass, field

from scheduler.coordinator.growing_plan import Extension


@dataclass(slots=True)
class TrainedFiles:
    """Files of a stream until no batch that a checkpoint may go back to has rows of them.

    A plain state machine: it is told of the plan's extensions, in order, each once.
    """

    _paths: dict[int, str] = field(default_factory=dict)  # by number, in order
    # Of each batch, in order, its id and the first file that it has rows of.
    _firsts: deque[tuple[int, int]] = field(default_factory=deque)
    _planned: int = 0
    _next: int = 0  # the first file that the rest has rows of, or the next one

    def add(self, extension: Extension) -> None:
        """The plan has grown."""
        self._paths.update((file.number, file.plan.path) for file in extension.files)
        for batch_id, batch in enumerate(extension.batches, extension.first):
            self._firsts.append((batch_id, batch.rows[0][0]))
        self._planned = extension.stop
        cursor = extension.cursor
        self._next = cursor.rest[0][0] if cursor.rest else cursor.next_file

    def take(self, below: int) -> list[str]:
        """Return, once, the files of which only batches below an id have rows."""
        while self._firsts and self._firsts[0][0] < below:
            self._firsts.popleft()
        needed = self._firsts[0][1] if self._firsts else self._next
        gone = [number for number in self._paths if number < needed]
        if below > self._planned:  # of batches that are not known here
            gone = []
        return [self._paths.pop(number) for number in gone]
