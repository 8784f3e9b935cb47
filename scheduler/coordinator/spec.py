"""What a job's coordinator is told when it begins."""

from dataclasses import dataclass, field

from embedding.kernels.mixing import NUM_BUCKETS
from ps.copies import Copies
from ps.spec import StoreSpec
from scheduler.coordinator.clock import ClockState, ScheduleClock
from scheduler.coordinator.ledger_plan import LedgerPlan
from scheduler.coordinator.modes.policy import PolicyOptions
from scheduler.coordinator.modes.rules import Mode, ModeOptions, ModeRule, PlannedShift
from scheduler.coordinator.start import Start

# A worker's own batch is one part of W of the staleness that W workers cause; where they are more
# than these, that is less than waiting for its step would cost in speed.
FEW_WORKERS = 4

# The usual staleness is as many batches as are in flight. A batch that takes so many times as long
# is given to somebody else.
ATTEMPT_LASTS = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class CutOptions:
    """How often a running job is saved.

    Args:
        every_steps: a cut at each multiple of so many ticks of the clock; None: no matter.
        every_seconds: between two cuts, whichever comes first; None: no matter.
        full_every: of so many cuts one is written whole, the others are deltas.
    """

    every_steps: int | None = None
    every_seconds: float | None = None
    full_every: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class CoordinatorSpec:
    """What does not change while a job runs.

    Args:
        store: tables and dense parameters.
        standbys: the shards that have a standby in this recovery epoch.
        plan: batches to train; None: they are those of a stream, which the state has.
        evaluation_plan: batches of the evaluation files, or None.
        mode, options: the mode rule that it begins with.
        settles: whether it goes on in `gba`, or the policy may choose it, only after its first
            steps.
        start: where steps and clock begin.
        shifts: planned changes of the mode, in their order; their times count from the start.
        automatic: whether the policy shifts between sync and gba.
        policy: what it goes by.
        group_size: M, local batches of a global batch.
        global_batch: G, in samples.
        workers, depth: they bound the credits.
        workers_automatic: whether the policy of scaling chooses how many workers there are.
        max_workers: more than these may not be asked for; None: any number.
        max_credits: more than these the shards' buffers can't hold, however many workers join;
            None: any number.
        buffer_bytes: what each shard keeps of them; None: without limit.
        attempt_lasts: an attempt at a batch is void where it does not end while so many times the
            credits, in batches, are resolved. So what has to be remembered for gradients that come
            late is bounded.
        cuts: how often the running job is saved.
        deltas_below: where all shards of this recovery epoch began with what a checkpoint has, how
            many deltas lie on one another there; None: the first cut is full.
        eval_every_steps: evaluate at every multiple of so many ticks of the schedule clock; 0: only
            at the end.
        window_seconds: of a stream, how long the windows are by which the scores of batches are
            summed that they had before they were trained; None: they are not.
        weighted: whether samples have weights, so that scores are weighted too.
        segments: so many values of a column are told apart in windows; 0: none is.
        tasks: names of several that are scored, each by itself; empty: there is one.
        grouped: whether evaluations rank samples by group, too.
        max_seconds: stop giving out batches after so much training time; None: no limit.
        max_consecutive_non_finite: so many batches in a row whose gradients are not finite, and
            which are skipped, fail the job; None: any number may come.
        heartbeat_timeout_seconds: a worker that says nothing for so long is given up.
        lease_timeout_seconds: a worker that reports, but is so long at one batch is given up; later
            where the job's batches take longer (`LeaseWatch`). None: never.
        server_timeout_seconds: a shard that answers nothing for so long is said to be silent; None:
            none is.
        stall_seconds: without any progress for so long the job is said to stall, and fails after
            as long again, or after three times `lease_timeout_seconds`.
        place_seconds: without any worker for so long the job is said to wait for a place, and fails
            after as long again.
    """

    store: StoreSpec
    plan: LedgerPlan | None
    evaluation_plan: LedgerPlan | None
    mode: Mode
    group_size: int
    global_batch: int
    workers: int
    depth: int
    workers_automatic: bool = False
    max_workers: int | None = None
    max_credits: int | None = None
    buffer_bytes: int | None = None
    options: ModeOptions = field(default_factory=ModeOptions)
    settles: bool = False
    start: Start = field(default_factory=Start)
    shifts: tuple[PlannedShift, ...] = ()
    automatic: bool = False
    policy: PolicyOptions = field(default_factory=PolicyOptions)
    recovery_epoch: int = 0
    standbys: tuple[int, ...] = ()
    attempt_lasts: int = ATTEMPT_LASTS
    cuts: CutOptions = field(default_factory=CutOptions)
    deltas_below: int | None = None
    eval_every_steps: int = 0
    window_seconds: float | None = None
    weighted: bool = False
    segments: int = 0
    tasks: tuple[str, ...] = ()
    grouped: bool = False
    max_seconds: float | None = None
    max_consecutive_non_finite: int | None = None
    heartbeat_timeout_seconds: float = 60.0
    lease_timeout_seconds: float | None = 60.0
    server_timeout_seconds: float | None = 10.0
    stall_seconds: float = 120.0
    place_seconds: float = 180.0

    @property
    def copies(self) -> Copies:
        """All copies of the shards: records go to each of them."""
        return Copies(self.store.num_shards, self.standbys)

    def new_clock(self, start: ClockState) -> ScheduleClock:
        """Return the clock of the schedules, which goes on from `start`."""
        if start.samples >= self.global_batch:
            raise ValueError(f"{start.samples} samples since the last tick of {self.global_batch}")
        remembered = self.store.longest_life
        return ScheduleClock(self.global_batch, remembered=remembered, start=start)

    def check_workers(self, count: int) -> None:
        """Refuse a number of workers that the job can't have; raises ValueError."""
        if count < 1:
            raise ValueError(f"a job needs at least one worker, {count} are wanted")
        if self.max_workers is not None and count > self.max_workers:
            raise ValueError(
                f"{count} workers are wanted, cluster.max_workers is {self.max_workers}"
            )

    def check_servers(self, count: int | None) -> None:
        """Refuse a number of servers that no job can have; raises ValueError."""
        if count is not None and not 1 <= count <= NUM_BUCKETS:
            raise ValueError(f"a job has 1 to {NUM_BUCKETS} servers, {count} are wanted")

    def credits(self, workers: int, rule: ModeRule) -> int:
        """Return the most batches that may be leased, or done and not applied on every shard."""
        wanted = workers * self.depth + 2 * (self.group_size + rule.backup_batches)
        if self.max_credits is None:
            return wanted
        return max(self.step_batches(rule), min(wanted, self.max_credits))

    def step_batches(self, rule: ModeRule) -> int:
        """Return how many batches a step gives out: what must be in flight at least."""
        return self.group_size + rule.backup_batches
