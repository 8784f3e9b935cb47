"""What the driver asks of Ray, done by threads of this process: whole jobs without a cluster.

An actor is an object whose calls run in threads of its own; what goes in and out of a call is
pickled, as Ray does. The driver, the actors' classes, sockets and files are the real ones. What
only a process has can't be had: all share one fingerprint and one memory, and whoever is killed
goes on with what it does, but is dead for the driver, as on a node that can't be reached.
"""

import queue
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from types import SimpleNamespace
from typing import Any

import pytest
import ray
import ray.actor
from ray import cloudpickle
from ray.exceptions import ActorDiedError, GetTimeoutError, RayTaskError
from threadpoolctl import threadpool_limits

import ps.server.warmup
import scheduler.driver.launch
import scheduler.driver.placement
import scheduler.driver.supervisor
from scheduler import JobConfig, Result, Trainer
from worker.actor import WorkerActor
from worker.running import WorkerSetup

# Of a worker whose job failed: its peers are gone, and nobody ends it.
RETRY_SECONDS = 3.0
# How often the driver looks at a job: an end, or a cut, takes several looks.
POLL_SECONDS = 0.03
# How long workers may take to end that are told to.
STOP_SECONDS = 3.0
END_SECONDS = 20.0

_news = threading.Condition()
_here = threading.local()  # the node that a thread of an actor runs on


class Call:
    """The reference to what a call will return."""

    def __init__(self) -> None:
        self.done = False
        self._value = b""
        self._error: Exception | None = None

    def end(self, value: Any = None, error: Exception | None = None) -> None:
        """Only the first end counts: that of a call of a killed actor is its death."""
        pickled = b"" if error is not None else cloudpickle.dumps(value)
        with _news:
            if not self.done:
                self._value, self._error, self.done = pickled, error, True
                _news.notify_all()

    def result(self) -> Any:
        if self._error is not None:
            raise self._error
        return cloudpickle.loads(self._value)


@dataclass(eq=False)
class Handle:
    """An actor: a queue and as many threads for each of its concurrency groups."""

    actor_class: Any
    concurrency: int
    working: list[Call]
    node: str = "here"
    instance: Any = None
    killed: bool = False
    calls: list[Call] = field(default_factory=list)
    threads: list[threading.Thread] = field(default_factory=list)
    queues: dict[str, "queue.SimpleQueue[Callable[[], None] | None]"] = field(default_factory=dict)

    def __getattr__(self, name: str) -> Any:
        return SimpleNamespace(remote=lambda *args, **options: self.call(name, *args, **options))

    def start(self, *args: Any) -> None:
        def make() -> None:
            self.instance = self.actor_class(*args)

        self._queue_of("").put(make)

    def call(self, name: str, *args: Any, **options: Any) -> Call:
        call = Call()
        self.calls.append(call)
        if self.killed:
            call.end(error=ActorDiedError())
            return call
        # What another call comes to is handed over once it is there.
        awaited = {at: each for at, each in enumerate(args) if isinstance(each, Call)}
        given = [None if at in awaited else each for at, each in enumerate(args)]
        pickled = cloudpickle.dumps((given, options))
        if name == "run":
            self.working.append(call)
        method = getattr(self.actor_class, name)

        def work() -> None:
            args, options = cloudpickle.loads(pickled)
            try:
                _wait(list(awaited.values()), len(awaited), None)
                for at, each in awaited.items():
                    args[at] = each.result()
                value = getattr(self.instance, name)(*map(_impatient, args), **options)
                if name == "stop_workers":
                    _wait(self.working, len(self.working), STOP_SECONDS)
                call.end(value)
            except Exception as error:
                call.end(error=RayTaskError(name, str(error), error).as_instanceof_cause())

        self._queue_of(getattr(method, "__ray_concurrency_group__", "")).put(work)
        return call

    def kill(self) -> None:
        self.killed = True
        for call in self.calls:
            call.end(error=ActorDiedError())
        for waiting in self.queues.values():
            for _ in self.threads:
                waiting.put(None)

    def _queue_of(self, group: str) -> "queue.SimpleQueue[Callable[[], None] | None]":
        if group not in self.queues:
            self.queues[group] = queue.SimpleQueue()
            for _ in range(1 if group else self.concurrency):
                thread = threading.Thread(
                    target=_work, args=(self.queues[group], self.node), daemon=True
                )
                thread.start()
                self.threads.append(thread)
        return self.queues[group]


def _work(waiting: "queue.SimpleQueue[Callable[[], None] | None]", node: str) -> None:
    _here.node = node
    while (work := waiting.get()) is not None:
        work()


def _wait(calls: list[Call], count: int, timeout: float | None) -> list[Call]:
    """Wait until so many calls have ended; return those that have."""
    with _news:
        _news.wait_for(lambda: sum(call.done for call in calls) >= count, timeout)
        return [call for call in calls if call.done]


def _impatient(argument: Any) -> Any:
    if isinstance(argument, WorkerSetup):
        return replace(argument, retry_seconds=RETRY_SECONDS)
    return argument


class RayOfThreads:
    """The functions of Ray that the driver uses.

    Attributes:
        places: the nodes that new actors come to, by turns.
        bundles: the node that has the bundles of all placement groups.
    """

    def __init__(self) -> None:
        self.places = ["here"]
        self.bundles = "here"
        self.handles: list[Handle] = []
        self.working: list[Call] = []
        self.named: dict[str, Handle] = {}

    def is_initialized(self) -> bool:
        return True

    def options(
        self,
        actor_class: Any,
        *,
        name: str | None = None,
        max_concurrency: int = 0,
        label_selector: dict[str, str] | None = None,
        **_: Any,
    ) -> Any:
        """Return what makes an actor, wherever there is room and no selector forbids it."""
        forbidden = str((label_selector or {}).get("ray.io/node-id"))

        def remote(*args: Any) -> Handle:
            concurrency = max_concurrency or actor_class._default_options.get("max_concurrency", 1)
            actual = actor_class.__ray_metadata__.modified_class
            cloudpickle.dumps(actual)  # as it is sent
            places = [place for place in self.places if place not in forbidden]
            node = places[len(self.handles) % len(places)]
            handle = Handle(actual, concurrency, self.working, node)
            handle.start(*args)
            self.handles.append(handle)
            if name is not None:
                self.named[name] = handle
            return handle

        return SimpleNamespace(remote=remote)

    def get(self, calls: Any, *, timeout: float | None = None) -> Any:
        every = calls if isinstance(calls, list) else [calls]
        _, late = self.wait(every, num_returns=len(every), timeout=timeout)
        if late:
            raise GetTimeoutError("it took too long")
        results = [call.result() for call in every]
        return results if isinstance(calls, list) else results[0]

    def wait(
        self, calls: list[Call], *, num_returns: int = 1, timeout: float | None = None
    ) -> tuple[list[Call], list[Call]]:
        ended = _wait(calls, num_returns, timeout)[:num_returns]
        return ended, [call for call in calls if call not in ended]

    def kill(self, handle: Handle) -> None:
        handle.kill()

    def get_actor(self, name: str, namespace: str | None = None) -> Handle:
        if name not in self.named or self.named[name].killed:
            raise ValueError(f"no actor is called {name}")
        return self.named[name]

    def workers(self) -> list[Handle]:
        """Return the workers that run."""
        return [
            handle
            for handle in self.handles
            if isinstance(handle.instance, WorkerActor.__ray_metadata__.modified_class)
            and not handle.killed
        ]

    def get_runtime_context(self) -> Any:
        return SimpleNamespace(
            gcs_address="127.0.0.1:1",
            namespace="threads",
            get_node_id=lambda: getattr(_here, "node", "here"),
        )

    def ended(self) -> bool:
        """Wait until no call runs any more; return whether that came to be."""
        deadline = time.monotonic() + END_SECONDS
        threads = [thread for handle in self.handles for thread in handle.threads]
        for thread in threads:
            thread.join(max(0.0, deadline - time.monotonic()))
        return not any(thread.is_alive() for thread in threads)


@contextmanager
def ray_of_threads() -> Iterator[RayOfThreads]:
    """Let the driver's jobs run in threads of this process."""
    fake = RayOfThreads()
    with pytest.MonkeyPatch.context() as patch, threadpool_limits():
        for name in ("is_initialized", "get", "wait", "kill", "get_actor", "get_runtime_context"):
            patch.setattr(ray, name, getattr(fake, name))
        # Their cluster may have several nodes, and get others.
        patch.setattr(scheduler.driver.launch, "starts_ray", lambda: False)
        patch.setattr(ray.util, "get_node_ip_address", lambda: "127.0.0.1")
        patch.setattr(ray.actor.ActorClass, "options", lambda *a, **o: fake.options(*a, **o))
        group = SimpleNamespace(wait=lambda timeout: True)
        patch.setattr(scheduler.driver.supervisor, "POLL_SECONDS", POLL_SECONDS)
        # Of all that the tests' process holds, at each server's start, that takes longest.
        patch.setattr(ps.server.warmup, "gc", SimpleNamespace(collect=lambda: 0))
        module = scheduler.driver.placement
        patch.setattr(module, "placement_group", lambda *_, **__: group)
        table = {"bundles_to_node_id": SimpleNamespace(get=lambda number: fake.bundles)}
        patch.setattr(module, "placement_group_table", lambda group: table)
        patch.setattr(module, "remove_placement_group", lambda group: None)
        here = dict.fromkeys(range(64), "here")
        patch.setattr(module, "placement_group_table", lambda _: {"bundles_to_node_id": here})
        patch.setattr(module, "PlacementGroupSchedulingStrategy", lambda **_: None)
        yield fake
        assert fake.ended(), "a thread of an actor that was killed still runs"


def train_in_threads(config: JobConfig) -> Result:
    """Run a job in threads of this process, be Ray started or not."""
    with ray_of_threads():
        return Trainer(config).fit()
