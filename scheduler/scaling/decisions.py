"""What the policies are told, and what they decide."""

from dataclasses import dataclass, field
from typing import Literal

from embedding.spec.ranges import require, require_finite, require_not_negative, require_positive

Role = Literal["worker", "server"]
Cause = Literal["gain", "no gain", "idle", "missed", "no place", "memory", "load"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ScalingOptions:
    """When to change the number of workers and servers.

    Args:
        window_seconds: how long figures are gathered before they are looked at.
        windows: how many make a measurement at least; up to four times as many where they differ
            so much that the gain would drown in it.
        keep_gain: a worker that is added has to bring so much of what those before it bring on
            average, in samples per second; > 0 and < 1.
        hold_seconds: after a change that did not pay, before its like is tried again; doubles with
            each, up to 8 times as long, unless the job's rate has changed.
        place_seconds: how long workers may lack a place, before no more are asked for than there
            are.
        server_load: share of the time in which the busiest server may apply.
        most_skew: load of the busiest server over the mean of all, above which buckets move.
        server_memory_bytes: of tables and buffers that a server may hold; None: any number.
    """

    window_seconds: float = 10.0
    windows: int = 3
    keep_gain: float = 0.5
    hold_seconds: float = 120.0
    place_seconds: float = 300.0
    server_load: float = 0.7
    most_skew: float = 1.25
    server_memory_bytes: int | None = None

    def __post_init__(self) -> None:
        require_positive("window_seconds", self.window_seconds)
        require(2 <= self.windows <= 100, f"windows must be 2 to 100, got {self.windows}")
        require_finite("keep_gain", self.keep_gain)
        require(0 < self.keep_gain < 1, f"keep_gain must be above 0 and below 1, {self.keep_gain}")
        require_not_negative("hold_seconds", self.hold_seconds)
        require_positive("place_seconds", self.place_seconds)
        require(
            0 < self.server_load < 1, f"server_load must be between 0 and 1: {self.server_load}"
        )
        require_finite("most_skew", self.most_skew)
        require(self.most_skew >= 1.1, f"most_skew must be at least 1.1, got {self.most_skew}")
        least = self.server_memory_bytes
        require(least is None or least >= 1 << 20, f"server_memory_bytes is below 1 MiB: {least}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Window:
    """What was measured between two looks.

    Args:
        seconds: how long it was.
        wanted: workers.
        up: the least of them that were at work at any time.
        rate: samples per second that ended.
        busy: share of the time in which a worker computed, over those that were up, 0 to 1.
        starved: share of the time in which a worker had nothing that it could be given.
        servers: how many there are.
        server_load: share of the time in which the busiest server applied.
        server_bytes: that the fullest server holds.
        coordinator_load: CPU seconds of the coordinator a second.
        useful_workers: more than these have nothing to do, in the mode that the job is in; None:
            any number has.
        samples_left: of the job; None: no end is known.
    """

    seconds: float
    wanted: int
    up: int
    rate: float
    busy: float = 1.0
    starved: float = 0.0
    servers: int = 1
    server_load: float = 0.0
    server_bytes: int = 0
    coordinator_load: float = 0.0
    useful_workers: int | None = None
    samples_left: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Scaling:
    """One decision to have another number of workers or servers.

    Args:
        number: counts the decisions on this role, from 1.
        before, after: how many there were, and are wanted.
        cause: `gain`: more are tried; `no gain`: what was tried did not pay, and goes back, in part
            or whole; `idle`: fewer would do; `missed`: fewer did not do; `no place`: the cluster
            has none for them; `memory`, `load`: of the servers.
        reason: in words, with its figures.
        rate: samples per second before.
        share: of servers, before: of the time in which the busiest applies (`load`), or of
            `server_memory_bytes` that the fullest holds (`memory`).
        predicted, realised: what `rate`, of servers `share`, is after it; None: nobody can say
            (yet).
        held_back: why it is not carried out; None: it is.
        time: seconds since 1970, told by whoever carries it out.
        figures: that it was made by.
    """

    number: int
    role: Role
    before: int
    after: int
    cause: Cause
    reason: str
    rate: float
    share: float | None = None
    predicted: float | None = None
    realised: float | None = None
    held_back: str | None = None
    time: float = 0.0
    figures: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class ScalingView:
    """What whoever looks at a job is told of scaling.

    Args:
        why: there are as many workers as there are, in words.
        last, last_of_servers: the latest decisions.
        servers: that there are.
        counts: (role, cause, decisions) since the job's driver began.
    """

    why: str = ""
    last: Scaling | None = None
    last_of_servers: Scaling | None = None
    servers: int = 0
    counts: tuple[tuple[str, str, int], ...] = ()


def described(scaling: Scaling) -> str:
    """Say in a line what is decided and why."""
    text = f"{scaling.role}s {scaling.before} to {scaling.after}: {scaling.reason}"
    if scaling.predicted is not None and scaling.share is not None:
        text += f" (predicted {scaling.predicted:.0%})"
    elif scaling.predicted is not None:
        text += f" (samples/s {scaling.rate:,.0f}, predicted {scaling.predicted:,.0f})"
    if scaling.held_back is not None:
        text += f"; held back: {scaling.held_back}"
    return text


def outcome_of(scaling: Scaling) -> str:
    """Say in a line what came of a decision."""
    text = f"{scaling.role}s {scaling.before} to {scaling.after}:"
    assert scaling.realised is not None, "it is known"
    if scaling.share is None:
        return f"{text} samples/s {scaling.rate:,.0f} before, {scaling.realised:,.0f} after"
    what = "the busiest applies" if scaling.cause == "load" else "the fullest holds"
    of = "of the time" if scaling.cause == "load" else "of what it may"
    return f"{text} {what} {scaling.realised:.0%} {of}, {scaling.share:.0%} before"


def figures_of(window: Window) -> dict[str, float]:
    """Return what a decision keeps of the window that it was made by."""
    return {
        "busy": round(window.busy, 4),
        "starved": round(window.starved, 4),
        "server_load": round(window.server_load, 4),
        "server_bytes": window.server_bytes,
        "coordinator_load": round(window.coordinator_load, 4),
    }
