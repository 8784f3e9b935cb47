"""Checkpoints over sockets: as they are on the job's disk, for who knows the secret alone."""

import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from served_jobs import SavedModel

import ps.following.publisher as publishing
from ps.checkpoint.read import CheckpointReader
from ps.following.follower import Follower
from ps.following.publisher import Publisher
from ps.messages.exchange import Refusal
from ps.messages.following import AwaitNewest, FetchPiece
from ps.messages.pull_push import Pull
from ps.net.sockets import receive, send

SECRET = b"a secret of sixteen"


@pytest.fixture
def published(tmp_path: Path) -> Iterator[tuple[Publisher, Callable[[str], str]]]:
    """A publisher, and what has the next checkpoint written and published."""
    job = SavedModel("plain", tmp_path / "run")
    job.train(3)
    publisher = Publisher(origin(tmp_path), secret=SECRET, host="127.0.0.1", port=0)

    def cut(kind: str = "delta") -> str:
        job.train()
        name = job.cut(full=kind == "full").name
        publisher.readable(name)
        return name

    yield publisher, cut
    publisher.close()


def origin(folder: Path) -> Path:
    return folder / "run" / "checkpoints"


@contextmanager
def following(publisher: Publisher, folder: Path, secret: bytes = SECRET) -> Iterator[Follower]:
    follower = Follower(*publisher.address, secret=secret, folder=folder)
    try:
        yield follower
    finally:
        follower.close()


def same(left: Path, right: Path) -> bool:
    files = sorted(path.relative_to(left) for path in left.rglob("*") if path.is_file())
    found = sorted(path.relative_to(right) for path in right.rglob("*") if path.is_file())
    return files == found and all(
        (left / path).read_bytes() == (right / path).read_bytes() for path in files
    )


def test_a_follower_has_every_checkpoint_with_what_it_lies_on(
    published: tuple[Publisher, Callable[[str], str]], tmp_path: Path
) -> None:
    publisher, cut = published
    names = [cut("full"), cut(), cut()]
    with following(publisher, tmp_path / "copy") as follower:
        assert follower.step() == names[-1]
        for name in names:
            assert same(origin(tmp_path) / name, tmp_path / "copy" / name)
        names.append(cut())
        assert follower.step() == names[-1]
        for files in CheckpointReader(tmp_path / "copy" / names[-1]).chain:
            files.verify()
        newest = cut("full")
        assert follower.step() == newest
        last = cut()
        assert follower.step() == last
    kept = sorted(path.name for path in (tmp_path / "copy").iterdir())
    assert kept == sorted([newest, last]), "what they don't need is gone"


def test_one_that_waits_hears_at_once_and_one_that_was_away_catches_up(
    published: tuple[Publisher, Callable[[str], str]], tmp_path: Path
) -> None:
    publisher, cut = published
    with following(publisher, tmp_path / "copy") as follower:
        heard: list[tuple[str | None, float]] = []
        thread = threading.Thread(target=lambda: heard.append((follower.step(), time.monotonic())))
        thread.start()
        time.sleep(0.2)
        first = cut("full")
        thread.join()
        assert heard[0][0] == first
    for _ in range(3):
        last = cut()
    inode = (tmp_path / "copy" / first).stat().st_ino
    with following(publisher, tmp_path / "copy") as follower:
        assert follower.step() == last
    assert (tmp_path / "copy" / first).stat().st_ino == inode, "it was not fetched again"


def test_nothing_is_there_until_it_is_whole(
    published: tuple[Publisher, Callable[[str], str]], tmp_path: Path
) -> None:
    publisher, cut = published
    cut("full")
    with following(publisher, tmp_path / "copy") as follower:
        piece, calls = follower.piece, 0

        def breaks(*what: Any) -> tuple[int, bytes]:
            nonlocal calls
            calls += 1
            if calls == 4:
                raise ConnectionError("it broke")
            return piece(*what)

        follower.piece = breaks  # type: ignore[method-assign]
        with pytest.raises(ConnectionError, match="it broke"):
            follower.step()
    assert list((tmp_path / "copy").iterdir()) == []


def test_what_was_removed_meanwhile_is_no_error(
    published: tuple[Publisher, Callable[[str], str]], tmp_path: Path
) -> None:
    publisher, cut = published
    publisher.readable("full-000000000099")
    with following(publisher, tmp_path / "copy") as follower:
        assert follower.step() is None
        name = cut("full")
        assert follower.step() == name


def test_without_the_secret_nobody_is_told_anything(
    published: tuple[Publisher, Callable[[str], str]], tmp_path: Path
) -> None:
    publisher, cut = published
    cut("full")
    with pytest.raises(ConnectionError), following(publisher, tmp_path / "copy", b"another secret"):
        pass
    assert publisher.followers == 0


@pytest.mark.parametrize(
    ("checkpoint", "path"),
    [
        ("full-000000000004", "../secret"),
        ("full-000000000004", "/etc/passwd"),
        ("full-000000000004", "tables//rows"),
        ("full-000000000004", ""),
        ("..", "secret"),
        ("full-4/..", "secret"),
        (".partial-full-9", "manifest.json"),
    ],
)
def test_files_that_are_none_of_a_checkpoint_are_refused(
    published: tuple[Publisher, Callable[[str], str]], tmp_path: Path, checkpoint: str, path: str
) -> None:
    publisher, cut = published
    cut("full")
    (origin(tmp_path) / "secret").write_text("secret")
    with following(publisher, tmp_path / "copy") as follower:
        send(follower._sock, FetchPiece(1, checkpoint, path, 0))
        answer, _ = receive(follower._sock)
        assert isinstance(answer, Refusal)
        assert answer.reason == "malformed"
        send(follower._sock, FetchPiece(2, "full-000000000004", "manifest.json", 1 << 60))
        beyond, _ = receive(follower._sock)
        assert beyond.data.size == 0  # type: ignore[union-attr]


def test_one_that_says_something_else_is_dropped(
    published: tuple[Publisher, Callable[[str], str]], tmp_path: Path
) -> None:
    publisher, _ = published
    none = np.empty(0, np.int64)
    with following(publisher, tmp_path / "copy") as follower:
        send(follower._sock, Pull(1, 0, 0, 0, (), none, none.astype(np.uint32), True))
        with pytest.raises(ConnectionError):
            receive(follower._sock)


def test_one_that_takes_nothing_is_dropped_and_holds_up_nobody(
    published: tuple[Publisher, Callable[[str], str]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(publishing, "STALLED_SECONDS", 1)
    publisher, cut = published
    name = cut("full")
    (origin(tmp_path) / name / "large").write_bytes(bytes(32 << 20))
    with following(publisher, tmp_path / "slow") as slow:
        slow._sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        for number in range(32):
            send(slow._sock, FetchPiece(number, name, "large", number << 20))
        with following(publisher, tmp_path / "copy") as follower:
            assert follower.step() == name
            deadline = time.monotonic() + 60
            while publisher.followers > 1:
                assert time.monotonic() < deadline, "the slow one is dropped"
                time.sleep(0.05)
            name = cut()
            assert follower.step() == name


def test_at_the_end_those_that_follow_may_fetch_the_last_one(
    published: tuple[Publisher, Callable[[str], str]], tmp_path: Path
) -> None:
    publisher, cut = published
    first = cut("full")
    with following(publisher, tmp_path / "copy") as follower:
        assert follower.step() == first
        last = cut()
        closing = threading.Thread(target=lambda: publisher.close(patience=60))
        closing.start()
        assert follower.step() == last
        with pytest.raises(ConnectionError):  # it ends once it has heard that this one has it
            [follower.step() for _ in range(3)]
        closing.join(20)
        assert not closing.is_alive()


def test_no_more_than_so_many_follow(
    published: tuple[Publisher, Callable[[str], str]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(publishing, "MAX_FOLLOWERS", 1)
    publisher, cut = published
    name = cut("full")
    with following(publisher, tmp_path / "copy") as follower:
        assert follower.step() == name
        with following(publisher, tmp_path / "other") as refused, pytest.raises(ConnectionError):
            refused.step()
        send(follower._sock, AwaitNewest(1, ""))
        assert receive(follower._sock)[0].name == name  # type: ignore[union-attr]
