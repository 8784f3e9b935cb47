"""What will be pulled, told ahead over sockets to shards that listen, are slow, or are gone."""

import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from embedding import Adam, TableSpec, Tiers
from ps.client import prefetcher as module
from ps.client.prefetcher import Prefetcher
from ps.copies import Copies
from ps.messages.pull_push import Prefetch
from ps.net.sockets import receive, tune

TABLES = (TableSpec(name="a", dim=60, optimizer=Adam()), TableSpec(name="b", dim=2))


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


class Ends:
    """The other ends of a prefetcher's connections."""

    def __init__(self) -> None:
        self.socks: list[tuple[int, socket.socket]] = []
        self.refuses = False
        self.refused = 0

    def connect(self, number: int) -> socket.socket:
        if self.refuses:
            self.refused += 1
            raise ConnectionRefusedError("nobody is there")
        ours, theirs = socket.socketpair()
        tune(ours)
        ours.settimeout(30)
        self.socks.append((number, ours))
        return theirs

    def next(self, index: int) -> Prefetch:
        until(lambda: len(self.socks) > index)
        message = receive(self.socks[index][1])[0]
        assert isinstance(message, Prefetch)
        return message


@pytest.fixture
def ends() -> Iterator[Ends]:
    ends = Ends()
    yield ends
    for _, sock in ends.socks:
        sock.close()


Make = Callable[..., Prefetcher]


@pytest.fixture
def make(small_job: Any) -> Iterator[Make]:
    made: list[Prefetcher] = []

    def prefetcher(connect: Any, job: Any, **options: Any) -> Prefetcher:
        fields = {"routing": job.spec.routing, "tables": [True, False], "recovery_epoch": job.epoch}
        fields["copies"] = Copies(job.spec.num_shards)
        made.append(Prefetcher(connect, **{**fields, **options}))
        return made[-1]

    yield prefetcher
    for each in made:
        each.close()
        assert not each._thread.is_alive()


def test_each_copy_is_told_the_keys_of_tables_that_have_tiers(
    small_job: Any, make: Make, ends: Ends
) -> None:
    job = small_job(TABLES, num_shards=2)
    unique = job.unique(range(100), range(50))
    prefetcher = make(ends.connect, job, copies=Copies(2, (1,)))

    prefetcher.tell(unique, batch_id=7, attempt=2)

    told = [ends.next(index) for index in range(3)]
    assert [number for number, _ in ends.socks] == [0, 1, 3]
    for message, shard in zip(told, (0, 1, 1), strict=True):
        size = int(unique.sizes[shard, 0])
        start = unique.key_starts[shard]
        assert message.table_sizes == (size, 0)
        assert message.keys.tolist() == unique.keys[start : start + size].tolist()
        assert (message.batch_id, message.attempt) == (7, 2)
        assert message.recovery_epoch == job.epoch


def test_a_shard_without_a_key_of_such_tables_is_told_nothing(
    small_job: Any, make: Make, ends: Ends
) -> None:
    job = small_job(TABLES)
    prefetcher = make(ends.connect, job)

    prefetcher.tell(job.unique([], [1, 2]), batch_id=1, attempt=0)
    prefetcher.tell(job.unique([5], [1, 2]), batch_id=2, attempt=0)

    assert ends.next(0).batch_id == 2


def test_what_a_slow_shard_does_not_take_is_left_out_and_nobody_waits(
    small_job: Any, make: Make, ends: Ends
) -> None:
    job = small_job(TABLES)
    unique = job.unique(np.arange(200_000), [])
    prefetcher = make(ends.connect, job)

    began = time.monotonic()
    for batch_id in range(40):  # 1.6 MB each, far beyond what the sockets take
        prefetcher.tell(unique, batch_id=batch_id, attempt=0)
        time.sleep(0.001)
    assert time.monotonic() - began < 20

    told = [ends.next(0).batch_id for _ in range(3)]
    assert told == sorted(told)
    assert prefetcher._waiting.qsize() <= module._WAITING


def test_a_shard_that_is_gone_is_tried_again_after_a_while(
    small_job: Any, make: Make, ends: Ends, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_AGAIN_SECONDS", 0.05)
    job = small_job(TABLES)
    unique = job.unique([1], [])
    prefetcher = make(ends.connect, job)
    ends.refuses = True
    prefetcher.tell(unique, batch_id=0, attempt=0)
    until(lambda: ends.refused == 1)
    prefetcher.tell(unique, batch_id=1, attempt=0)  # not tried
    until(prefetcher._waiting.empty)

    ends.refuses = False
    time.sleep(0.06)
    prefetcher.tell(unique, batch_id=2, attempt=0)

    assert ends.next(0).batch_id == 2
    assert ends.refused == 1


def test_a_server_reads_ahead_what_it_is_told(
    small_job: Any, make: Make, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    tiers = {"a": Tiers(memory_bytes=1 << 16, path=str(tmp_path))}
    job = small_job(TABLES, tiers=tiers)
    keys = np.arange(3000).tolist()
    job.train(0, keys, keys)
    served = request.getfixturevalue("serve")(job)  # which counts files that are open from here on
    client = served.client()
    table = job.shards[0].tables[0]
    unique = job.unique([5, 6, 7], [5])

    prefetcher = make(served.connect, job)
    prefetcher.tell(unique, batch_id=1, attempt=0)
    until(lambda: table.tiers().prefetched == 3)
    before = table.tiers().reads
    job.pulled(client, unique)
    prefetcher.close()

    assert table.tiers().reads == before
    assert served.planes[0].stage_seconds()["prefetch"] > 0
    assert not served.errors


def test_it_ends_while_a_shard_takes_nothing(small_job: Any, make: Make, ends: Ends) -> None:
    job = small_job(TABLES)
    prefetcher = make(ends.connect, job)
    prefetcher.tell(job.unique(np.arange(900_000), []), batch_id=0, attempt=0)
    until(lambda: bool(ends.socks))

    closing = threading.Thread(target=prefetcher.close)
    closing.start()
    closing.join(5)

    assert not closing.is_alive()
    assert not prefetcher._thread.is_alive()
