"""Which faults befall which run: drawn from a seed, the same every time."""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

Role = Literal["worker", "server", "coordinator"]
Place = Literal["local", "nodes"]
ROLES: tuple[Role, ...] = ("worker", "server", "coordinator")

# What has to pass until a process that is frozen counts as lost, and some more: of a worker it is
# the job's heartbeat timeout, of the others 15 s.
LONG_SECONDS: dict[Role, tuple[float, float]] = {
    "worker": (13.0, 20.0),
    "server": (18.0, 26.0),
    "coordinator": (18.0, 26.0),
}
# Ray declares a frozen node dead after 64 s.
NODE_LOST_SECONDS = (68.0, 75.0)
# Faults lie between these parts of a job's samples: it has to be there, and not to be over.
FIRST, LAST = 0.06, 0.9


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of fault.

    Args:
        place: where it can be done: in a job with a Ray of its own, or on a cluster of nodes.
        weight: how often it is drawn, in proportion.
    """

    place: Place
    weight: float


KINDS: dict[str, Kind] = {
    "worker_killed": Kind("local", 2),
    "server_killed": Kind("local", 3),
    "coordinator_killed": Kind("local", 3),
    "several_killed": Kind("local", 3),
    "killed_in_cut": Kind("local", 3),
    "killed_in_recovery": Kind("local", 3),
    "frozen_short": Kind("local", 2),
    "frozen_long": Kind("local", 1),
    "driver_killed": Kind("local", 1.3),
    "driver_terminated": Kind("local", 1.3),
    "checkpoint_damaged": Kind("local", 2),
    "disk_full": Kind("local", 2),
    "killed_on_full_disk": Kind("local", 0.7),
    "node_removed": Kind("nodes", 3),
    "node_crashed": Kind("nodes", 2),
    "node_drained": Kind("nodes", 1),
    "node_drained_in_time": Kind("nodes", 3),
    "node_frozen": Kind("nodes", 1),
    "raylet_frozen": Kind("nodes", 1),
}
# In a run on nodes as well: what befalls single processes.
ALSO_ON_NODES = ("server_killed", "coordinator_killed")
PART_ON_NODES = 0.15


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """One fault.

    Args:
        at: the part of the job's samples that have ended when it comes.
        roles: whom it befalls, one after another.
        pick: which of a role's processes, or of the nodes or files, counted around.
        seconds: how long it lasts, or how long after the first the second process is killed.
        how: what is done to a file: `flip` a bit of it, `truncate` or `remove` it.
    """

    kind: str
    at: float
    roles: tuple[Role, ...]
    pick: int
    seconds: float
    how: Literal["flip", "truncate", "remove"]


@dataclass(frozen=True, slots=True)
class PlannedRun:
    """A run with its faults in their order."""

    number: int
    mode: str
    place: Place
    faults: tuple[Fault, ...]


def draw_run(seed: int, number: int, *, kinds: Sequence[str], modes: Sequence[str]) -> PlannedRun:
    """Draw one run: it depends on nothing but the arguments.

    Args:
        number: of the run, from 0. Modes take turns.
        kinds: names out of KINDS, at least one.
        modes: at least one.
    """
    chance = random.Random(f"{seed}/{number}")
    by_place = {
        place: [k for k in kinds if KINDS[k].place == place] for place in ("local", "nodes")
    }
    on_nodes = not by_place["local"] or (by_place["nodes"] and chance.random() < PART_ON_NODES)
    place: Place = "nodes" if on_nodes else "local"
    names = by_place[place]
    if on_nodes:
        names += [kind for kind in ALSO_ON_NODES if kind in kinds]
    count = chance.randint(2, 4) if on_nodes else chance.randint(5, 10)
    moments = sorted(chance.uniform(FIRST, LAST) for _ in range(count))
    weights = [KINDS[name].weight for name in names]
    faults = tuple(
        _draw(chance, kind, at)
        for kind, at in zip(chance.choices(names, weights, k=count), moments, strict=True)
    )
    return PlannedRun(number, modes[number % len(modes)], place, faults)


def _draw(chance: random.Random, kind: str, at: float) -> Fault:
    roles: tuple[Role, ...] = (chance.choice(ROLES),)
    seconds = chance.uniform(0.5, 4.0)
    match kind:
        case "worker_killed" | "server_killed" | "coordinator_killed":
            named: dict[str, Role] = {f"{role}_killed": role for role in ROLES}
            roles = (named[kind],)
        case "several_killed":
            several: list[tuple[Role, ...]] = [
                ("server", "server"),
                ("server", "coordinator"),
                ("server", "worker"),
                ("worker", "worker"),
                ("worker", "coordinator"),
                ("server", "server", "worker", "worker", "coordinator"),
            ]
            roles = chance.choice(several)
        case "killed_in_recovery":
            # The first is what makes the job go back.
            first: list[Role] = ["server", "coordinator"]
            roles = (chance.choice(first), chance.choice(ROLES))
            seconds = chance.uniform(0.0, 2.5)
        case "frozen_long":
            seconds = chance.uniform(*LONG_SECONDS[roles[0]])
        case "node_frozen" | "raylet_frozen":
            seconds = chance.uniform(*NODE_LOST_SECONDS)
    how: list[Literal["flip", "truncate", "remove"]] = ["flip", "truncate", "remove"]
    return Fault(
        kind=kind,
        at=round(at, 4),
        roles=roles,
        pick=chance.randrange(1000),
        seconds=round(seconds, 2),
        how=chance.choice(how),
    )
