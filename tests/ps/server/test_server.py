"""A shard with its sockets, as the Ray actor holds it."""

import gc
import socket
import threading
import time
import weakref
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from ps.checkpoint.digest import shards_digest
from ps.checkpoint.manifest import CheckpointError, Manifest, write_manifest
from ps.client.client import Identity, PsClient
from ps.messages.exchange import Refusal
from ps.messages.pull_push import ANY_STEP
from ps.messages.records import Apply
from ps.net.sockets import connect, receive, send
from ps.server.server import ServerSetup, ShardServer
from ps.spec import StoreSpec
from runtime.fingerprint import FloatModeError

SECRET = b"only for this job"


def start(store: StoreSpec, **changes: Any) -> list[ShardServer]:
    return [
        ShardServer(
            ServerSetup(
                store=store,
                index=index,
                secret=SECRET,
                max_contributions=10,
                max_buffer_bytes=1 << 20,
                **changes,
            ),
            node_id="here",
        )
        for index in range(store.num_shards)
    ]


@pytest.fixture
def servers(saved_job: Any, small_job: Any) -> Iterator[list[ShardServer]]:
    started = start(small_job(saved_job.tables, num_shards=2, dense_size=2500).spec)
    yield started
    for server in started:
        server.close()


def client_of(servers: list[ShardServer], store: StoreSpec) -> PsClient:
    addresses = [server.address() for server in servers]
    return PsClient(
        store,
        lambda shard: connect(addresses[shard], node_id="here", secret=SECRET),
        recovery_epoch=5,
    )


def digest_of(servers: list[ShardServer], store: StoreSpec, directory: Path) -> str:
    cuts = [server.write_checkpoint(str(directory), 0) for server in servers]
    return shards_digest(store.routing, [c.tables for c in cuts], [c.blocks for c in cuts])


def test_a_server_is_fenced_until_it_is_initialised(
    servers: list[ShardServer], small_job: Any, saved_job: Any
) -> None:
    job = small_job(saved_job.tables, num_shards=2, dense_size=2500)
    client = client_of(servers, job.spec)
    unique = job.unique([1], [2], [3], [4])

    for fenced in (True, False):
        pulled = client.start_pull(unique, at_step=ANY_STEP)
        while not pulled.done:
            client.poll(1)
        assert [isinstance(reply, Refusal) for reply in pulled.replies.values()] == [fenced] * 2
        for index, server in enumerate(servers):
            first, last = job.spec.routing.dense_range(index)
            server.initialize(5, np.zeros(last - first, np.float32))
    client.close()


def test_of_two_servers_of_one_index_only_that_of_the_epoch_answers_and_takes(
    small_job: Any, saved_job: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both live, as where only the raylet of the older one is frozen, and Ray says nothing."""
    now = 0.0
    fake = SimpleNamespace(monotonic=lambda: now, perf_counter_ns=time.perf_counter_ns)
    monkeypatch.setattr("ps.server.data_plane.time", fake)
    job = small_job(saved_job.tables, num_shards=1, dense_size=2500)
    older, newer = (server for _ in range(2) for server in start(job.spec, lease_seconds=5.0))
    unique = job.unique([1], [2], [3], [4])

    def said(sock: socket.socket, message: Any) -> str:
        send(sock, message)
        reply = receive(sock)[0]
        return reply.reason if isinstance(reply, Refusal) else "done"

    def asked(server: ShardServer, epoch: int) -> list[str]:
        """Ask as a worker of an epoch does: a pull and a push."""
        with connect(server.address(), node_id="here", secret=SECRET) as sock:
            pull = job.pull(0, unique, recovery_epoch=epoch)
            push = job.contribution(0, unique, recovery_epoch=epoch, batch_id=round(now))
            return [said(sock, pull), said(sock, push)]

    def beat(server: ShardServer, epoch: int) -> str:
        with connect(server.address(), node_id="here", secret=SECRET) as sock:
            return said(sock, Apply(3, epoch, ()))

    older.initialize(5, np.zeros(2500, np.float32))
    assert asked(older, 5) == ["unheard"] * 2
    assert beat(older, 5) == "done"
    now = 4.0  # a coordinator of the next epoch has the newer one only
    newer.initialize(6, np.zeros(2500, np.float32))
    for now in (4.0, 8.0, 12.0, 16.0):
        assert beat(newer, 6) == "done"
        assert asked(newer, 6) == ["done"] * 2
        assert asked(newer, 5) == asked(older, 6) == ["epoch"] * 2
        assert asked(older, 5) == ["done" if now < 5.0 else "unheard"] * 2
        assert beat(older, 6) == "epoch", "that is no word of its own coordinator"
    for server in (older, newer):
        server.close()


def test_a_model_goes_from_servers_to_a_checkpoint_and_back(
    servers: list[ShardServer], saved_job: Any, tmp_path: Path
) -> None:
    before = saved_job(3)
    first = before.write_checkpoint(tmp_path / "first")
    for server in servers:
        server.start_from(5, str(first))
    store = saved_job.restore(first, 2).spec
    assert digest_of(servers, store, tmp_path / "1") == saved_job.restore(first, 1).digest

    cuts = [server.write_checkpoint(str(tmp_path / "2"), 0) for server in servers]
    files = [entry for cut in cuts for entry in cut.files]
    write_manifest(tmp_path / "2", Manifest("full", 0, 5, store.to_json(), {}, {}, tuple(files)))

    assert saved_job.restore(tmp_path / "2", 1).digest == digest_of(servers, store, tmp_path / "3")


def test_a_server_that_goes_back_gives_up_what_it_holds_before_it_reads(
    servers: list[ShardServer], saved_job: Any, tmp_path: Path
) -> None:
    first = saved_job(3).write_checkpoint(tmp_path / "first")
    store = saved_job.restore(first, 2).spec
    for server in servers:
        server.start_from(5, str(first))
    there = digest_of(servers, store, tmp_path / "1")
    tables = [weakref.ref(table) for table in servers[0]._shard.tables]

    with pytest.raises(CheckpointError):
        servers[0].start_from(6, str(tmp_path / "none"))
    gc.collect()

    assert servers[0]._shard.fenced
    assert [table() for table in tables] == [None] * len(tables), "two models need twice the memory"
    for server in servers:
        server.start_from(7, str(first))
    assert digest_of(servers, store, tmp_path / "2") == there


def test_a_checkpoint_of_another_step_is_refused_and_nothing_is_written(
    servers: list[ShardServer], saved_job: Any, tmp_path: Path
) -> None:
    first = saved_job(3).write_checkpoint(tmp_path / "first")
    servers[0].start_from(5, str(first))

    with pytest.raises(CheckpointError, match="shard 0 is at step 0, the checkpoint is of step 1"):
        servers[0].write_checkpoint(str(tmp_path / "2"), 1)

    assert not (tmp_path / "2").exists()


def test_pulls_and_pushes_are_answered_while_a_checkpoint_is_written(
    servers: list[ShardServer],
    small_job: Any,
    saved_job: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    job = small_job(saved_job.tables, num_shards=2, dense_size=2500)
    for index, server in enumerate(servers):
        first, last = job.spec.routing.dense_range(index)
        server.initialize(5, np.zeros(last - first, np.float32))
    client = client_of(servers, job.spec)
    begun, go_on = threading.Event(), threading.Event()

    def write(*_: Any, **__: Any) -> list[Any]:
        begun.set()
        assert go_on.wait(60)
        return []

    monkeypatch.setattr("ps.server.server.write_shard", write)
    writers = [
        threading.Thread(target=server.write_checkpoint, args=(str(tmp_path), 0))
        for server in servers
    ]
    for writer in writers:
        writer.start()
    assert begun.wait(60)
    pulled = client.start_pull(job.unique([1], [2], [], []), at_step=ANY_STEP)
    while not pulled.done:
        client.poll(5)
    push = client.start_push(
        pulled, Identity(0, 0, 0, 4), gradients=pulled.values, dense=pulled.dense
    )
    while not push.done:
        client.poll(5)
    go_on.set()
    for writer in writers:
        writer.join(10)
    client.close()

    assert not pulled.refusals
    assert not push.refusals


def test_a_server_that_can_not_restore_stays_fenced(
    servers: list[ShardServer], tmp_path: Path
) -> None:
    with pytest.raises(CheckpointError, match="no checkpoint"):
        servers[0].start_from(5, str(tmp_path))

    assert servers[0]._shard.fenced


def test_a_server_tells_what_it_holds(
    servers: list[ShardServer], small_job: Any, saved_job: Any
) -> None:
    job = small_job(saved_job.tables, num_shards=2, dense_size=2500)
    for index, server in enumerate(servers):
        server.initialize(5, np.zeros(np.diff(job.spec.routing.dense_range(index))[0], np.float32))
    client = client_of(servers, job.spec)
    pulled = client.start_pull(job.unique([1, 1, 2], [3], [], []), at_step=ANY_STEP)
    while not pulled.done:
        client.poll(1)
    push = client.start_push(
        pulled, Identity(0, 0, 0, 4), gradients=pulled.values, dense=pulled.dense
    )
    while not push.done:
        client.poll(1)
    record = job.record(0, 0, recovery_epoch=5)
    applies = [client.start_apply(shard, [record]) for shard in range(2)]
    while not all(apply.done for apply in applies):
        client.poll(1)
    client.close()

    # A server's thread counts what it has sent just after the client has received it.
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        stats = [server.stats() for server in servers]
        if sum(each.process.bytes_sent for each in stats) == client.bytes_received:
            break

    def total(table: str, name: str) -> int:
        return sum(getattr(each.tables[table], name) for each in stats)

    assert [each.step for each in stats] == [1, 1]
    assert (total("adagrad", "rows"), total("adagrad", "unadmitted")) == (1, 1)
    assert total("adam", "rows") == 1
    assert sum(each.process.bytes_sent for each in stats) == client.bytes_received
    assert sum(each.process.bytes_received for each in stats) == client.bytes_sent
    assert {each.node for each in stats} == {"here"}


def test_a_failure_inside_a_shard_ends_the_watch(servers: list[ShardServer]) -> None:
    raised: list[BaseException] = []

    def watch() -> None:
        try:
            servers[0].watch()
        except ValueError as error:
            raised.append(error)

    watcher = threading.Thread(target=watch)
    watcher.start()
    with servers[0]._plane._failures_told():
        raise ValueError("a bug")
    watcher.join(5)

    assert [str(error) for error in raised] == ["a bug"]


@pytest.mark.parametrize("allowed", [False, True])
def test_records_are_not_applied_in_a_mode_that_flushes_denormals(
    small_job: Any, saved_job: Any, in_float_mode: Any, allowed: bool
) -> None:
    job = small_job(saved_job.tables, num_shards=1, dense_size=2500)
    with in_float_mode("flushing"):  # as if a library had set it: its threads inherit that
        (server,) = start(job.spec, any_float_mode=allowed)
    server.initialize(5, np.zeros(2500, np.float32))
    client = client_of([server], job.spec)
    client.start_apply(0, [job.record(0, recovery_epoch=5)])

    if allowed:
        deadline = time.monotonic() + 60
        while server.stats().step == 0:
            assert time.monotonic() < deadline
            client.poll(0.1)
    else:
        with pytest.raises(FloatModeError, match="denormal numbers flushed to zero"):
            server.watch()
        assert server.stats().step == 0
    client.close()
    server.close()


def test_the_secret_is_not_shown(small_job: Any, saved_job: Any) -> None:
    setup = ServerSetup(
        store=small_job(saved_job.tables).spec,
        index=0,
        secret=SECRET,
        max_contributions=1,
        max_buffer_bytes=1,
    )

    assert "only for this job" not in repr(setup)
    assert "ServerSetup(store=" in repr(setup)


def test_what_was_frozen_is_written_once_while_records_are_applied(
    servers: list[ShardServer], small_job: Any, saved_job: Any, tmp_path: Path
) -> None:
    job = small_job(saved_job.tables, num_shards=2, dense_size=2500)
    for index, server in enumerate(servers):
        first, last = job.spec.routing.dense_range(index)
        server.initialize(5, np.zeros(last - first, np.float32))
    client = client_of(servers, job.spec)
    job.wait_for(client, client.start_freeze(1, 0, changed_only=False))
    record = job.record(0, recovery_epoch=5)
    job.wait_for(client, *(client.start_apply(index, [record]) for index in range(2)))

    with pytest.raises(CheckpointError, match=r"shard 0 has frozen all of step 0, .* step 1"):
        servers[0].write_cut(str(tmp_path), 1, changed_only=False)
    with pytest.raises(CheckpointError, match="the cut is what changed until step 0"):
        servers[0].write_cut(str(tmp_path), 0, changed_only=True)
    files = [e for s in servers for e in s.write_cut(str(tmp_path), 0, changed_only=False)]
    with pytest.raises(CheckpointError, match="shard 0 has frozen nothing"):
        servers[0].write_cut(str(tmp_path), 0, changed_only=False)

    assert all((tmp_path / entry.path).stat().st_size == entry.bytes for entry in files)
    client.close()


@pytest.mark.parametrize("hurried_first", [True, False])
def test_a_cut_that_is_spread_over_time_can_be_hurried_before_and_while_it_is_written(
    servers: list[ShardServer],
    small_job: Any,
    saved_job: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    hurried_first: bool,
) -> None:
    monkeypatch.setattr("ps.checkpoint.pace.LEAST_RATE", 1e-3)
    job = saved_job(2)
    directory = job.write_checkpoint(tmp_path / "from")
    for server in servers:
        server.start_from(5, str(directory), goes_on=True)
    client = client_of(servers, job.spec)
    step = servers[0].stats().step
    job.wait_for(client, client.start_freeze(1, step, changed_only=False))
    if hurried_first:
        servers[0].hurry_cut(step)

    with ThreadPoolExecutor(1) as threads:
        writing = threads.submit(
            servers[0].write_cut, str(tmp_path / "cut"), step, changed_only=False, seconds=1e6
        )
        if not hurried_first:
            with pytest.raises(TimeoutError):
                writing.result(timeout=0.2)
            servers[0].hurry_cut(step)
        assert writing.result(timeout=60)
