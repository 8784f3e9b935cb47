"""Which versions are kept and served."""

import pytest

from serving.versions import UnknownVersionError, Version, VersionStore


def version(step: int, epoch: int = 0, histories: tuple[tuple[int, int], ...] = ()) -> Version:
    name = f"{epoch}-{step}"
    return Version(
        checkpoint=name,
        seal=name,
        step=step,
        recovery_epoch=epoch,
        taken=100.0,
        form=name,
        base="base",
        histories=histories,
    )


def steps(store: VersionStore) -> list[tuple[int, int]]:
    return [each.place for each in store.kept]


def test_steps_that_a_job_took_back_are_kept_until_a_newer_version_says_so() -> None:
    store = VersionStore(keep=10)
    for step in (10, 20, 30):
        store.give(version(step, histories=((0, 0),)))
    gone = store.give(version(25, epoch=1, histories=((0, 0), (1, 20))))

    assert [each.step for each in gone] == [30]
    assert store.served is not None
    assert store.served.place == (1, 25)
    assert steps(store) == [(0, 10), (0, 20), (1, 25)]
    with pytest.raises(UnknownVersionError, match=r"kept are steps 10, 20, 25"):
        store.rollback(30)


def test_what_nothing_is_known_of_stays() -> None:
    store = VersionStore(keep=10)
    for step in (10, 20):
        store.give(version(step))
    store.give(version(15, epoch=1))
    store.give(version(16, epoch=1))
    assert steps(store) == [(0, 10), (0, 20), (1, 15), (1, 16)]


def test_a_version_that_somebody_went_back_to_is_served_though_its_steps_were_taken_back() -> None:
    store = VersionStore(keep=10)
    for step in (10, 20, 30):
        store.give(version(step, histories=((0, 0),)))
    store.rollback(20)
    after = ((0, 0), (1, 10))
    store.give(version(12, epoch=1, histories=after))
    assert steps(store) == [(0, 10), (0, 20), (1, 12)]
    assert store.served == version(20, histories=((0, 0),))

    store.release()
    store.give(version(13, epoch=1, histories=after))
    assert steps(store) == [(0, 10), (1, 12), (1, 13)]


@pytest.mark.parametrize(
    ("older", "histories", "has"),
    [
        ((0, 20), ((0, 0), (1, 20), (3, 40)), True),
        ((0, 21), ((0, 0), (1, 20), (3, 40)), False),
        ((1, 40), ((0, 0), (1, 20), (3, 40)), True),
        ((1, 41), ((0, 0), (1, 20), (3, 40)), False),
        ((2, 30), ((0, 0), (1, 20), (3, 40)), False),  # an epoch of which nothing is left
        ((3, 45), ((0, 0), (1, 20), (3, 40)), True),
        ((0, 5), ((1, 20), (3, 40)), True),  # before the oldest that is remembered
        ((0, 25), ((1, 20), (3, 40)), False),
        ((7, 1), (), True),
    ],
)
def test_a_version_comes_from_the_steps_of_its_histories(
    older: tuple[int, int], histories: tuple[tuple[int, int], ...], has: bool
) -> None:
    epoch, step = older
    newest = version(50, epoch=3, histories=histories)
    assert newest.has(version(step, epoch=epoch)) is has


def test_the_age_is_since_the_step_and_never_negative() -> None:
    assert version(1).age(103.5) == 3.5
    assert version(1).age(99.0) == 0.0
