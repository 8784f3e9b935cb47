"""Faults on purpose, for experiments and tests: slow workers, dying ones, bad connections."""

import math
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from ps.client.faults import ConnectionFaults


@dataclass(frozen=True, slots=True, kw_only=True)
class Slow:
    """Some workers take longer for each batch.

    Args:
        workers: their numbers.
        factor: a batch takes so many times as long, >= 1.
        least_seconds: what a batch takes at the least, before factors: sleep that stands in for a
            computation, so that its time does not depend on what else the cores do.
        jitter: the factor is multiplied by a number in [1 - jitter, 1 + jitter), drawn per batch.
        from_seconds, to_seconds: since `FaultPlan.started`, in which they are slow.
    """

    workers: tuple[int, ...]
    factor: float = 1.0
    least_seconds: float = 0.0
    jitter: float = 0.0
    from_seconds: float = 0.0
    to_seconds: float = math.inf

    def holds(self, worker: int, seconds: float) -> bool:
        """Whether a worker is slow so many seconds after the start."""
        return worker in self.workers and self.from_seconds <= seconds < self.to_seconds


@dataclass(frozen=True, slots=True, kw_only=True)
class Kill:
    """Some workers die, once each, before they train a batch of this step or a later one."""

    workers: tuple[int, ...]
    at_step: int


HangStage = Literal["read", "compute"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Hang:
    """A thread of some workers stops for ever, once each, while the one that reports goes on.

    Args:
        workers: their numbers.
        at_step: they hang at a batch of this step or a later one.
        stage: whether before they read it, or before they compute it.
    """

    workers: tuple[int, ...]
    at_step: int
    stage: HangStage = "compute"


@dataclass(frozen=True, slots=True, kw_only=True)
class FaultPlan:
    """All faults of a job.

    Args:
        faults: of any worker.
        seed: of the jitter.
        started: when the workers were set up, as `time.time()`.
        connections: what befalls every worker's connections to the shards.
    """

    faults: tuple[Slow | Kill | Hang, ...] = ()
    seed: int = 0
    started: float = 0.0
    connections: ConnectionFaults = field(default_factory=ConnectionFaults)


class Faults:
    """What befalls one worker; knows no clock.

    Args:
        plan: of the job.
        worker: its number.
        incarnation: which process with that number this is; only the first is killed or hangs.
    """

    def __init__(self, plan: FaultPlan, *, worker: int, incarnation: int) -> None:
        self._plan = plan
        self._worker = worker
        self._incarnation = incarnation
        self._random = np.random.default_rng([plan.seed, worker, incarnation])

    def pause(self, took: float, now: float) -> float:
        """Return how many seconds to wait after a batch that took `took` seconds.

        Args:
            now: as `time.time()`.
        """
        factor, least = 1.0, 0.0
        for fault in self._plan.faults:
            if isinstance(fault, Slow) and fault.holds(self._worker, now - self._plan.started):
                factor *= fault.factor * (1 + fault.jitter * self._random.uniform(-1, 1))
                least = max(least, fault.least_seconds)
        return max(0.0, factor * max(took, least) - took)

    def dies_at(self, step: int) -> bool:
        """Whether the worker dies before it trains a batch of this step."""
        return self._incarnation == 0 and any(
            isinstance(fault, Kill) and self._worker in fault.workers and step >= fault.at_step
            for fault in self._plan.faults
        )

    def hangs_at(self, step: int, stage: HangStage) -> bool:
        """Whether the worker hangs at a batch of this step."""
        return self._incarnation == 0 and any(
            isinstance(fault, Hang)
            and self._worker in fault.workers
            and (fault.stage, step >= fault.at_step) == (stage, True)
            for fault in self._plan.faults
        )
