"""How long a worker could have worked at a batch, seen from the leases alone."""

from collections.abc import Iterator

from scheduler.coordinator.batches import Batch
from scheduler.coordinator.coordinator import Coordinator
from scheduler.coordinator.events import Event
from scheduler.coordinator.lease_watch import BEGUN
from simulation.told import reports_of

_Attempt = tuple[str, int, int]


class Patience:
    """Says whether a worker that is given up had its time.

    Args:
        coordinator: whose leases are looked at.
    """

    def __init__(self, coordinator: Coordinator) -> None:
        self._coordinator = coordinator
        self._began: float | None = None
        self._heard: dict[int, float] = {}
        # Since when a worker could work at an attempt, before all others that it holds.
        self._since: dict[int, dict[_Attempt, float]] = {}
        # The same of attempts that are its no more; it may be at them until it says otherwise.
        self._taken: dict[int, dict[_Attempt, float]] = {}
        self._incarnations: dict[int, int] = {}

    def look(self, event: Event, now: float) -> None:
        """Note what every worker can work at after an event."""
        self._began = now if self._began is None else self._began
        epoch = self._coordinator.spec.recovery_epoch
        for report in reports_of(event):
            # One of an earlier epoch comes late, by a relay, and says nothing of its worker now.
            if report.recovery_epoch == epoch:
                self._heard[report.worker] = now
        before, self._since = self._since, {}
        lowest: dict[int, tuple[int, int, _Attempt, int]] = {}
        for kind, step, batch in self._leased():
            assert batch.worker is not None, "a leased batch has a holder"
            name = kind, batch.batch_id, batch.attempt
            mine = self._since.setdefault(batch.worker, {})
            if name in (known := before.get(batch.worker, {})):
                mine[name] = known[name]
            key = step, batch.batch_id, name, batch.pull_step
            lowest[batch.worker] = min(key, lowest.get(batch.worker, key))
        for worker, (step, _, name, pull_step) in lowest.items():
            if pull_step <= self._coordinator.applied_step or self._is_pending(step):
                self._since[worker].setdefault(name, now)
        for worker, known in before.items():
            gone = known.keys() - self._since.get(worker, {}).keys()
            self._taken.setdefault(worker, {}).update({name: known[name] for name in gone})
        self._note_moves(event)

    def had_its_time(self, worker: int, now: float) -> bool:
        """Whether a worker that was just given up said nothing, or was too long at one attempt."""
        if self.is_silent(worker, now):
            return True
        spec = self._coordinator.spec
        limit = spec.lease_timeout_seconds
        times = [*self._since.get(worker, {}).values(), *self._taken.get(worker, {}).values()]
        return limit is not None and any(now - since >= limit for since in times)

    def _note_moves(self, event: Event) -> None:
        """Forget what a worker can't be at any more: it is gone, or began another or ended one."""
        workers = self._coordinator.workers
        for worker, state in workers.items():
            if state.lost or state.incarnation != self._incarnations.get(worker):
                self._taken[worker] = {}
            self._incarnations[worker] = state.incarnation
        for report in reports_of(event):
            if report.worker not in workers:
                continue  # it is of another epoch
            state = workers[report.worker]
            names = (state.incarnation, state.last_grant and state.last_grant.sequence)
            new = names == (report.incarnation, report.sequence)
            if new and (report.finished or report.stage in BEGUN):
                taken = self._taken[report.worker]
                self._taken[report.worker] = {k: v for k, v in taken.items() if k in report.held}

    def is_silent(self, worker: int, now: float) -> bool:
        """Whether nothing was heard of a worker for longer than it may be silent."""
        limit = self._coordinator.spec.heartbeat_timeout_seconds
        return now - self._heard.get(worker, self._began or 0.0) > limit

    def _is_pending(self, step: int) -> bool:
        """Whether nobody has a batch that what waits for a step waits for."""
        coordinator = self._coordinator
        before = [b for b in coordinator.ledger.outstanding() if b.step < step]
        if coordinator.evaluation is not None:
            before += coordinator.evaluation.ledger.outstanding()
        return any(batch.worker is None for batch in before)

    def _leased(self) -> Iterator[tuple[str, int, Batch]]:
        coordinator = self._coordinator
        for batch in coordinator.ledger.outstanding():
            if batch.worker is not None:
                yield "train", batch.step, batch
        if coordinator.evaluation is not None:
            for batch in coordinator.evaluation.ledger.outstanding():
                if batch.worker is not None:
                    yield "eval", coordinator.evaluation.step, batch
