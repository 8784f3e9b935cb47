"""A mirror of a job's checkpoints, by seeds: what is there is whole, and wrong ones are caught."""

import pytest

from ps.following.mirror import Facts, GoneError, Mirror
from simulation.following import FollowingViolation, follow

SEEDS = 100


class FinishesTooEarly(Mirror):
    def _take(self, name: str, manifest: bytes, facts: Facts) -> None:
        super()._take(name, manifest, Facts(facts.seal, facts.parent, facts.files[:1]))


class TakesTheNewestFirst(Mirror):
    def _chain(self, name: str) -> tuple[list[str], list[tuple[str, bytes, Facts]]]:
        names, lacking = super()._chain(name)
        return names, lacking[::-1]


class GoesByNames(Mirror):
    def _own(self, name: str, seal: str) -> Facts | None:
        return self._facts.get(name)


class RemovesWhatOthersLieOnFirst(Mirror):
    def _below(self, name: str) -> list[str]:
        return []


class NeverLooksAgain(Mirror):
    def _take(self, name: str, manifest: bytes, facts: Facts) -> None:
        try:
            super()._take(name, manifest, facts)
        except GoneError as error:
            if "another one" not in str(error):
                raise
            self._kept.finish(manifest)
            self._facts[name] = facts


class KeepsAll(Mirror):
    def _remove_all_but(self, needed: frozenset[str]) -> None:
        gone = self._facts.keys() - needed
        super()._remove_all_but(needed if len(gone) == 1 else frozenset(self._facts))


def test_a_mirror_has_whole_checkpoints_and_comes_to_the_newest_whatever_befalls_it() -> None:
    assert sum(follow(seed) for seed in range(SEEDS)) > SEEDS / 4, "processes died"


@pytest.mark.parametrize(
    "mutant",
    [
        FinishesTooEarly,
        TakesTheNewestFirst,
        GoesByNames,
        RemovesWhatOthersLieOnFirst,
        NeverLooksAgain,
        KeepsAll,
    ],
)
def test_mutant_is_caught(mutant: type[Mirror]) -> None:
    with pytest.raises(FollowingViolation):
        [follow(seed, mutant) for seed in range(SEEDS)]
