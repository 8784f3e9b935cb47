"""What a relay does: reports in, bundles out, and grants back. No sockets, no clock.

It knows nothing that is not under way. A report waits here for its bundle, and the bundle for its
answers; then both are forgotten. One bundle is under way at a time, so those that are behind it
gather by themselves where the coordinator has much to do.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from runtime.process_figures import NOT_MEASURED
from worker.control_bundles import MAX_REPORTS
from worker.protocol import Grant, Report

# So long the first report of a bundle waits for others.
GATHER_SECONDS = 0.002
# Bytes of the frames of a bundle beyond which no further report is taken into it.
GATHER_BYTES = 1 << 20
# How often a worker's figures are passed on: they are long, and only people look at them.
FIGURES_SECONDS = 1.0


@dataclass(slots=True)
class _Waiting:
    """A report that is to be passed on, or was and has no answer yet."""

    report: Report
    num_bytes: int
    since: float


class Gathering:
    """Reports that wait in a relay, by the number of the connection that they came on.

    Args:
        seconds: that the first report of a bundle waits for others.
        most_reports, most_bytes: of a bundle; a report that alone has more bytes goes alone.
    """

    def __init__(
        self,
        *,
        seconds: float = GATHER_SECONDS,
        most_reports: int = MAX_REPORTS,
        most_bytes: int = GATHER_BYTES,
    ) -> None:
        self._seconds = seconds
        self._most_reports = most_reports
        self._most_bytes = most_bytes
        self._waiting: dict[int, _Waiting] = {}  # in the order in which they came
        self._bytes = 0  # of those
        # Whose reports are in the bundle that is under way, in its order; None: has gone.
        self._asked: list[int | None] | None = None
        self._place: dict[int, int] = {}
        self._told_at: dict[int, float] = {}  # by worker: when its figures were passed on

    def reported(self, peer: int, report: Report, num_bytes: int, now: float) -> None:
        """A report has come.

        Raises:
            ValueError: the peer has another one that is not answered.
        """
        if peer in self._waiting or peer in self._place:
            raise ValueError(f"worker {report.worker} reports again before it was answered")
        if report.process is not NOT_MEASURED:
            if now - self._told_at.get(report.worker, now - FIGURES_SECONDS) < FIGURES_SECONDS:
                report = replace(report, process=NOT_MEASURED)
            else:
                self._told_at[report.worker] = now
        self._waiting[peer] = _Waiting(report, num_bytes, now)
        self._bytes += num_bytes

    def gone(self, peer: int) -> None:
        """A peer has gone: what it has reported and was not passed on is forgotten."""
        waiting = self._waiting.pop(peer, None)
        if waiting is not None:
            self._bytes -= waiting.num_bytes
        place = self._place.pop(peer, None)
        if place is not None and self._asked is not None:
            self._asked[place] = None

    def due_in(self, now: float) -> float | None:
        """Return in how many seconds a bundle is due; None: none is until something happens."""
        if self._asked is not None or not self._waiting:
            return None
        if len(self._waiting) >= self._most_reports or self._bytes >= self._most_bytes:
            return 0.0
        first = next(iter(self._waiting.values()))
        return max(0.0, first.since + self._seconds - now)

    def take(self) -> list[Report]:
        """Return the reports that are to be passed on now, in one bundle, which is under way then.

        None may be under way.
        """
        assert self._asked is None, "one bundle is under way at a time"
        taken: list[int] = []
        num_bytes = 0
        for peer, waiting in self._waiting.items():
            num_bytes += waiting.num_bytes
            if taken and (num_bytes > self._most_bytes or len(taken) == self._most_reports):
                break
            taken.append(peer)
        reports = []
        for peer in taken:
            waiting = self._waiting.pop(peer)
            self._bytes -= waiting.num_bytes
            reports.append(waiting.report)
        self._asked = list(taken)
        self._place = {peer: place for place, peer in enumerate(taken)}
        return reports

    def answered(self, grants: Sequence[Grant]) -> list[tuple[int, Grant]]:
        """Take the answers to the bundle that is under way; return whose each is.

        Raises:
            ValueError: they are not as many as there were reports.
        """
        asked = self._asked
        if asked is None or len(grants) != len(asked):
            raise ValueError(
                f"{len(grants)} answers came to {0 if asked is None else len(asked)} reports"
            )
        self._asked, self._place = None, {}
        return [(p, grant) for p, grant in zip(asked, grants, strict=True) if p is not None]

    def cut_off(self) -> list[int]:
        """The coordinator is out of reach: forget everything; return who waits for an answer."""
        peers = [*self._place, *self._waiting]
        self._asked, self._place = None, {}
        self._waiting.clear()
        self._bytes = 0
        return peers
