"""Drivers that join samples with labels die at any moment: each sample is trained as it should."""

from collections.abc import Iterable
from pathlib import Path

import pytest

import worker.data.joined_arrivals
from simulation.joining import JoiningJob, JoiningParts
from worker.data.join_log import JoinLog
from worker.data.joined_arrivals import JoinedArrivals
from worker.data.label_join import Joined, LabelJoin
from worker.data.streams import Position


@pytest.fixture(autouse=True)
def small_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker.data.joined_arrivals, "MOST_ROWS", 12)
    monkeypatch.setattr(worker.data.joined_arrivals, "FILES_AT_ONCE", 1)
    monkeypatch.setattr(worker.data.joined_arrivals, "LEAST_SAVED", 1)


def trained(job: JoiningJob) -> dict[int, list[int]]:
    found: dict[int, list[int]] = {}
    for batch in job.trained:
        for sample, label in batch:
            found.setdefault(sample, []).append(label)
    return found


def run_seeds(seeds: Iterable[int], folder: Path, parts: JoiningParts | None = None) -> int:
    """Return how many drivers died."""
    deaths = 0
    for seed in seeds:
        (folder / f"{seed}").mkdir()
        job = JoiningJob(seed, folder / f"{seed}", parts)
        job.run()
        assert trained(job) == job.story.right, f"seed {seed}"
        deaths += job.deaths
    return deaths


def test_each_sample_is_trained_once_with_its_label_whoever_dies(tmp_path: Path) -> None:
    assert run_seeds(range(12), tmp_path) > 15


@pytest.mark.slow
def test_each_sample_is_trained_once_in_many_jobs(tmp_path: Path) -> None:
    assert run_seeds(range(12, 300), tmp_path) > 500


class ForgetsWhatWaits(LabelJoin):
    """What is known is not all written down."""

    def arrays(self):  # type: ignore[no-untyped-def]
        found = super().arrays()
        return {**found, **{name: found[name][:0] for name in found if name.startswith("label_")}}


class ExpiresByTheStreamOfSamples(LabelJoin):
    """A sample is a negative though labels are to come that are in time."""

    def know_labels_until(self, at: float) -> Joined:
        return super().know_labels_until(max(at, self.samples_until))


class GoesOnElsewhere(JoinedArrivals):
    """Who goes on begins a file of labels later."""

    def seek(self, position: Position) -> None:
        super().seek(position)
        self._labels.arrivals.take(most=1, now=1e9)


class LetsGoTooEarly(JoinedArrivals):
    """Files go with the joined samples that came of them, though others of theirs wait."""

    def remove(self, path: str) -> None:
        super().remove(path)
        for plan in self._files.values():
            self._samples.arrivals.remove(plan.plan.path)
        self._rows.forget_from(0)


@pytest.mark.parametrize(
    "parts",
    [
        JoiningParts(join=ForgetsWhatWaits),
        JoiningParts(join=ExpiresByTheStreamOfSamples),
        JoiningParts(arrivals=GoesOnElsewhere),
        JoiningParts(arrivals=LetsGoTooEarly),
    ],
    ids=lambda parts: (parts.join if parts.join is not LabelJoin else parts.arrivals).__name__,
)
def test_a_join_that_is_wrong_is_found(tmp_path: Path, parts: JoiningParts) -> None:
    with pytest.raises((AssertionError, ValueError)):
        run_seeds(range(8), tmp_path, parts)


def test_steps_that_nobody_goes_on_from_are_forgotten(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(JoinLog, "_forget_from", lambda self, begin: None)

    with pytest.raises((AssertionError, ValueError)):
        run_seeds(range(12), tmp_path)
