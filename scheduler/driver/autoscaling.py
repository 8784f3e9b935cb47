"""The driver's part of having as many workers and servers as a job can use."""

import time
from collections.abc import Callable, Sequence
from dataclasses import replace

from ps.server.figures import ServerFigures
from scheduler.coordinator.events import WorkersWanted
from scheduler.coordinator.status import Status
from scheduler.job.config import JobConfig
from scheduler.run.scaling_history import ScalingHistory
from scheduler.run.scaling_windows import ScalingWindows
from scheduler.scaling.decisions import Scaling, ScalingView, described, outcome_of
from scheduler.scaling.servers import ServerPolicy
from scheduler.scaling.workers import WorkerPolicy


class Autoscaler:
    """Shows the policies what a running job does, and orders what they decide.

    Args:
        config: of the job.
        planned_samples: of the whole job; None: its end is not known.
        order: has the coordinator do something.
        order_servers: has the job get another number of servers.
        show: has the coordinator tell whoever looks.
        note: tells a person something.
        clock: seconds of any steady clock.

    Attributes:
        history: of what was decided, with what came of it.
    """

    def __init__(
        self,
        config: JobConfig,
        *,
        planned_samples: int | None,
        order: Callable[[WorkersWanted], None],
        order_servers: Callable[[int], None],
        show: Callable[[ScalingView], None],
        note: Callable[[str], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        cluster = config.cluster
        self.history = ScalingHistory()
        self._windows = ScalingWindows(
            cluster.scaling.window_seconds,
            group_size=config.group_size,
            backup_batches=config.training.backup_batches,
            planned_samples=planned_samples,
        )
        self._workers = WorkerPolicy(
            cluster.scaling, least=cluster.min_workers, most=config.max_workers
        )
        self._servers = ServerPolicy(
            cluster.scaling,
            least=config.min_servers,
            most=config.max_servers,
        )
        self._order = order
        self._order_servers = order_servers
        self._show = show
        self._note = note
        self._clock = clock

    def restarted(self) -> None:
        """The job goes on in another recovery epoch: what was measured is of no use."""
        self._windows.restarted()
        self._workers.restarted()

    def look(self, status: Status, servers: Callable[[], Sequence[ServerFigures]]) -> None:
        """See how the job is; at the end of a window, decide.

        Args:
            status: of now.
            servers: asks them, which is done once a window.
        """
        now = self._clock()
        of_servers = status.servers_view is not None and status.servers_view.automatic
        if status.trained or not (status.workers_automatic or of_servers):
            self._windows.restarted()
            return
        if self._windows.holds(now, status):
            self._workers.restarted()
            return
        if not self._windows.is_due(now):
            return
        window = self._windows.end(now, status, servers())
        if window is None:
            return
        decisions = self._workers.look(now, window) if status.workers_automatic else []
        if of_servers:
            decisions += self._servers.look(window)
        for decision in decisions:
            self._decided(decision)
        self._show(self.view(window.servers))

    def view(self, servers: int) -> ScalingView:
        """Return what is known of scaling now.

        Args:
            servers: that there are.
        """
        return self.history.view(self._workers.why, servers=servers)

    def _decided(self, decision: Scaling) -> None:
        if decision.realised is not None:
            self.history.add(decision)
            self._note(outcome_of(decision))
            return
        decision = replace(decision, time=time.time())
        self.history.add(decision)
        self._note(described(decision))
        if decision.held_back is not None:
            return
        if decision.role == "worker":
            self._order(WorkersWanted(decision.after, by_policy=True))
        else:
            self._order_servers(decision.after)
