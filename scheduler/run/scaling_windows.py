"""A job's sums since its start as windows that the policies of scaling can look at."""

from collections.abc import Sequence
from dataclasses import dataclass

from ps.server.figures import ServerFigures
from scheduler.coordinator.status import Status
from scheduler.scaling.decisions import Window

# What a worker does while it waits, of `worker.step`'s stages.
_WAITS = ("wait_rows", "wait_batch", "wait_lease")


@dataclass(frozen=True, slots=True)
class _Sums:
    """How things were when a window began."""

    at: float
    samples: int
    workers: dict[tuple[int, int], dict[str, float]]
    coordinator_seconds: float
    servers: dict[tuple[int, int], float]


class ScalingWindows:
    """Takes differences between one end of a window and the next.

    Args:
        seconds: of a window, at least.
        group_size, backup_batches: M, and those that `backup` gives out besides.
        planned_samples: of the whole job; None: its end is not known.
    """

    def __init__(
        self, seconds: float, *, group_size: int, backup_batches: int, planned_samples: int | None
    ) -> None:
        self._seconds = seconds
        self._group_size = group_size
        self._backup_batches = backup_batches
        self._planned = planned_samples
        self._mode_epoch: int | None = None
        self.restarted()

    def restarted(self) -> None:
        """What was seen is of no use: the next window begins with the next look."""
        self._began: float | None = None
        self._before: _Sums | None = None
        self._least_up: int | None = None

    def holds(self, now: float, status: Status) -> bool:
        """Look at the job between windows; return whether nobody works as fast as it could.

        Where training is held, or the mode has changed, the window begins anew.
        """
        changed = self._mode_epoch not in (None, status.mode_epoch)
        self._mode_epoch = status.mode_epoch
        if changed or status.paused or status.evaluating:
            self.restarted()
            return changed
        up = workers_up(status)
        self._least_up = up if self._least_up is None else min(self._least_up, up)
        if self._began is None:
            self._began = now
        return False

    def is_due(self, now: float) -> bool:
        """Whether a window is over, or a first one is to begin."""
        if self._began is None:
            return False
        return self._before is None or now - self._before.at >= self._seconds

    def end(self, now: float, status: Status, servers: Sequence[ServerFigures]) -> Window | None:
        """Return the window that ends now, and begin another; None: it is the first to begin."""
        before, least_up = self._before, self._least_up
        workers = {
            (number, worker.incarnation): worker.process.stage_seconds
            for number, worker in status.workers.items()
        }
        self._least_up = None
        self._before = _Sums(
            at=now,
            samples=status.samples.applied,
            workers=workers,
            coordinator_seconds=status.cpu_seconds,
            servers={
                (index, server.pid): server.process.stage_seconds.get("apply", 0.0)
                for index, server in enumerate(servers)
            },
        )
        if before is None:
            return None
        seconds = now - before.at
        at_work = [
            (before.workers.get((number, worker.incarnation), {}), worker.process.stage_seconds)
            for number, worker in status.workers.items()
            if not worker.lost
        ]
        waited = [_spent(was, now, _WAITS) / seconds for was, now in at_work]
        starved = [_spent(was, now, ("wait_lease",)) / seconds for was, now in at_work]
        applied = [
            apply - before.servers.get(name, 0.0) for name, apply in self._before.servers.items()
        ]
        return Window(
            seconds=seconds,
            wanted=status.num_workers,
            up=workers_up(status) if least_up is None else least_up,
            rate=max(0.0, (status.samples.applied - before.samples) / seconds),
            busy=1 - min(1.0, _mean(waited)),
            starved=min(1.0, _mean(starved)),
            servers=len(servers),
            server_load=min(1.0, max(applied, default=0.0) / seconds),
            server_bytes=max((sum(t.bytes for t in s.tables.values()) for s in servers), default=0),
            coordinator_load=min(
                1.0, max(0.0, status.cpu_seconds - before.coordinator_seconds) / seconds
            ),
            useful_workers=self._useful(status),
            samples_left=self._left(status),
        )

    def _left(self, status: Status) -> int | None:
        return None if self._planned is None else max(0, self._planned - status.samples.total)

    def _useful(self, status: Status) -> int | None:
        if status.mode == "sync":
            return self._group_size
        if status.mode == "backup":
            return self._group_size + self._backup_batches
        return None


def workers_up(status: Status) -> int:
    """Return how many of the workers that are wanted have reported and are not lost."""
    return sum(
        not worker.lost for number, worker in status.workers.items() if number < status.num_workers
    )


def _spent(before: dict[str, float], now: dict[str, float], stages: Sequence[str]) -> float:
    """Return the seconds that a process spent in stages between two looks."""
    return sum(max(0.0, now.get(stage, 0.0) - before.get(stage, 0.0)) for stage in stages)


def _mean(shares: list[float]) -> float:
    return sum(shares) / len(shares) if shares else 0.0
