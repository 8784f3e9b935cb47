"""Which checkpoints are kept: never one without what it needs."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scheduler.run import retention
from scheduler.run.retention import Kind, Link, remove, remove_partial, superseded


@st.composite
def histories(draw: st.DrawFn) -> list[Link]:
    """Checkpoints of a run that failed now and then: deltas are of any one that is older."""
    links: list[Link] = []
    for number in range(draw(st.integers(0, 20))):
        kinds: list[Kind] = ["full", "delta", "delta", "damaged", "unreadable"]
        kind = draw(st.sampled_from(kinds))
        parent = None
        if kind in ("delta", "damaged") and links:
            parent = draw(st.sampled_from([*links[-3:], links[0]])).name
        links.append(Link(f"{kind}-{number}", kind, parent))
    return links


@given(histories(), st.integers(1, 4))
def test_what_a_kept_delta_needs_is_kept_and_never_removed_before_it(
    links: list[Link], keep: int
) -> None:
    gone = superseded(links, keep)

    assert len(set(gone)) == len(gone)
    parents = {link.name: link.parent for link in links}
    for done in range(len(gone) + 1):  # a crash may come after any of them
        there = {link.name for link in links} - set(gone[:done])
        assert all(parents[name] is None or parents[name] in there for name in there)
    fulls = [link.name for link in links if link.kind == "full"]
    assert not set(fulls[-keep:]) & set(gone)
    stays = [link for link in links if link.name not in gone]
    assert not gone or all(link.kind != "unreadable" for link in stays)


@given(histories(), st.integers(1, 4))
def test_no_more_full_ones_are_kept_than_are_wanted_but_those_that_kept_deltas_need(
    links: list[Link], keep: int
) -> None:
    gone = superseded(links, keep)

    stays = [link for link in links if link.name not in gone]
    needed = {link.parent for link in stays}
    old = [link.name for link in stays if link.kind == "full"][:-keep]
    assert set(old) <= needed or any(link.kind == "unreadable" for link in stays)
    assert superseded(stays, keep) == []


def test_the_newest_full_ones_are_kept_with_the_deltas_above_them() -> None:
    links = [
        Link("full-1", "full"),
        Link("delta-2", "delta", "full-1"),
        Link("delta-3", "delta", "delta-2"),
        Link("full-4", "full"),
        Link("delta-5", "delta", "full-4"),
        Link("full-6", "full"),
        Link("delta-7", "delta", "full-6"),
    ]

    assert superseded(links, 2) == ["delta-3", "delta-2", "full-1"]
    assert superseded(links, 3) == []


def test_a_removal_that_ends_midway_leaves_no_checkpoint_and_is_cleaned_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "full-000000000007"
    folder.mkdir()
    (folder / "manifest.json").write_text("{}")

    with monkeypatch.context() as killed:
        killed.setattr(retention.shutil, "rmtree", lambda *_, **__: None)
        remove(folder)
    assert not folder.exists()
    assert len(list(tmp_path.iterdir())) == 1

    remove_partial(tmp_path)

    assert list(tmp_path.iterdir()) == []
