"""What feeds the plan of a job on a stream, from where the job goes on."""

from collections.abc import Callable

from scheduler.coordinator.batch_cutter import BatchCutter
from scheduler.coordinator.growing_plan import PlanState
from scheduler.coordinator.modes.rules import rule_of
from scheduler.driver.resolved import JobSpecs
from scheduler.driver.stream_feed import StreamFeed
from scheduler.job.streams import arrivals_of
from scheduler.run.directory import ARRIVED, QUARANTINE, RunDirectory
from scheduler.run.plan_log import PlanLog

# Batches that are planned ahead at least: what is trained between two looks at the stream.
_LEAST_AHEAD = 256


def feed_of(
    specs: JobSpecs, run: RunDirectory, plan: PlanState, note: Callable[[str], None]
) -> StreamFeed:
    """Return what feeds a job that goes on from a plan."""
    config = specs.config
    settings, until = config.data.stream, config.training.online.until
    assert settings is not None, "the job is one of a stream"
    log = PlanLog(run.path, plan)
    if not log.is_whole:
        note("what was planned after the checkpoint is lost: it is planned anew")
    cutter = BatchCutter(
        plan,
        batch_size=config.data.batch_size,
        group_size=config.group_size,
        close_seconds=settings.close_seconds,
    )
    for extension in log.extensions(plan.planned):
        cutter.follow(extension)
    position = cutter.position or specs.stream_begins
    arrivals = arrivals_of(
        config,
        specs.plan.kinds,
        position,
        skipped=cutter.skipped,
        spool=run.path / ARRIVED,
        aside=run.path / QUARANTINE,
        note=note,
    )
    coordinator = specs.coordinator
    rule = rule_of(coordinator.mode, coordinator.options)
    return StreamFeed(
        arrivals=arrivals,
        cutter=cutter,
        log=log,
        plan=plan,
        most_ahead=max(_LEAST_AHEAD, 4 * coordinator.credits(coordinator.workers, rule)),
        poll_seconds=settings.poll_seconds,
        idle_seconds=None if until is None else until.idle_seconds,
        note=note,
    )
