"""A server brings another one to where it is, from a cut that it has written."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from embedding.spec.table import TableSpec
from ps.checkpoint.manifest import write_manifest
from ps.client.client import Open, PsClient
from ps.copies import Copies
from ps.messages.pull_push import ANY_STEP
from ps.net.sockets import connect
from ps.server.journal_sender import CopyError
from ps.server.server import ServerSetup, ShardServer

SECRET = b"only for this job"
TABLES = (TableSpec(name="a", dim=2),)
EPOCH = 3


class Pair:
    """A server that trains and one that is to be its copy."""

    def __init__(self, job: Any) -> None:
        self.job = job
        setup = ServerSetup(
            store=job.spec, index=0, secret=SECRET, max_contributions=9, max_buffer_bytes=1 << 20
        )
        self.server, self.copy = (ShardServer(setup, node_id="here") for _ in range(2))
        self.server.initialize(EPOCH, np.zeros(3, np.float32))
        self.client = PsClient(
            job.spec,
            lambda _: connect(self.server.address(), node_id="here", secret=SECRET),
            recovery_epoch=EPOCH,
        )
        self.step = 0

    def train(self, *keys: int) -> None:
        pulled = self.job.pulled(self.client, self.job.unique(keys))
        push = self.job.start_push(self.client, pulled, self.step)
        self.job.wait_for(self.client, push)
        self._done(self.client.start_apply(0, [self.job.record(self.step, self.step)]))
        self.step += 1

    def cut(self, folder: Path) -> str:
        self._done(self.client.start_freeze(1, self.step, changed_only=False))
        files = self.server.write_cut(str(folder), self.step, changed_only=False)
        write_manifest(folder, self.job.manifest(files=tuple(files), step=self.step))
        return str(folder)

    def _done(self, request: Open) -> None:
        self.job.wait_for(self.client, request)
        assert not request.refusals, request.refusals

    def digests(self, folder: Path) -> list[Any]:
        found = []
        for name, server in (("one", self.server), ("other", self.copy)):
            cut = server.write_checkpoint(str(folder / name), self.step)
            found.append((cut.blocks, {n: digests.tobytes() for n, digests in cut.tables.items()}))
        return found


@pytest.fixture
def pair(small_job: Any) -> Iterator[Pair]:
    found = Pair(small_job(TABLES))
    yield found
    found.client.close()
    for server in (found.server, found.copy):
        server.close()


def test_a_copy_comes_to_where_its_server_is_while_that_goes_on(pair: Pair, tmp_path: Path) -> None:
    pair.train(1, 2)
    pair.server.keep_journal(1 << 20)
    path = pair.cut(tmp_path / "cut")
    pair.train(2, 3)
    pair.copy.begin_copy(EPOCH, path, pair.server.copy_from(1))
    assert pair.server.send_journal(pair.copy.address()) <= 2
    for key in range(40):
        pair.train(key, key + 7)
    pair.server.leave()

    assert pair.server.finish_journal(20.0) == pair.step == 42
    one, other = pair.digests(tmp_path)
    assert one == other
    for server in (pair.server, pair.copy):
        server.enter(EPOCH + 1)
        assert server.leave().recovery_epoch == EPOCH + 1


def test_a_copy_that_can_not_follow_is_told(pair: Pair, tmp_path: Path) -> None:
    with pytest.raises(CopyError, match="shard 0 keeps nothing for a copy"):
        pair.server.send_journal(pair.copy.address())
    with pytest.raises(CopyError, match="sends nothing to a copy"):
        pair.server.finish_journal(1.0)
    pair.server.keep_journal(100)
    path = pair.cut(tmp_path / "cut")
    evicted = pair.server.copy_from(0)
    pair.train(1, 2, 3, 4, 5, 6)
    pair.copy.begin_copy(EPOCH, path, evicted)

    with pytest.raises(CopyError, match="grown beyond 100 bytes"):
        pair.server.send_journal(pair.copy.address())


def test_a_copy_that_dies_is_told(pair: Pair, tmp_path: Path) -> None:
    pair.server.keep_journal(1 << 20)
    path = pair.cut(tmp_path / "cut")
    pair.copy.begin_copy(EPOCH, path, pair.server.copy_from(0))
    pair.server.send_journal(pair.copy.address())
    pair.copy.close()
    pair.train(1)
    pair.server.leave()

    with pytest.raises(CopyError):
        pair.server.finish_journal(20.0)


def test_a_push_is_over_once_both_copies_of_a_shard_have_it(pair: Pair) -> None:
    pair.copy.initialize(EPOCH, np.zeros(3, np.float32))
    addresses = [pair.server.address(), pair.copy.address()]
    both = PsClient(
        pair.job.spec,
        lambda number: connect(addresses[number], node_id="here", secret=SECRET),
        recovery_epoch=EPOCH,
        standbys=(0,),
    )
    pulled = both.start_pull(pair.job.unique([1, 2]), at_step=ANY_STEP)
    pair.job.wait_for(both, pulled)
    assert set(pulled.replies) == {0}
    push = pair.job.start_push(both, pulled, 0)
    pair.job.wait_for(both, push)

    assert set(push.replies) == {0, 1}
    held = [server._shard.buffer.get(0, 0) for server in (pair.server, pair.copy)]
    assert held[0].gradients.tobytes() == held[1].gradients.tobytes()
    both.close()


def test_a_server_that_is_gone_is_told_at_once(pair: Pair) -> None:
    told: list[int] = []

    def refused(number: int, error: OSError) -> None:
        told.append(number)
        raise InterruptedError from error

    address = pair.copy.address()
    pair.copy.close()
    with pytest.raises(InterruptedError):
        PsClient(
            pair.job.spec,
            lambda _: connect(address, node_id="here", secret=SECRET),
            recovery_epoch=EPOCH,
            refused=refused,
        )
    assert told == [0]


def test_copies_are_known_by_their_numbers() -> None:
    copies = Copies(3, (0, 2))

    assert copies.numbers == (0, 1, 2, 3, 5)
    assert [copies.shard_of(number) for number in copies.numbers] == [0, 1, 2, 0, 2]
    assert copies.name_of(1) == "shard 1"
    assert copies.name_of(5) == "the standby of shard 2"
    for wrong in ((3,), (-1,), (1, 1)):
        with pytest.raises(ValueError, match="can't have standbys"):
            Copies(3, wrong)
