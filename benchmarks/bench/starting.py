"""What a part of a start takes in a process of its own: `python -m bench.starting PART [JOB ...]`.

PART is `ray`: import Ray, start it as a job does, create an actor that does nothing; or `server` or
`worker`: import what such a process needs, load its kernels. Prints seconds by phase as JSON.
"""

import sys
import time
from collections.abc import Callable
from typing import Any

from runtime.strict_json import json_text


class Phases:
    """Seconds of phases that follow one another, from the making of this object on."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._last = time.perf_counter()

    def ended(self, phase: str) -> None:
        """The phase is over, the next begins."""
        now = time.perf_counter()
        self.seconds[phase] = now - self._last
        self._last = now


# Imports are what is measured, so they are inside the functions.


def ray_alone(_: list[str]) -> dict[str, float]:
    """Start Ray with the defaults of a job, and an actor in a process of its own."""
    phases = Phases()
    import ray

    phases.ended("import")
    from scheduler.driver.launch import start_ray
    from scheduler.job.config import ClusterConfig

    phases.ended("ours")
    start_ray(ClusterConfig(), namespace="bench")
    phases.ended("init")

    class Nothing:
        def ready(self) -> None:
            pass

    actor: Any = ray.remote(Nothing)
    ray.get(actor.remote().ready.remote())
    phases.ended("actor")
    del phases.seconds["ours"]
    ray.shutdown()
    return phases.seconds


def server_kernels(job: list[str]) -> dict[str, float]:
    """Import a server and load its kernels."""
    phases = Phases()
    import ps.server.server  # noqa: F401

    phases.ended("import")
    from ps.server.warmup import warm_up
    from scheduler import JobConfig
    from scheduler.driver.resolved import resolve

    store = resolve(JobConfig.from_yaml(job[0], job[1:])).store
    phases.ended("job")
    warm_up(store)
    phases.ended("kernels")
    del phases.seconds["job"]
    return phases.seconds


def worker_kernels(job: list[str]) -> dict[str, float]:
    """Import a worker and load its kernels."""
    phases = Phases()
    import worker.running

    phases.ended("import")
    from scheduler import JobConfig
    from scheduler.driver.resolved import resolve
    from worker.step.computing import Computation

    specs = resolve(JobConfig.from_yaml(job[0], job[1:]))
    features, model, store = specs.data.features, specs.model, specs.store
    phases.ended("job")
    preparer = worker.running.make_preparer(store, model.lookups, features.sparse)
    worker.running.warm_up(features, model, store, preparer, Computation(model))
    phases.ended("kernels")
    del phases.seconds["job"]
    return phases.seconds


PARTS: dict[str, Callable[[list[str]], dict[str, float]]] = {
    "ray": ray_alone,
    "server": server_kernels,
    "worker": worker_kernels,
}

if __name__ == "__main__":
    print(json_text(PARTS[sys.argv[1]](sys.argv[2:])))
