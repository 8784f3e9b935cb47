"""How many batches a worker prepares ahead: as few as keep it computing.

Every batch that is prepared ahead makes data staler by the time that it lies there, and is lost
with its worker. Too few make the worker wait, where one batch takes long to read.
"""

WINDOW = 32  # batches between two decisions

_IDLE = 0.01  # of the time: a worker that waits longer for prepared batches has too few
_SLACK = 0.5  # of a batch's time: where the slowest is prepared in less, fewer will do


class PipelineDepth:
    """Decides by measured times; a depth that proved too small is not tried again.

    Args:
        most: batches that may be prepared ahead; the first depth.
    """

    def __init__(self, most: int) -> None:
        self.depth = most
        self._most = most
        self._least = 1
        self._batches = 0
        self._seconds = self._waited = self._slowest = 0.0

    def prepared(self, seconds: float) -> None:
        """A batch was read and de-duplicated in so many seconds."""
        self._slowest = max(self._slowest, seconds)

    def computed(self, seconds: float, waited: float) -> int:
        """A batch is computed; return how many are to be prepared ahead from now on.

        Args:
            seconds: since the batch before it was.
            waited: of these, for batches that were being prepared.
        """
        self._batches += 1
        self._seconds += seconds
        self._waited += waited
        if self._batches == WINDOW:
            self._decide()
            self._batches = 0
            self._seconds = self._waited = self._slowest = 0.0
        return self.depth

    def _decide(self) -> None:
        if self._waited > _IDLE * self._seconds:
            self._least = min(self._most, max(self._least, self.depth + 1))
            self.depth = self._least
        elif self._slowest < _SLACK * self._seconds / WINDOW:
            self.depth = max(self._least, self.depth - 1)
