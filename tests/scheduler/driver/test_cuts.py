"""What becomes of a cut that is given up while it is being written."""

from collections.abc import Iterator
from concurrent.futures import Future
from typing import Any

import faulty_store
import pytest

from runtime.places import StoredPath, is_file
from scheduler.coordinator.cuts import Cut
from scheduler.driver.cuts import RunningCuts, _Writing

PLACE = StoredPath("faulty://bucket/run/full-000000000007-123456789")


@pytest.fixture(autouse=True)
def store() -> Iterator[None]:
    faulty_store.empty()
    faulty_store.FaultyFileSystem().pipe_file(f"{PLACE}/manifest.json", b"{}")
    yield
    faulty_store.empty()


def given_up(published: "Future[Any] | None") -> bool:
    """Whether a cut in a store is gone once it was forgotten."""
    cuts = RunningCuts(None, None, None)  # type: ignore[arg-type]
    cut = Cut(number=1, step=7, kind="full")
    cuts._writing = _Writing(cut, PLACE, {}, [], 0.0, published=published)
    cuts.close()
    return not is_file(PLACE / "manifest.json")


def test_a_cut_that_is_published_stays_though_nobody_has_heard_of_it() -> None:
    """All may be on their way back to it."""
    published: Future[Any] = Future()
    published.set_result((PLACE, "its seal"))

    assert not given_up(published)


def test_one_that_is_not_written_or_could_not_be_published_goes() -> None:
    failed: Future[Any] = Future()
    failed.set_exception(OSError("no such bucket"))

    assert given_up(failed)
    faulty_store.FaultyFileSystem().pipe_file(f"{PLACE}/manifest.json", b"{}")
    assert given_up(None)
