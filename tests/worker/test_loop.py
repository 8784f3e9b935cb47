"""The worker's threads: what one of them must not hold up."""

import select
import socket
import threading
import time
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from ps.client.client import Open, PulledBatch
from ps.messages.exchange import Refusal
from ps.messages.pull_push import ANY_STEP
from ps.net.cancellation import Cancellation
from runtime.fingerprint import FloatModeError
from worker.faults import FaultPlan, Faults
from worker.loop import LoopOptions, WorkerLoop
from worker.protocol import Finished, Grant, Report, Token
from worker.session import Session

# More than a socket holds wake-ups that nobody takes: 278 on Linux.
REPORTS = 400


class OneBatch:
    """A coordinator that has a single batch, and counts the reports while it is computed."""

    def __init__(self) -> None:
        self.reports = 0
        self.computing = False
        self.enough = threading.Event()

    def exchange(self, report: Report) -> Grant:
        self.reports += self.computing
        if self.reports == REPORTS:
            self.enough.set()
        tokens = (Token(0, 0, 0, ANY_STEP),) if report.sequence == 1 else ()
        return Grant(report.sequence, tokens, stop=bool(report.finished))

    def close(self) -> None:
        pass


class AnswersAtOnce:
    """Shards without anything in them."""

    bytes_sent = bytes_received = waited_ns = 0

    def __init__(self) -> None:
        self._open: list[Any] = []

    def watch(self, sock: socket.socket) -> None:
        self._wakes = sock

    def start_pull(self, unique: Any, **options: Any) -> Any:
        pulled = PulledBatch.__new__(PulledBatch)
        pulled.request_id, pulled.replies, pulled.admitted = 1, {}, None
        pulled.values = pulled.dense = pulled.steps = np.zeros(1, np.float32)
        self._open.append(pulled)
        return pulled

    def poll(self, timeout: float) -> list[Any]:
        answered, self._open = self._open, []
        if not answered:
            select.select([self._wakes], [], [], timeout)
        return answered

    def close(self) -> None:
        pass


def test_a_worker_reports_on_however_long_a_batch_takes() -> None:
    coordinator = OneBatch()

    class Slow(WorkerLoop):
        def _compute(self, token: Token, ready: Any, pulled: Any) -> None:
            coordinator.computing = True
            coordinator.enough.wait(timeout=60.0)
            coordinator.computing = False
            self._finish(Finished(token, "done", samples=1))

    loop = Slow(
        session=Session(0, 0, depth=2),
        coordinator=coordinator,
        client=AnswersAtOnce(),  # type: ignore[arg-type]
        readers={"train": lambda batch_id: (SimpleNamespace(num_samples=1), 0)},  # type: ignore[dict-item, return-value]
        preparer=lambda batch: SimpleNamespace(unique=None),  # type: ignore[arg-type, return-value]
        computation=None,  # type: ignore[arg-type]
        options=LoopOptions(poll_seconds=0.002, heartbeat_seconds=0.002),
        faults=Faults(FaultPlan(), worker=0, incarnation=0),
    )
    loop.run()

    assert coordinator.enough.is_set(), f"{coordinator.reports} reports, then silence"


class AnswersPushesLate(AnswersAtOnce):
    """Shards that leave a push unanswered for a while; `events` says what happened when."""

    def __init__(self, events: list[str]) -> None:
        super().__init__()
        self.events = events
        self._push: Open | None = None

    def start_push(self, *arguments: Any, **options: Any) -> Open:
        self.events.append("pushed")
        self._push = Open(2, {}, set())
        return self._push

    def poll(self, timeout: float) -> list[Any]:
        if self._push is None:
            return super().poll(timeout)
        time.sleep(0.1)
        self.events.append("answered")
        answered, self._push = [self._push], None
        return answered

    def release(self, request: Open) -> None:
        self.events.append("released " + type(request).__name__)


def test_a_batch_keeps_its_arrays_until_its_push_is_answered() -> None:
    events: list[str] = []

    class Computation:
        forward_ns, most_begun = 0, 1

        def begin(self, *arguments: Any) -> None:
            pass

        def end(self, begun: Any) -> tuple[float, np.ndarray, np.ndarray]:
            return 0.0, np.zeros(1, np.float32), np.zeros(1, np.float32)

        def give_back(self, *gradients: np.ndarray) -> None:
            events.append("gradients given back")

    class Preparer:
        def __call__(self, batch: Any) -> Any:
            return SimpleNamespace(unique=None, bags=(), num_samples=1, weighing=None)

        def give_back(self, prepared: Any) -> None:
            events.append("keys given back")

    WorkerLoop(
        session=Session(0, 0, depth=2),
        coordinator=OneBatch(),
        client=AnswersPushesLate(events),  # type: ignore[arg-type]
        readers={"train": lambda batch_id: (SimpleNamespace(num_samples=1), 0)},  # type: ignore[dict-item, return-value]
        preparer=Preparer(),  # type: ignore[arg-type]
        computation=Computation(),  # type: ignore[arg-type]
        options=LoopOptions(poll_seconds=0.002),
        faults=Faults(FaultPlan(), worker=0, incarnation=0),
    ).run()

    assert events[:2] == ["pushed", "answered"]
    assert sorted(events[2:]) == [
        "gradients given back",
        "keys given back",
        "released Open",
        "released PulledBatch",
    ]


@pytest.fixture
def no_model() -> dict[str, Any]:
    """What a loop needs beside coordinator and client, with nothing in it."""
    computation = SimpleNamespace(
        forward_ns=0,
        most_begun=1,
        begin=lambda *_: None,
        end=lambda _: (0.0, np.zeros(1, np.float32), np.zeros(1, np.float32)),
        give_back=lambda *_: None,
    )

    class Preparer:
        def __call__(self, batch: Any) -> Any:
            return SimpleNamespace(unique=None, bags=(), num_samples=1, weighing=None)

        def give_back(self, prepared: Any) -> None:
            pass

    return {
        "session": Session(0, 0, depth=2),
        "readers": {"train": lambda batch_id: (SimpleNamespace(num_samples=1), 0)},
        "preparer": Preparer(),
        "computation": computation,
        "options": LoopOptions(poll_seconds=0.002, full_seconds=0.001, unheard_seconds=0.001),
        "faults": Faults(FaultPlan(), worker=0, incarnation=0),
    }


def test_nothing_is_prepared_in_a_mode_that_flushes_denormals(
    no_model: dict[str, Any], in_float_mode: Any
) -> None:
    loop = WorkerLoop(coordinator=OneBatch(), client=AnswersAtOnce(), **no_model)  # type: ignore[arg-type]

    with (
        in_float_mode("flushing"),  # threads of the loop inherit it
        pytest.raises(FloatModeError, match="denormal numbers flushed to zero"),
    ):
        loop.run()


class HasNoRoomAtFirst(AnswersPushesLate):
    """A shard that refuses a push as often as it is told, and then takes it."""

    def __init__(self, events: list[str], refusals: int, reason: Any) -> None:
        super().__init__(events)
        self._refusals, self._reason = refusals, reason

    def poll(self, timeout: float) -> list[Any]:
        push = self._push
        if push is not None and self._refusals:
            self._refusals -= 1
            self.events.append("refused")
            push.replies = {0: Refusal(2, self._reason, "no room")}
            self._push = None
            return [push]
        return super().poll(timeout)

    def send_again(self, request: Open) -> None:
        self.events.append("sent again")
        request.replies.clear()
        self._push = request


@pytest.mark.parametrize("reason", ["full", "unheard"])
def test_a_push_that_a_shard_can_not_take_yet_is_sent_again_until_it_can(
    no_model: dict[str, Any], reason: Any
) -> None:
    events: list[str] = []
    coordinator = OneBatch()

    WorkerLoop(
        coordinator=coordinator,
        client=HasNoRoomAtFirst(events, 3, reason),  # type: ignore[arg-type]
        **no_model,
    ).run()

    assert events[:8] == ["pushed", *["refused", "sent again"] * 3, "answered"]
    assert events.count("pushed") == 1, "what a batch contributes is computed once"


def test_who_waits_long_for_tokens_asks_more_seldom_and_loses_an_eighth_at_most() -> None:
    options = LoopOptions(heartbeat_seconds=1.0, poll_seconds=0.05)

    assert [options.pause_seconds(waited) for waited in (0.0, 0.4, 4.0, 8.0, 3600.0)] == [
        0.05, 0.05, 0.5, 1.0, 1.0
    ]  # fmt: skip


class HasNothing(OneBatch):
    """A coordinator without a batch, in some recovery epoch, that answers when it likes."""

    def __init__(self, recovery_epoch: int, cancellation: Cancellation) -> None:
        super().__init__()
        self._epoch = recovery_epoch
        self._cancellation = cancellation

    def exchange(self, report: Report) -> Grant:
        self.enough.set()
        if self._epoch == 0:
            self._cancellation.sleep(60.0)
        return Grant(report.sequence, recovery_epoch=self._epoch)


def test_a_loop_that_is_left_ends_at_once_and_its_failures_count_no_more(
    no_model: dict[str, Any],
) -> None:
    cancellation = Cancellation()
    coordinator = HasNothing(0, cancellation)
    loop = WorkerLoop(
        coordinator=coordinator,
        client=AnswersAtOnce(),  # type: ignore[arg-type]
        cancellation=cancellation,
        **no_model,
    )
    threading.Timer(0.1, cancellation.set).start()
    began = time.monotonic()

    assert loop.run() == "left"
    assert time.monotonic() - began < 30, "an answer would take 60 s"


def test_a_loop_ends_where_the_job_is_in_another_epoch(no_model: dict[str, Any]) -> None:
    coordinator = HasNothing(1, Cancellation())

    ending = WorkerLoop(coordinator=coordinator, client=AnswersAtOnce(), **no_model).run()  # type: ignore[arg-type]

    assert ending == "outdated"


@pytest.mark.parametrize("reason", ["epoch", "fenced"])
def test_a_loop_ends_where_a_shard_is_in_another_epoch(
    no_model: dict[str, Any], reason: Any
) -> None:
    class IsElsewhere(AnswersAtOnce):
        def poll(self, timeout: float) -> list[Any]:
            answered = super().poll(timeout)
            for pulled in answered:
                pulled.replies = {0: Refusal(1, reason, "the job is in epoch 1")}
            return answered

    ending = WorkerLoop(coordinator=OneBatch(), client=IsElsewhere(), **no_model).run()  # type: ignore[arg-type]

    assert ending == "outdated"


class TwoBatches(OneBatch):
    """A coordinator that has two batches of one step, and ends when it has heard of both."""

    def __init__(self) -> None:
        super().__init__()
        self.ended: list[int] = []

    def exchange(self, report: Report) -> Grant:
        self.ended += [each.token.batch_id for each in report.finished]
        tokens = (Token(0, 0, 0, ANY_STEP), Token(0, 1, 0, ANY_STEP))
        return Grant(
            report.sequence, tokens if report.sequence == 1 else (), stop=len(self.ended) == 2
        )


class Numbered(AnswersAtOnce):
    """Shards that answer any number of pulls and pushes, each by its own number."""

    def __init__(self) -> None:
        super().__init__()
        self._numbers = 0

    def _numbered(self, request: Any) -> Any:
        self._numbers += 1
        request.request_id = self._numbers
        return request

    def start_pull(self, unique: Any, **options: Any) -> Any:
        return self._numbered(super().start_pull(unique, **options))

    def start_push(self, *arguments: Any, **options: Any) -> Any:
        push = self._numbered(Open(0, {}, set()))
        self._open.append(push)
        return push

    def release(self, request: Any) -> None:
        pass


class OnADevice:
    """A model that computes beside its caller: the first batch ends when the second has begun."""

    forward_ns, most_begun = 0, 2

    def __init__(self, events: list[str], error: Exception | None = None) -> None:
        self._events, self._error = events, error
        self._ends = [threading.Event(), threading.Event()]

    def begin(self, prepared: Any, values: Any, dense: Any, batch_id: int) -> int:
        self._events.append(f"{batch_id} begun")
        if batch_id == 1:
            threading.Timer(0.02, self._ends[0].set).start()
            threading.Timer(0.04, self._ends[1].set).start()
        return batch_id

    def has_ended(self, beginning: int) -> bool:
        return self._ends[beginning].is_set()

    def await_end(self, beginning: int) -> None:
        if self._error is not None:
            raise self._error
        assert self._ends[beginning].wait(30.0)

    def end(self, beginning: int) -> tuple[float, np.ndarray, np.ndarray]:
        assert self._ends[beginning].wait(30.0)
        self._events.append(f"{beginning} ended")
        return 0.0, np.zeros(1, np.float32), np.zeros(1, np.float32)

    def give_back(self, *gradients: np.ndarray) -> None:
        pass


def test_a_batch_is_begun_while_a_device_computes_the_one_before(no_model: dict[str, Any]) -> None:
    events: list[str] = []
    coordinator = TwoBatches()

    WorkerLoop(
        coordinator=coordinator,
        client=Numbered(),  # type: ignore[arg-type]
        **{**no_model, "computation": OnADevice(events)},
    ).run()

    assert events == ["0 begun", "1 begun", "0 ended", "1 ended"]
    assert sorted(coordinator.ended) == [0, 1]


def test_what_a_device_fails_with_ends_the_loop(no_model: dict[str, Any]) -> None:
    computation = OnADevice([], RuntimeError("CUDA error: unspecified launch failure"))
    loop = WorkerLoop(
        coordinator=OneBatch(),
        client=Numbered(),  # type: ignore[arg-type]
        **{**no_model, "computation": computation},
    )

    with pytest.raises(RuntimeError, match="unspecified launch failure"):
        loop.run()
