"""Clients and shards whose messages come late, come twice, or are lost."""

import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from embedding.spec.admission import CounterAdmission
from embedding.spec.optimizers import AdamAsync
from embedding.spec.table import TableSpec
from ps.client import faults as connection_faults
from ps.client.client import Open, PsClient, PulledBatch, ShardLostError
from ps.client.faults import ConnectionFault, ConnectionFaults, Fate, Fates, with_faults
from ps.messages.pull_push import ANY_STEP, PushReply
from ps.messages.records import Apply, ApplyReply
from ps.net.sockets import send

Serve = Callable[..., Any]

TABLES = (
    TableSpec(name="a", dim=4),
    TableSpec(name="b", dim=1, optimizer=AdamAsync(), admission=CounterAdmission(min_count=3)),
)
DELAY = ConnectionFault(kind="delay", probability=0.3, seconds=0.01)
DROP = ConnectionFault(kind="drop", probability=0.1)
DUPLICATE = ConnectionFault(kind="duplicate", probability=0.3)


def fates(*faults: ConnectionFault, seed: int = 1, stream: tuple[int, ...] = (0,)) -> list[Fate]:
    drawn = Fates(ConnectionFaults(faults=faults, seed=seed, started=100.0), stream)
    return [drawn.next(100.0 + number) for number in range(1000)]


def client_of(served: Any, *faults: ConnectionFault, seed: int = 1, **options: Any) -> PsClient:
    """A client of the served shards whose connections have faults; `served` closes it."""
    plan = ConnectionFaults(faults=faults, seed=seed)
    served.connect = with_faults(type(served).connect.__get__(served), plan, process=(0, 0, 0))
    client: PsClient = served.client(**options)
    return client


def answer(client: PsClient, *requests: Open, seconds: float = 60.0) -> None:
    wanted = set(requests)
    deadline = time.monotonic() + seconds
    while wanted:
        assert time.monotonic() < deadline, "the requests were not answered"
        wanted -= set(client.poll(0.5))


def pull(client: PsClient, unique: Any, at_step: int = ANY_STEP) -> PulledBatch:
    pulled = client.start_pull(unique, at_step=at_step)
    answer(client, pulled)
    assert not pulled.refusals
    return pulled


def train(client: PsClient, job: Any, steps: int = 12) -> None:
    """Steps of two batches, of which much is under way at a time."""
    rng = np.random.default_rng(7)
    for step in range(steps):
        uniques = [job.unique(rng.zipf(1.3, 200) % 300, rng.zipf(1.3, 50) % 99) for _ in range(2)]
        pulls = [client.start_pull(unique, at_step=step) for unique in uniques]
        answer(client, *pulls)
        pushes = [job.start_push(client, pulled, 2 * step + i) for i, pulled in enumerate(pulls)]
        answer(client, *pushes)
        assert all(isinstance(r, PushReply) for each in pushes for r in each.replies.values())
        record = job.record(step, 2 * step, 2 * step + 1)
        applies = [client.start_apply(shard, [record]) for shard in range(len(job.shards))]
        answer(client, *applies)
        assert all(isinstance(r, ApplyReply) for each in applies for r in each.replies.values())


# Draws --------------------------------------------------------------------------------------------


def test_fates_are_drawn_by_the_seed_and_the_stream_of_messages() -> None:
    plan = (DELAY, DROP, DUPLICATE)

    assert fates(*plan) == fates(*plan)
    assert fates(*plan) != fates(*plan, seed=2)
    assert fates(*plan) != fates(*plan, stream=(1,))


def test_each_fault_befalls_its_share_of_the_messages() -> None:
    drawn = fates(DELAY, DROP, DUPLICATE)

    assert {fate.delay for fate in drawn} == {0.0, 0.01}
    assert 250 < sum(fate.delay > 0 for fate in drawn) < 350
    assert 250 < sum(fate.copies == 2 for fate in drawn) < 350
    cuts = [fate.cut_after for fate in drawn if fate.cut_after is not None]
    assert 70 < len(cuts) < 130
    assert {cut: cuts.count(cut) > 15 for cut in cuts} == {0.0: True, 0.5: True, 1.0: True}


def test_a_fault_happens_in_its_time_only_and_changes_no_draw_of_another() -> None:
    at_times = ConnectionFault(kind="drop", probability=0.5, from_seconds=10, to_seconds=20)
    always = ConnectionFault(kind="drop", probability=0.5)

    timed = fates(at_times, DUPLICATE)

    assert all(fate.cut_after is None for fate in timed[:10] + timed[20:])
    assert timed[10:20] == fates(always, DUPLICATE)[10:20]
    assert [fate.copies for fate in timed] == [fate.copies for fate in fates(always, DUPLICATE)]


def test_without_faults_the_connections_are_those_without_a_relay() -> None:
    def connect(shard: int) -> Any:
        raise AssertionError("not called")

    assert with_faults(connect, ConnectionFaults(), process=(0,)) is connect


# Whole clients ------------------------------------------------------------------------------------


@pytest.mark.parametrize("network", [False, True])
@pytest.mark.parametrize(
    "faults",
    [(DELAY,), (DROP,), (DUPLICATE,), (DELAY, DROP, DUPLICATE)],
    ids=["delay", "drop", "duplicate", "all"],
)
def test_steps_over_bad_connections_are_the_steps_over_good_ones(
    small_job: Any, serve: Serve, faults: tuple[ConnectionFault, ...], network: bool
) -> None:
    good, bad = (small_job(TABLES, num_shards=2, dense_size=2500) for _ in range(2))
    served = serve(bad, network=network)

    train(serve(good).client(), good)
    train(client_of(served, *faults, retry_seconds=20.0), bad)

    assert bad.digest == good.digest
    assert not served.errors


@pytest.mark.parametrize("direction", [0, 1], ids=["request", "reply"])
@pytest.mark.parametrize("cut_after", [0.0, 0.5, 1.0])
def test_a_push_that_is_lost_with_its_connection_is_counted_once(
    small_job: Any, serve: Serve, monkeypatch: pytest.MonkeyPatch, direction: int, cut_after: float
) -> None:
    """The second message of the first connection is lost: a push, or the reply to it."""
    lost: list[tuple[int, ...]] = []

    class LosesOne(Fates):
        def __init__(self, plan: ConnectionFaults, stream: tuple[int, ...]) -> None:
            self.stream, self.messages = tuple(stream), 0

        def next(self, now: float) -> Fate:
            self.messages += 1
            if self.stream[-2:] == (0, direction) and self.messages == 2:
                lost.append(self.stream)
                return Fate(cut_after=cut_after)
            return Fate()

    monkeypatch.setattr(connection_faults, "Fates", LosesOne)
    job = small_job(TABLES)
    client = client_of(serve(job), DROP)
    pulled = pull(client, job.unique([1], [2]))

    pushed = job.start_push(client, pulled, 0)
    answer(client, pushed)
    answer(client, client.start_apply(0, [job.record(0, 0)]))

    assert len(lost) == 1
    assert isinstance(pushed.replies[0], PushReply)
    assert job.shards[0].tables[0].frequency(np.array([1])).tolist() == [1]


def test_whatever_comes_twice_is_taken_once(small_job: Any, serve: Serve) -> None:
    """Requests and replies are doubled, so each request has four replies."""
    good, bad = small_job(TABLES), small_job(TABLES)
    handled: list[tuple[str, int]] = []
    shard = bad.shards[0]
    answer_pull, handle = shard.answer, shard.handle

    def count(message: Any, *sender: Any) -> Any:
        handled.append((type(message).__name__, message.request_id))
        return handle(message, *sender) if sender else answer_pull(message)

    shard.answer = shard.handle = count
    client = client_of(serve(bad), ConnectionFault(kind="duplicate", probability=1.0))

    train(serve(good).client(), good, steps=3)
    train(client, bad, steps=3)
    pull(client, bad.unique([1], [2]))

    # The second copy of the last request may still be under way.
    requests = set(handled)
    assert len(requests) == 3 * 5 + 1
    assert len(handled) >= 2 * len(requests) - 1
    assert bad.digest == good.digest


def test_a_reply_that_comes_again_changes_nothing_of_what_the_first_one_brought(
    small_job: Any, serve: Serve
) -> None:
    """The other shard has not answered yet, and between the two replies a step was applied."""
    job = small_job(TABLES, num_shards=2)
    served = serve(job)
    client = served.client()
    unique = job.unique(range(100), [])
    job.push(0, range(100), [])

    with served.locks[1].exclusive():
        pulled = client.start_pull(unique, at_step=ANY_STEP)
        while 0 in pulled.waiting:
            client.poll(1)
        values = pulled.values[: unique.value_starts[1]].copy()
        job.shards[0].handle(Apply(1, job.epoch, (job.record(0, 0),)), "coordinator")
        received = client.bytes_received
        send(client._connections[0].sock, pulled.messages[0])
        while client.bytes_received == received:
            client.poll(1)
    answer(client, pulled)

    assert pulled.steps.tolist() == [0, 0]
    assert np.array_equal(pulled.values[: unique.value_starts[1]], values)
    assert not np.array_equal(pull(client, unique).values[: unique.value_starts[1]], values)


def test_a_message_that_is_held_back_holds_up_its_own_connection_only(
    small_job: Any, serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    class HoldsBackTheFirstShard(Fates):
        def __init__(self, plan: ConnectionFaults, stream: tuple[int, ...]) -> None:
            self.stream = stream

        def next(self, now: float) -> Fate:
            return Fate(delay=600.0 if self.stream[-3] == 0 else 0.0)

    monkeypatch.setattr(connection_faults, "Fates", HoldsBackTheFirstShard)
    job = small_job(TABLES, num_shards=2)
    client = client_of(serve(job), DELAY)

    pulled = client.start_pull(job.unique(range(100), []), at_step=ANY_STEP)
    while 1 in pulled.waiting:
        client.poll(1)

    assert pulled.waiting == {0}
    # The fixture finds relays that go on waiting once their client is closed.


def test_a_shard_that_is_gone_is_missed_behind_a_relay_too(small_job: Any, serve: Serve) -> None:
    job = small_job(TABLES)
    served = serve(job)
    client = client_of(served, DUPLICATE, retry_seconds=0.3)
    served.planes[0].close()

    with pytest.raises(ShardLostError, match="shard 0"):
        pull(client, job.unique([1], [2]))


def test_a_large_push_and_a_large_reply_pass_each_other_in_a_relay(
    small_job: Any, serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ps.net.sockets._SOCKET_BUFFER_BYTES", 64 << 10)
    job = small_job((TableSpec(name="a", dim=64),))
    client = client_of(serve(job), DUPLICATE)
    unique = job.unique(range(20_000))
    first = pull(client, unique)

    second = client.start_pull(unique, at_step=ANY_STEP)
    pushes = [job.start_push(client, first, batch_id) for batch_id in range(3)]
    answer(client, second, *pushes)

    assert np.array_equal(second.values, first.values)
    assert len(job.shards[0].buffer) == 3
