"""The totals of a job that every record carries."""

from ps.messages.records import Totals
from scheduler.coordinator.clock import ScheduleClock
from scheduler.coordinator.ledger import Ledger
from scheduler.coordinator.mode_control import ModeControl
from scheduler.coordinator.state import Progress


def totals_of(
    ledger: Ledger, clock: ScheduleClock, modes: ModeControl, progress: Progress
) -> Totals:
    """Return what a new coordinator counts on from."""
    samples = ledger.samples
    return Totals(
        applied=samples.applied,
        dropped=samples.dropped,
        skipped=tuple(samples.skipped_by_reason.items()),
        clock=clock.value,
        since_tick=clock.samples,
        dropped_batches=ledger.tallies.dropped,
        skipped_batches=ledger.tallies.skipped,
        mode=modes.rule.name,
        mode_epoch=modes.epoch,
        loss_sum=progress.loss_sum,
        loss_samples=progress.loss_samples,
    )
