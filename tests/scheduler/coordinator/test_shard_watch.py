"""Shards that answer nothing are told of, once, and others are not."""

import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from embedding.spec.optimizers import Sgd
from ps.messages.exchange import Request
from ps.messages.records import Apply, ApplyReply
from ps.net.listener import Listener, Peer
from ps.net.sockets import receive, send
from ps.spec import StoreSpec
from scheduler.coordinator.ledger_plan import LedgerPlan
from scheduler.coordinator.server import CoordinatorServer
from scheduler.coordinator.shard_watch import ShardWatch
from scheduler.coordinator.spec import CoordinatorSpec


def test_a_shard_is_asked_every_second_and_silent_once_it_has_not_answered() -> None:
    watch = ShardWatch(range(2), limit=10.0)
    watch.heard(0, 5.0)
    watch.heard(1, 5.5)
    assert watch.due(6.2) == [0]
    watch.asks(0, 6.2)
    watch.asks(0, 9.0)
    assert watch.due(7.0) == [1]
    watch.read(16.0)
    assert watch.newly_silent(99.0, held_up_by=None) == []
    watch.read(16.7)
    assert watch.newly_silent(99.0, held_up_by=None) == [(0, 10.5)]
    assert watch.newly_silent(99.0, held_up_by=None) == [], "it was told"


def test_only_who_holds_up_the_thread_is_silent_while_nothing_is_read() -> None:
    watch = ShardWatch(range(2), limit=10.0)
    watch.asks(0, 1.0)
    watch.asks(1, 1.0)
    watch.read(2.0)
    assert watch.newly_silent(50.0, held_up_by=1) == [(1, 49.0)]
    watch.heard(0, 50.0)
    watch.read(50.0)
    assert watch.newly_silent(51.0, held_up_by=None) == []


@contextmanager
def coordinator_of(*answering: bool) -> Iterator[tuple[CoordinatorServer, list[Request]]]:
    """A coordinator whose shards answer records, or nothing at all."""
    asked: list[Request] = []

    def answer(peer: Peer) -> None:
        with suppress(ConnectionError):
            while True:
                message, _ = receive(peer.sock)
                assert isinstance(message, Apply)
                asked.append(message)
                send(peer.sock, ApplyReply(message.request_id, 0))

    def hear(peer: Peer) -> None:
        while peer.sock.recv(1 << 20):
            pass

    shards = [
        Listener(f"shard {i}", secret=b"x", serve=answer if does else hear)
        for i, does in enumerate(answering)
    ]
    spec = CoordinatorSpec(
        store=StoreSpec(
            tables=(), dense_size=9, dense_optimizer=Sgd(learning_rate=1.0), num_shards=len(shards)
        ),
        plan=LedgerPlan(batches_per_epoch=8, epochs=1, rows_of=lambda batch: 8),
        evaluation_plan=None,
        mode="sync",
        group_size=1,
        global_batch=8,
        workers=1,
        depth=1,
        server_timeout_seconds=1.0,
    )
    addresses = tuple(shard.address("here") for shard in shards)
    server = CoordinatorServer(spec, addresses, secret=b"x", node_id="here", retry_seconds=0.3)
    try:
        yield server, asked
    finally:
        server.close()
        for shard in shards:
            shard.close()


def test_a_shard_that_answers_nothing_is_told_of_and_the_job_has_not_failed() -> None:
    with coordinator_of(True, False) as (server, asked):
        deadline = time.monotonic() + 60
        while not (silent := server.status().silent_shards):
            assert time.monotonic() < deadline
            time.sleep(0.05)
        status = server.status()
        told = status.told

        assert [shard for shard, _ in silent] == [1]
        assert "shard 1 has answered nothing for" in silent[0][1]
        assert status.failure is None
        assert server.status(told).silent_shards == ()
        assert all(isinstance(each, Apply) and each.records == () for each in asked)
        assert len(asked) >= 1
