"""Checkpoints in a store without rename: there whole or not at all, whichever call fails."""

from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import faulty_store
import pytest
from faulty_store import failing

from embedding import TableSpec
from ps.checkpoint.intact import checkpoints_in, unfinished_in
from ps.checkpoint.manifest import CheckpointError
from ps.checkpoint.read import CheckpointReader
from ps.checkpoint.restore import start_shard_from
from ps.checkpoint.write import begin_checkpoint, give_up_checkpoint, publish_checkpoint
from runtime.places import StoredPath
from runtime.storage import StorageError
from scheduler.run.retention import remove, remove_unfinished

FOLDER = StoredPath("faulty://bucket/run")
NAME = "full-000000000007"


@pytest.fixture(autouse=True)
def store() -> Iterator[None]:
    faulty_store.empty()
    yield
    faulty_store.empty()


@pytest.fixture(scope="module")
def job(saved_job: Any) -> Any:
    return saved_job(2)


@pytest.fixture(scope="module")
def tiny(small_job: Any) -> Any:
    """A job whose checkpoint takes few calls: each of them fails once."""
    job = small_job((TableSpec(name="t", dim=2),), num_shards=1, dense_size=3)
    job.train(0, [1, 2, 3])
    return job


def write(job: Any) -> StoredPath:
    """Write a checkpoint as the driver does."""
    partial = begin_checkpoint(FOLDER / NAME)
    try:
        job.write_checkpoint(partial)
        path = publish_checkpoint(partial, FOLDER / NAME)
    except BaseException:
        give_up_checkpoint(partial)
        raise
    assert isinstance(path, StoredPath)
    return path


def digest_of(small_job: Any, saved_job: Any, place: StoredPath, num_shards: int) -> str:
    job = small_job(saved_job.tables, num_shards=num_shards, dense_size=2500, initialize=False)
    for shard in job.shards:
        start_shard_from(shard, CheckpointReader(place), recovery_epoch=3, goes_on=True)
    return job.digest


@pytest.mark.parametrize("num_shards", [1, 3])
def test_any_number_of_shards_restores_from_a_store(
    job: Any, small_job: Any, saved_job: Any, num_shards: int
) -> None:
    path = write(job)

    assert digest_of(small_job, saved_job, path, num_shards) == job.digest
    CheckpointReader(path).verify()
    assert checkpoints_in(FOLDER) == [path]
    assert unfinished_in(FOLDER) == []


def test_two_attempts_at_one_step_write_to_two_places(job: Any) -> None:
    first, second = write(job), write(job)

    assert first != second
    assert checkpoints_in(FOLDER) == sorted([first, second], key=str)
    for path in (first, second):
        CheckpointReader(path).verify()


def restored(small_job: Any, tiny: Any, place: StoredPath) -> str:
    job = small_job(tiny.spec.tables, num_shards=1, dense_size=3, initialize=False)
    start_shard_from(job.shards[0], CheckpointReader(place), recovery_epoch=3, goes_on=True)
    return job.digest


@pytest.mark.parametrize("from_there_on", [False, True])
def test_whichever_call_fails_a_checkpoint_is_whole_or_not_there(
    tiny: Any, from_there_on: bool
) -> None:
    with failing(1 << 60):
        write(tiny)
    calls = faulty_store.CALLS.made
    assert calls > 20

    for call in range(1, calls + 1):
        faulty_store.empty()
        with failing(call, from_there_on=from_there_on):
            try:
                write(tiny)
            except (OSError, CheckpointError):
                pass
            else:
                assert not from_there_on, "what fails is not taken for written"
        for path in checkpoints_in(FOLDER):
            CheckpointReader(path).verify()
        whole = write(tiny)
        CheckpointReader(whole).verify()
        remove_unfinished(FOLDER)
        left = {name for name in faulty_store.objects() if f"/{whole.name}/" not in name}
        finished = {path.name for path in checkpoints_in(FOLDER)}
        assert all(name.split("/")[3] in finished for name in left)


def test_whichever_call_of_a_removal_fails_what_is_there_is_whole(tiny: Any) -> None:
    path = write(tiny)
    with failing(1 << 60):
        remove(path)
    calls = faulty_store.CALLS.made

    for call in range(1, calls + 1):
        faulty_store.empty()
        path = write(tiny)
        with failing(call, from_there_on=True), suppress(OSError):
            remove(path)
        for found in checkpoints_in(FOLDER):
            CheckpointReader(found).verify()
        remove_unfinished(FOLDER)
        if not checkpoints_in(FOLDER):
            assert faulty_store.objects() == set()


def test_whichever_call_of_a_restore_fails_it_is_named_and_the_shard_is_as_it_was(
    tiny: Any, small_job: Any
) -> None:
    path = write(tiny)
    with failing(1 << 60):
        assert restored(small_job, tiny, path) == tiny.digest
    calls = faulty_store.CALLS.made

    for call in range(1, calls + 1):
        with failing(call), pytest.raises((CheckpointError, StorageError), match="faulty://bucket"):
            restored(small_job, tiny, path)


def test_a_removed_checkpoint_is_named(tiny: Any) -> None:
    path = write(tiny)
    reader = CheckpointReader(path)
    remove(path)

    with pytest.raises(CheckpointError, match="was removed"):
        reader.verify()
