"""What one seed of the simulation stands for: a small job, its data, and the faults it meets."""

import random
from dataclasses import dataclass, field, replace
from typing import Any, Literal, get_args

from ps.spec import SparseMean
from scheduler.coordinator.events import (
    CutWanted,
    EndOfTrainingWanted,
    Event,
    PauseWanted,
    ShiftWanted,
    WorkersWanted,
)
from scheduler.coordinator.ledger_plan import LedgerPlan
from scheduler.coordinator.modes.rules import SHIFTABLE, Mode, ModeOptions, OnStale
from scheduler.coordinator.modes.stale_weights import Cutoff, Inverse, Power, StaleWeight
from scheduler.coordinator.spec import ATTEMPT_LASTS, CutOptions

Arrow = Literal[
    "started",
    "report sent",
    "grant received",
    "batch read",
    "pull sent",
    "pull answered",
    "computed",
    "push sent",
    "push acknowledged",
]
"""Where a worker can be killed: the arrows of the step protocol, and the work between them. What
is sent to several shards can be cut short before each of them."""
ARROWS: tuple[Arrow, ...] = get_args(Arrow)


@dataclass(frozen=True, slots=True, kw_only=True)
class Faults:
    """How likely each fault is at each occasion.

    Args:
        kill: a worker dies as it crosses an arrow.
        kill_at: the only arrow where that happens; None: at all of them.
        max_kills: workers that die at most.
        forever: a dead worker is not replaced, as long as another one lives.
        pause: a worker freezes, perhaps for longer than the heartbeat timeout.
        hang: a thread of a worker hangs, for a while or for ever, but not the one that reports.
        max_hangs: of all workers at most.
        slow: a worker works ten times slower for a while.
        cut: a connection to a shard breaks.
        lose: a report or its answer is lost.
        duplicate: a message arrives twice.
        delay: a message takes far longer than usual.
        old_epoch: a shard gets a message of an older recovery epoch.
        fleet_slow: virtual seconds from and to which every worker works ten times slower, or None.
        until: no fault happens from this virtual second on.
        shard_deaths, coordinator_deaths: virtual seconds at which one of them dies.
        cut_off_shards: virtual seconds at which a shard lives on out of the coordinator's reach.
        copy_fails: a standby that is being made dies before it is one.
        relay: a relay dies as it passes on what it has gathered.
        moves: virtual seconds from which on a shard, or the coordinator, is to move elsewhere.
        resizes: virtual seconds from which on the model is shared out to another number of the
            shards; the others then have no bucket.
        recoveries: virtual seconds at which everything goes back to the newest cut, or to where the
            job began, in another recovery epoch.
        cut_fails: a cut that is taken can't be written.
    """

    kill: float = 0.0
    kill_at: Arrow | None = None
    max_kills: int = 0
    forever: float = 0.0
    pause: float = 0.0
    hang: float = 0.0
    max_hangs: int = 3
    slow: float = 0.0
    cut: float = 0.0
    lose: float = 0.0
    duplicate: float = 0.0
    delay: float = 0.0
    old_epoch: float = 0.0
    fleet_slow: tuple[float, float] | None = None
    until: float = 0.0
    shard_deaths: tuple[float, ...] = ()
    coordinator_deaths: tuple[float, ...] = ()
    cut_off_shards: tuple[float, ...] = ()
    moves: tuple[float, ...] = ()
    resizes: tuple[float, ...] = ()
    recoveries: tuple[float, ...] = ()
    cut_fails: float = 0.0
    copy_fails: float = 0.0
    relay: float = 0.0

    @property
    def recover(self) -> bool:
        """Whether another recovery epoch begins."""
        lost = self.shard_deaths or self.coordinator_deaths or self.cut_off_shards
        return bool(lost or self.moves or self.resizes or self.recoveries)


@dataclass(frozen=True, slots=True, kw_only=True)
class Scenario:
    """A small job and its faults.

    Args:
        seed: of data, faults and times.
        mode, mode_options, workers, shards, depth: as in a job.
        standby: whether every shard has a standby.
        relays: between workers and the coordinator; a report goes by one of them, or by none.
        group_size: M, local batches of a step.
        batch_size: B, samples of a local batch.
        batches_per_epoch, epochs: the plan.
        last_rows: samples of the last batch of an epoch.
        limit: batches given out at most, or None.
        arrives: whether the batches are those of a stream, each epoch a stretch that was closed.
        earlier: batches of the job from whose end this one goes on; 0: there was none.
        max_seconds: virtual seconds after which no more are given out, or None.
        eval_batches: batches of the evaluation files; 0: there are none.
        eval_every_steps: as in a job.
        min_count: admission of the first table.
        steps_to_live, evict_every_steps: eviction of the second table.
        evicted_min_count: admission of the second table; 0: every key.
        sparse_mean: as in a job.
        dense_clip_norm: most of the norm of a step's dense gradient, or None.
        bad_batches: part of the batches that can't be read, or only in part.
        long_batches: part of the batches that take far longer, whoever trains them.
        buffered: contributions that a shard has room for; None: more than there ever are.
        non_finite: part of the batches whose gradient is not finite.
        flaky: whether a batch may read otherwise at another attempt; never in sync mode, where the
            model would then depend on which attempt came first.
        attempt_lasts, cuts: as in `CoordinatorSpec`.
        orders: what somebody wants of the running job, and at which virtual second.
    """

    seed: int
    mode: Mode = "sync"
    mode_options: ModeOptions = field(default_factory=ModeOptions)
    workers: int = 1
    shards: int = 1
    depth: int = 1
    standby: bool = False
    relays: int = 0
    group_size: int = 1
    batch_size: int = 2
    batches_per_epoch: int = 1
    epochs: int = 1
    last_rows: int = 1
    limit: int | None = None
    arrives: bool = False
    earlier: int = 0
    max_seconds: float | None = None
    eval_batches: int = 0
    eval_every_steps: int = 0
    min_count: int = 2
    steps_to_live: int = 2
    evict_every_steps: int = 1
    evicted_min_count: int = 0
    dense_clip_norm: float | None = None
    buffered: int | None = None
    sparse_mean: SparseMean = "global"
    bad_batches: float = 0.0
    long_batches: float = 0.0
    non_finite: float = 0.0
    flaky: bool = False
    attempt_lasts: int = ATTEMPT_LASTS
    cuts: CutOptions = field(default_factory=CutOptions)
    faults: Faults = field(default_factory=Faults)
    orders: tuple[tuple[float, Event], ...] = ()

    @property
    def global_batch(self) -> int:
        return self.group_size * self.batch_size

    def rows_of(self, batch_id: int) -> int:
        """Planned samples of a batch."""
        last = batch_id % self.batches_per_epoch == self.batches_per_epoch - 1
        return self.last_rows if last else self.batch_size

    @property
    def plan(self) -> LedgerPlan:
        return LedgerPlan(
            batches_per_epoch=self.batches_per_epoch,
            epochs=self.epochs,
            rows_of=self.rows_of,
            lanes=self.group_size,
            limit=self.limit,
        )

    @property
    def shifts(self) -> bool:
        """Whether the mode changes."""
        return any(isinstance(event, ShiftWanted) for _, event in self.orders)

    @property
    def ends_early(self) -> bool:
        """Whether some batches may never be given out, at nobody knows which moment."""
        ended = any(isinstance(event, EndOfTrainingWanted) for _, event in self.orders)
        return ended or self.max_seconds is not None

    @property
    def evaluation_plan(self) -> LedgerPlan | None:
        if self.eval_batches == 0:
            return None
        return LedgerPlan(
            batches_per_epoch=self.eval_batches, epochs=1, rows_of=lambda _: self.batch_size
        )

    def undisturbed(self, limit: int | None) -> "Scenario":
        """The same job on one worker and one shard, without any fault."""
        return replace(
            self, workers=1, shards=1, depth=1, standby=False, relays=0, limit=limit,
            max_seconds=None,
            faults=Faults(), orders=(), cuts=CutOptions(), arrives=False,
        )  # fmt: skip

    @property
    def earlier_job(self) -> "Scenario":
        """The job that this one goes on from, with nothing happening to it."""
        return replace(
            self.undisturbed(self.earlier), earlier=0, eval_batches=0, eval_every_steps=0
        )


def draw(seed: int, **options: Any) -> Scenario:
    """Return the scenario of a seed; options are fields of `Scenario` that it must have."""
    rng = random.Random(f"scenario {seed}")
    batch_size = rng.randint(2, 5)
    batches_per_epoch = rng.randint(1, 10)
    epochs = rng.randint(1, 3)
    total = batches_per_epoch * epochs
    drawn: dict[str, Any] = {
        "mode": rng.choice(get_args(Mode)),
        "workers": rng.randint(1, 5),
        "shards": rng.randint(1, 4),
        "depth": rng.randint(1, 3),
        "group_size": rng.randint(1, 4),
        "batch_size": batch_size,
        "batches_per_epoch": batches_per_epoch,
        "epochs": epochs,
        "last_rows": rng.randint(1, batch_size),
        "limit": rng.randint(1, total) if rng.random() < 0.15 else None,
        "max_seconds": rng.uniform(0.02, 0.6) if rng.random() < 0.12 else None,
        "eval_batches": rng.choice([0, 1, 2, 6]),
        "eval_every_steps": rng.choice([0, 0, 1, 2, 4]),
        "min_count": rng.choice([2, 3]),
        "steps_to_live": rng.randint(1, 4),
        "evict_every_steps": rng.randint(1, 2),
        "evicted_min_count": rng.choice([0, 0, 2]),
        "bad_batches": rng.choice([0.0, 0.0, 0.2]),
        "non_finite": rng.choice([0.0, 0.0, 0.1]),
        "flaky": rng.random() < 0.5,
        "faults": replace(
            _draw_faults(rng),
            recoveries=_draw_recoveries(seed),
            hang=_draw_hang(seed),
            **_draw_deaths(seed),
        ),
        "cuts": _draw_cuts(seed),
        "dense_clip_norm": rng.choice([None, None, 5.0, 25.0]),
        "mode_options": _draw_mode_options(rng),
        "sparse_mean": rng.choice(get_args(SparseMean)),
        "attempt_lasts": rng.choice([ATTEMPT_LASTS, 2, 1]),
        "earlier": rng.randint(1, total) if rng.random() < 0.3 else 0,
    }
    return _consistent(Scenario(seed=seed, **(drawn | options)))


def with_standbys(scenario: Scenario) -> Scenario:
    """Return a scenario in which every shard has a standby, and copies of shards die."""
    rng = random.Random(f"standbys {scenario.seed}")
    moments = tuple(sorted(rng.uniform(0.0, rng.choice([0.5, 2.0, 4.0])) for _ in range(5)))
    faults = replace(
        scenario.faults,
        shard_deaths=moments[: rng.randint(1, 5)],
        recoveries=scenario.faults.recoveries[:1],
        cut_off_shards=tuple(rng.uniform(0.0, 4.0) for _ in range(rng.choice([0, 0, 1, 2]))),
        copy_fails=rng.choice([0.0, 0.2]),
    )
    return replace(scenario, standby=True, faults=faults)


def with_relays(scenario: Scenario) -> Scenario:
    """Return a scenario in which workers report by relays, which die, and what they say is late."""
    rng = random.Random(f"relays {scenario.seed}")
    faults = replace(
        scenario.faults,
        relay=rng.choice([0.0, 0.05, 0.3]),
        lose=max(scenario.faults.lose, rng.choice([0.0, 0.1])),
        duplicate=max(scenario.faults.duplicate, rng.choice([0.0, 0.2])),
        delay=max(scenario.faults.delay, rng.choice([0.0, 0.05])),
        until=max(scenario.faults.until, 2.0),
    )
    return replace(scenario, relays=rng.randint(1, 3), workers=rng.randint(2, 6), faults=faults)


def with_resizes(scenario: Scenario) -> Scenario:
    """Return a scenario in which buckets move between shards, some of which die meanwhile."""
    rng = random.Random(f"resizes {scenario.seed}")
    moments = tuple(sorted(rng.uniform(0.0, until) for until in (0.1, 1.0, 2.0)))
    dies = rng.choice(["shard", "coordinator", "none"])
    moment = (rng.uniform(0.1, 1.2),)
    faults = replace(
        scenario.faults,
        resizes=moments,
        shard_deaths=moment if dies == "shard" else (),
        coordinator_deaths=moment if dies == "coordinator" else (),
        moves=scenario.faults.moves[:1],
        recoveries=(),
        cut_off_shards=(),
        cut_fails=min(scenario.faults.cut_fails, 0.1),
        delay=max(scenario.faults.delay, 0.05),
        until=max(scenario.faults.until, 2.0),
    )
    return replace(
        scenario, shards=rng.randint(2, 4), standby=False, faults=faults, max_seconds=None,
        batches_per_epoch=max(24, scenario.batches_per_epoch), limit=None,
    )  # fmt: skip


def with_resizes_of_copies(scenario: Scenario) -> Scenario:
    """Return a scenario in which buckets move between shards that have standbys, and copies die."""
    rng = random.Random(f"resizes of copies {scenario.seed}")
    scenario = with_resizes(scenario)
    deaths = [rng.uniform(0.0, rng.choice([0.5, 2.0, 4.0])) for _ in range(rng.randint(0, 3))]
    faults = replace(
        scenario.faults,
        resizes=tuple(sorted(rng.uniform(0.0, until) for until in (0.1, 1.0, 2.5))),
        shard_deaths=tuple(sorted(deaths)),
        coordinator_deaths=tuple(rng.uniform(0.1, 3.0) for _ in range(rng.choice([0, 0, 1]))),
        cut_off_shards=tuple(rng.uniform(0.0, 3.0) for _ in range(rng.choice([0, 0, 0, 1]))),
        copy_fails=rng.choice([0.0, 0.1]),
    )
    long = max(40, scenario.batches_per_epoch)
    return replace(scenario, standby=True, faults=faults, batches_per_epoch=long)


def with_orders(scenario: Scenario) -> Scenario:
    """Return a scenario in which people, and a cluster that scales, want things of the job."""
    rng = random.Random(f"orders {scenario.seed}")
    wanted: list[Event] = [WorkersWanted(rng.randint(1, 6)) for _ in range(rng.randint(0, 3))]
    if scenario.mode in SHIFTABLE:
        wanted += [ShiftWanted(rng.choice(SHIFTABLE)) for _ in range(rng.randint(0, 5))]
    wanted += [CutWanted() for _ in range(rng.randint(0, 1))]
    if rng.random() < 0.1:
        wanted.append(EndOfTrainingWanted())
    orders = [(rng.uniform(0.0, 0.5), event) for event in wanted]
    if rng.random() < 0.3:
        paused = rng.uniform(0.0, 0.3)
        orders += [(paused, PauseWanted(True)), (paused + rng.uniform(0, 0.5), PauseWanted(False))]
    orders.sort(key=lambda order: order[0])
    shifts = any(isinstance(event, ShiftWanted) for event in wanted)
    flaky = scenario.flaky or (shifts and rng.random() < 0.5)
    # The referee learns of a step that waits for its norm only when that is known: too late to say
    # what a change of mode in between has to do.
    clip_norm = None if shifts else scenario.dense_clip_norm
    return replace(scenario, orders=tuple(orders), flaky=flaky, dense_clip_norm=clip_norm)


def _draw_mode_options(rng: random.Random) -> ModeOptions:
    on_stale = rng.choice(get_args(OnStale))
    weights: list[StaleWeight] = [
        Cutoff(),
        Cutoff(),
        Power(base=rng.choice([0.0, 0.5, 0.9])),
        Inverse(),
    ]
    return ModeOptions(
        staleness_bound=rng.choice([0, 0, 1, 2, 6]),
        on_stale=on_stale,
        stale_weight=Cutoff() if on_stale == "reissue" else rng.choice(weights),
        ssp_slack=rng.choice([0, 1, 3]),
        backup_batches=rng.randint(1, 3),
    )


def _consistent(scenario: Scenario) -> Scenario:
    """What no job may have is left out."""
    if scenario.mode == "backup":
        m = max(2, scenario.group_size)
        backup = min(scenario.mode_options.backup_batches, m - 1)
        options = replace(scenario.mode_options, backup_batches=backup)
        scenario = replace(scenario, group_size=m, mode_options=options)
    if scenario.arrives:
        scenario = replace(scenario, limit=None)
    return replace(scenario, flaky=scenario.flaky and scenario.mode != "sync")


def _draw_recoveries(seed: int) -> tuple[float, ...]:
    rng = random.Random(f"recoveries {seed}")
    return tuple(sorted(rng.uniform(0.0, 0.4) for _ in range(rng.choice([0, 0, 0, 1, 1, 2]))))


def _draw_deaths(seed: int) -> dict[str, Any]:
    rng = random.Random(f"deaths {seed}")

    def moments() -> tuple[float, ...]:
        until = rng.choice([0.4, 2.0, 4.0])
        return tuple(rng.uniform(0.0, until) for _ in range(rng.choice([0, 0, 0, 1, 1, 2])))

    return {
        "shard_deaths": moments(),
        "coordinator_deaths": moments(),
        "cut_fails": rng.choice([0.0, 0.0, 0.3]),
        "cut_off_shards": _draw_partitions(seed),
        "moves": _draw_moves(seed),
    }


def _draw_moves(seed: int) -> tuple[float, ...]:
    rng = random.Random(f"moves {seed}")
    return tuple(rng.uniform(0.0, 1.0) for _ in range(rng.choice([0, 0, 0, 0, 1, 2])))


def _draw_partitions(seed: int) -> tuple[float, ...]:
    rng = random.Random(f"cut off {seed}")
    return tuple(rng.uniform(0.0, 2.0) for _ in range(rng.choice([0, 0, 0, 0, 1])))


def _draw_cuts(seed: int) -> CutOptions:
    rng = random.Random(f"cuts {seed}")
    return CutOptions(
        every_steps=rng.choice([None, None, 1, 3]),
        every_seconds=rng.choice([None, None, 0.3]),
        full_every=rng.choice([1, 2, 4]),
    )


def _draw_hang(seed: int) -> float:
    rng = random.Random(f"hangs {seed}")
    return 0.06 * rng.random() if rng.random() < 0.25 else 0.0


def _draw_faults(rng: random.Random) -> Faults:
    if rng.random() < 0.1:
        return Faults()

    def rate(high: float) -> float:
        return high * 10 ** rng.uniform(-1.5, 0) if rng.random() < 0.5 else 0.0

    drawn = Faults(
        kill=rate(0.06),
        kill_at=rng.choice(ARROWS) if rng.random() < 0.3 else None,
        max_kills=rng.randint(1, 6),
        forever=rng.choice([0.0, 0.5, 1.0]),
        pause=rate(0.04),
        slow=rate(0.04),
        cut=rate(0.05),
        lose=rate(0.1),
        duplicate=rate(0.2),
        delay=rate(0.2),
        old_epoch=rate(0.05),
        until=rng.uniform(0.5, 4.0),
    )
    rng.random(), rng.random()  # a seed stays the scenario that it was
    slow = rng.random() < 0.2
    return replace(drawn, fleet_slow=(0.1, 0.1 + rng.uniform(0.1, 1.0)) if slow else None)
