import contextlib
import socket
import threading
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from embedding.spec.admission import CounterAdmission
from embedding.spec.optimizers import AdamAsync
from embedding.spec.table import TableSpec
from ps.client.client import Open, PsClient, PulledBatch, ShardLostError
from ps.messages.pull_push import ANY_STEP, PullReply, PushReply
from ps.messages.records import Apply, ApplyReply
from ps.net import sockets
from ps.net.cancellation import Cancellation, CancelledError

Serve = Callable[..., Any]

TABLES = (
    TableSpec(name="a", dim=4),
    TableSpec(name="b", dim=1, optimizer=AdamAsync(), admission=CounterAdmission(min_count=3)),
)


def answer(client: PsClient, *requests: Open, seconds: float = 60.0) -> None:
    """Poll until the requests are answered; nothing else is answered meanwhile."""
    wanted = list(requests)
    deadline = time.monotonic() + seconds
    while wanted:
        assert time.monotonic() < deadline, "the requests were not answered"
        for request in client.poll(0.5):
            wanted.remove(request)


def pull(client: PsClient, unique: Any, at_step: int = ANY_STEP, **options: Any) -> PulledBatch:
    pulled = client.start_pull(unique, at_step=at_step, **options)
    answer(client, pulled)
    assert not pulled.refusals
    return pulled


def apply(client: PsClient, job: Any, step: int, *batch_ids: int) -> None:
    record = job.record(step, *batch_ids)
    applies = [client.start_apply(s, [record]) for s in range(len(job.shards))]
    answer(client, *applies)
    for request in applies:
        (reply,) = request.replies.values()
        assert isinstance(reply, ApplyReply), reply
        assert reply.step == step + 1


BATCHES = [
    ([1, 2, 2, 5, 9, 9], [7, 7, 7, 8]),
    ([2, 3, -1], [8, 8, 2**62]),
    ([], []),
    ([5], [7, 8, 9]),
]


def train(client: PsClient, job: Any) -> None:
    for step, keys in enumerate(BATCHES):
        pulled = pull(client, job.unique(*keys), at_step=step)
        pushed = job.start_push(client, pulled, step)
        answer(client, pushed)
        assert all(isinstance(reply, PushReply) for reply in pushed.replies.values())
        apply(client, job, step, step)


@pytest.fixture(scope="module")
def expected(small_job: Any) -> str:
    """The digest after BATCHES without any socket."""
    job = small_job(TABLES, dense_size=2500)
    for step, keys in enumerate(BATCHES):
        job.train(step, *keys)
    return job.digest


@pytest.mark.parametrize("num_shards", [1, 2, 3])
@pytest.mark.parametrize("network", [False, True])
@pytest.mark.parametrize("compress", [False, True])
def test_steps_over_sockets_are_the_steps_without(
    small_job: Any, serve: Serve, expected: str, num_shards: int, network: bool, compress: bool
) -> None:
    job = small_job(TABLES, num_shards=num_shards, dense_size=2500)
    served = serve(job, network=network, compress=compress)

    train(served.client(), job)

    assert job.digest == expected
    assert not served.errors


def test_a_pull_gathers_rows_bits_and_parameters_of_all_shards(
    small_job: Any, serve: Serve
) -> None:
    one, three = small_job(TABLES, dense_size=2500), small_job(
        TABLES, num_shards=3, dense_size=2500
    )  # fmt: skip
    for job in (one, three):
        job.train(0, range(50), [3, 3, 3, 4, 4, 5])
    client = serve(three).client()
    keys = [*range(40, 60)], [3, 4, 5, 5, 6, 6, 6, 7]

    found = pull(client, three.unique(*keys))
    evaluated = pull(client, three.unique(*keys), evaluate=True, dense=False)

    expected = one.send(0, one.pull(0, one.unique(*keys)))
    assert np.array_equal(found.dense, expected.dense)
    assert found.steps.tolist() == [1, 1, 1]
    assert found.values.size == 20 * 4 + 5
    bits = dict(zip(one.unique(*keys).keys.tolist(), expected.admitted.tolist(), strict=True))
    assert dict(zip(found.unique.keys.tolist(), found.admitted.tolist(), strict=True)) == bits
    assert evaluated.dense.size == 0
    assert evaluated.admitted.sum() == 20 + 1, "of the second table only key 3 has a row"


def test_two_clients_work_at_once(small_job: Any, serve: Serve) -> None:
    job, alone = small_job(TABLES, num_shards=2), small_job(TABLES)
    served = serve(job)
    batches = [(range(i, i + 300), [1, i]) for i in range(40)]
    uniques = [job.unique(*keys) for keys in batches]
    failures = []

    def work(worker: int) -> None:
        try:
            client = served.client()
            for batch_id in range(worker, 40, 2):
                pulled = pull(client, uniques[batch_id])
                answer(client, job.start_push(client, pulled, batch_id))
        except Exception as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(worker,)) for worker in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    apply(served.client(), job, 0, *range(40))

    for batch_id, keys in enumerate(batches):
        alone.push(batch_id, *keys)
    alone.step(*range(40))
    assert not failures
    assert job.digest == alone.digest


def test_a_parked_pull_is_answered_by_the_apply_of_another_client(
    small_job: Any, serve: Serve
) -> None:
    job = small_job(TABLES, num_shards=2)
    served = serve(job)
    worker, coordinator = served.client(), served.client()
    keys = [1, 2, 3], [4]

    parked = worker.start_pull(job.unique(*keys), at_step=1)
    assert worker.poll(0.1) == []
    answer(worker, job.start_push(worker, pull(worker, job.unique(*keys), at_step=0), 0))
    apply(coordinator, job, 0, 0)
    answer(worker, parked)

    assert parked.steps.tolist() == [1, 1]
    assert np.array_equal(parked.values, pull(worker, job.unique(*keys)).values)


def test_refusals_are_answers(small_job: Any, serve: Serve) -> None:
    job = small_job(TABLES, num_shards=2)
    client = serve(job).client(recovery_epoch=99)

    pulled = client.start_pull(job.unique([1], [2]), at_step=ANY_STEP)
    answer(client, pulled)

    assert {s: r.reason for s, r in pulled.refusals.items()} == {0: "epoch", 1: "epoch"}
    assert "shard 1 refused a pull" in pulled.refusals[1].text


def test_replies_to_a_forgotten_request_are_dropped(small_job: Any, serve: Serve) -> None:
    job = small_job(TABLES)
    client = serve(job).client()

    forgotten = client.start_pull(job.unique([1, 2], [3]), at_step=ANY_STEP)
    client.forget(forgotten)
    other = pull(client, job.unique([1, 2], [3]))

    assert not forgotten.done
    assert other.done


def test_poll_returns_early_for_a_watched_socket(small_job: Any, serve: Serve) -> None:
    client = serve(small_job(TABLES)).client()
    reader, writer = socket.socketpair()
    with reader, writer:
        client.watch(reader)
        writer.send(b"x")
        started = time.monotonic()

        assert client.poll(30) == []

        assert time.monotonic() - started < 20


# Broken connections -------------------------------------------------------------------------------


def test_requests_on_broken_connections_are_sent_again_and_counted_once(
    small_job: Any, serve: Serve, expected: str
) -> None:
    job = small_job(TABLES, num_shards=2, dense_size=2500)
    served = serve(job)
    client = served.client(retry_seconds=20.0)
    stop = threading.Event()

    def disturb() -> None:
        rng = np.random.default_rng(5)
        while not stop.wait(rng.exponential(0.01)):
            served.break_connections(int(rng.integers(2)))

    thread = threading.Thread(target=disturb)
    thread.start()
    try:
        train(client, job)
        for _ in range(30):
            pull(client, job.unique(*BATCHES[0]))
    finally:
        stop.set()
        thread.join()

    assert job.digest == expected
    assert not served.errors


def test_a_push_whose_reply_was_lost_is_counted_once(small_job: Any, serve: Serve) -> None:
    job = small_job(TABLES)
    served = serve(job)
    client = served.client()
    pulled = pull(client, job.unique([1], [2]))

    pushed = job.start_push(client, pulled, 0)
    while not len(job.shards[0].buffer):
        time.sleep(0.01)
    served.break_connections(0)
    answer(client, pushed)
    apply(client, job, 0, 0)

    assert isinstance(pushed.replies[0], PushReply)
    assert job.shards[0].tables[0].frequency(np.array([1])).tolist() == [1]


def test_what_a_shard_has_answered_is_not_sent_to_it_again(small_job: Any, serve: Serve) -> None:
    job = small_job(TABLES, num_shards=2)
    served = serve(job)
    client = served.client()
    job.apply(0, job.record(0))
    unique = job.unique(range(100), [])

    pulled = client.start_pull(unique, at_step=1)  # the second shard has to wait
    while 0 in pulled.waiting or not job.shards[1].num_parked:
        client.poll(0.1)
    before = client.bytes_sent
    served.break_connections(0)
    assert client.poll(0.5) == []

    assert client.bytes_sent == before
    job.shards[1].handle(Apply(1, job.epoch, (job.record(0),)), "coordinator")
    assert pull(client, unique, at_step=1).steps.tolist() == [1, 1]


def test_a_parked_pull_survives_a_broken_connection(small_job: Any, serve: Serve) -> None:
    job = small_job(TABLES)
    served = serve(job)
    client = served.client()

    parked = client.start_pull(job.unique([1], [2]), at_step=1)
    while not job.shards[0].num_parked:
        time.sleep(0.01)
    served.restart(0)
    assert client.poll(0.5) == []
    apply(served.client(), job, 0)
    answer(client, parked)

    assert parked.steps.tolist() == [1]


def test_a_shard_that_comes_back_in_time_is_found_again(small_job: Any, serve: Serve) -> None:
    job = small_job(TABLES, num_shards=2)
    served = serve(job)
    client = served.client(retry_seconds=20.0)
    served.planes[1].close()
    threading.Timer(0.5, served.restart, [1]).start()

    assert pull(client, job.unique(range(100), [])).steps.tolist() == [0, 0]


def test_a_shard_that_never_comes_back_is_named(small_job: Any, serve: Serve) -> None:
    job = small_job(TABLES, num_shards=3)
    served = serve(job)
    client = served.client(retry_seconds=0.5)
    started = time.monotonic()
    served.planes[2].close()

    with pytest.raises(ShardLostError) as caught:
        pull(client, job.unique(range(100), []))

    assert caught.value.shard == 2
    assert str(caught.value).startswith("shard 2 could not be reached: ")
    assert 0.5 < time.monotonic() - started < 20


def test_a_client_that_looks_for_a_lost_shard_can_be_cancelled(
    small_job: Any, serve: Serve
) -> None:
    job = small_job(TABLES, num_shards=2)
    served = serve(job)
    cancellation = Cancellation()
    client = served.client(retry_seconds=60.0, cancellation=cancellation)
    served.planes[1].close()
    threading.Timer(0.3, cancellation.set).start()
    began = time.monotonic()

    with pytest.raises(CancelledError):
        pull(client, job.unique(range(100), []))

    assert time.monotonic() - began < 30, "it looks for 60 s"
    with pytest.raises(CancelledError):  # shard 0 would answer
        client.start_pull(job.unique([1], []), at_step=0)


def test_a_client_that_finds_no_shard_leaves_no_socket(small_job: Any, serve: Serve) -> None:
    served = serve(small_job(TABLES, num_shards=2))
    served.planes[1].close()

    with pytest.raises(ShardLostError, match="shard 1"):
        served.client(retry_seconds=0.0)


def test_a_shard_that_drops_every_request_counts_as_lost(small_job: Any, serve: Serve) -> None:
    """It accepts connections, so only the missing answers tell."""
    job = small_job(TABLES)
    served = serve(job)
    client = served.client(retry_seconds=0.7)
    connections = []
    connect = served.connect
    client._connect = lambda shard: connections.append(shard) or connect(shard)

    def fail(*_: object) -> None:
        raise RuntimeError("a bug")

    job.shards[0].answer = fail
    with pytest.raises(ShardLostError, match="shard 0"):
        pull(client, job.unique([1], [2]))

    assert len(connections) < 10, "with pauses between"
    assert {str(error) for error in served.errors} == {"a bug"}


def test_a_shard_of_another_job_counts_as_lost(small_job: Any, serve: Serve) -> None:
    """Its replies have other sizes."""
    served = serve(small_job([TableSpec(name="a", dim=8), TABLES[1]]))
    job = small_job(TABLES)
    client = PsClient(job.spec, served.connect, recovery_epoch=job.epoch, retry_seconds=0.5)

    with contextlib.closing(client), pytest.raises(ShardLostError, match="other sizes"):
        pull(client, job.unique([1], [2]))


# Slow peers ---------------------------------------------------------------------------------------

WIDE = (TableSpec(name="a", dim=64),)
LARGE = range(20_000)  # 5 MB of rows


@pytest.mark.usefixtures("small_buffers")
@pytest.mark.parametrize("network", [False, True])
def test_a_large_push_and_a_large_reply_pass_each_other(
    small_job: Any, serve: Serve, network: bool
) -> None:
    """The shard can't read the push before its reply is read, so the client must read it."""
    job = small_job(WIDE)
    client = serve(job, network=network).client()
    unique = job.unique(LARGE)
    first = pull(client, unique)

    second = client.start_pull(unique, at_step=ANY_STEP)
    pushed = job.start_push(client, first, 0)
    third = client.start_pull(unique, at_step=ANY_STEP)
    also = job.start_push(client, first, 1)
    answer(client, second, pushed, third, also)

    assert np.array_equal(second.values, first.values)
    assert isinstance(pushed.replies[0], PushReply)


@pytest.mark.usefixtures("small_buffers")
def test_large_requests_pass_each_other_on_a_new_connection_too(
    small_job: Any, serve: Serve
) -> None:
    job = small_job(WIDE)
    served = serve(job)
    client = served.client()
    unique = job.unique(LARGE)
    first = pull(client, unique)

    with served.locks[0].exclusive():
        second = client.start_pull(unique, at_step=ANY_STEP)
        served.break_connections(0)
    pushed = job.start_push(client, first, 0)
    served.break_connections(0)
    answer(client, second, pushed)

    assert len(job.shards[0].buffer) == 1


@pytest.mark.usefixtures("small_buffers")
def test_a_client_that_does_not_read_delays_nobody(small_job: Any, serve: Serve) -> None:
    """Its parked pull is answered by a step that others wait for."""
    job = small_job(WIDE)
    served = serve(job)
    stuck, coordinator, worker = served.client(), served.client(), served.client()
    unique = job.unique(LARGE)

    parked = stuck.start_pull(unique, at_step=1)
    other = worker.start_pull(unique, at_step=1)
    while job.shards[0].num_parked < 2:
        time.sleep(0.01)
    apply(coordinator, job, 0)
    answer(worker, other)
    apply(coordinator, job, 1)

    answer(stuck, parked)
    assert parked.steps.tolist() == [1]


@pytest.mark.usefixtures("small_buffers")
def test_a_busy_shard_is_not_lost(
    small_job: Any, serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While it applies a large step, say: longer than any time limit of a handshake."""
    job = small_job(WIDE)
    served = serve(job)
    monkeypatch.setattr(sockets, "HANDSHAKE_TIMEOUT_SECONDS", 0.1)
    client = served.client(retry_seconds=0.1)
    unique = job.unique(LARGE)
    first = pull(client, unique)
    held = threading.Event()

    def hold() -> None:
        with served.locks[0].exclusive():
            held.set()
            time.sleep(0.6)

    threading.Thread(target=hold).start()
    held.wait(60)

    pushes = [job.start_push(client, first, batch_id) for batch_id in range(3)]
    answer(client, *pushes)

    assert len(job.shards[0].buffer) == 3
    assert isinstance(pull(client, unique).replies[0], PullReply)
