"""Which versions of a model are kept, and which one is served: a state machine without files."""

from collections import OrderedDict
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class Version:
    """One state of all tables and dense parameters.

    Args:
        checkpoint: name of the checkpoint's folder.
        seal: the checksum of its manifest, by which versions are told apart.
        step: the global step after which it was taken.
        recovery_epoch: the history that it is of; a later one holds.
        taken: when the job was at that step, in seconds since 1970.
        form: name of the folder of its serving form.
        base: name of the folder that the form lies on, its own where it is a base.
        histories: recovery epochs that it comes from, (epoch, step at which it began), the oldest
            first; none: it is not known.
    """

    checkpoint: str
    seal: str
    step: int
    recovery_epoch: int
    taken: float
    form: str
    base: str
    histories: tuple[tuple[int, int], ...] = ()

    @property
    def place(self) -> tuple[int, int]:
        """By which versions are older or newer."""
        return self.recovery_epoch, self.step

    def age(self, now: float) -> float:
        """Return the seconds since the job was at this step; 0 where clocks differ."""
        return max(now - self.taken, 0.0)

    def about(self, now: float) -> dict[str, Any]:
        """Return what answers say of it."""
        return {
            "step": self.step,
            "checkpoint": self.checkpoint,
            "age_seconds": round(self.age(now), 3),
        }

    def has(self, other: "Version") -> bool:
        """Whether the steps of an older version are among those that this one comes from.

        They are not where the job went back to a checkpoint before them.
        """
        epochs = [each for each, _ in self.histories]
        if other.recovery_epoch not in epochs:
            before = [(epoch, began) for epoch, began in self.histories[:1]]
            return all(other.recovery_epoch < e and other.step <= b for e, b in before)
        later = self.histories[epochs.index(other.recovery_epoch) + 1 :]
        return other.step <= min((began for _, began in later), default=self.step)


class UnknownVersionError(ValueError):
    """A version that is not kept."""


class VersionStore:
    """The versions that are kept, the newest last, and the one that is served.

    A version that is given is served at once, but after a rollback: then what is served stays until
    `release`, and newer versions are kept beside it. A version of steps that the job took back, as
    it went back to an older checkpoint, is kept no longer than until a newer one says so.

    Args:
        keep: how many versions are kept, the served one included.
    """

    def __init__(self, *, keep: int) -> None:
        if keep < 1:
            raise ValueError(f"keep must be >= 1, got {keep}")
        self._keep = keep
        self._versions: OrderedDict[str, Version] = OrderedDict()
        self._served: str | None = None
        self._pinned = False
        self._refused: dict[str, str] = {}

    @property
    def served(self) -> Version | None:
        return None if self._served is None else self._versions[self._served]

    @property
    def newest(self) -> Version | None:
        return next(reversed(self._versions.values()), None)

    @property
    def pinned(self) -> bool:
        """Whether a rollback holds the served version."""
        return self._pinned

    @property
    def kept(self) -> list[Version]:
        """The newest last."""
        return list(self._versions.values())

    @property
    def refused(self) -> dict[str, str]:
        """Why checkpoints were not taken, by name, those alone that were found since the newest."""
        return dict(self._refused)

    @property
    def forms(self) -> set[str]:
        """Names of the folders that kept versions need."""
        return {name for each in self._versions.values() for name in (each.form, each.base)}

    def give(self, version: Version) -> list[Version]:
        """Keep a version, and serve it; return those that are kept no more.

        One that is known already takes the place of the one of its name: its form was made anew.
        """
        known = version.seal in self._versions
        self._versions[version.seal] = version
        if not known:
            self._refused.clear()
            if not self._pinned:
                self._served = version.seal
        gone = self._taken_back(version)
        for seal in list(self._versions):
            if len(self._versions) <= self._keep:
                break
            if seal not in (self._served, version.seal):
                gone.append(self._versions.pop(seal))
        return gone

    def _taken_back(self, newest: Version) -> list[Version]:
        """Keep no version whose steps a newer one does not come from; return those that go."""
        gone: list[Version] = []
        if newest.place < max(each.place for each in self._versions.values()):
            return gone
        for seal, version in list(self._versions.items()):
            if seal != self._served and not newest.has(version):
                gone.append(self._versions.pop(seal))
        return gone

    def refuse(self, checkpoint: str, reason: str) -> None:
        """Note that a checkpoint can't be used."""
        self._refused[checkpoint] = reason

    def rollback(self, step: int | None = None) -> Version:
        """Serve a kept version of this step, None: the one before the served; it stays.

        Raises:
            UnknownVersionError: there is none.
        """
        order = list(self._versions.values())
        if step is None:
            before = order[: order.index(self.served)] if self.served in order else []
            found = before[-1] if before else None
        else:
            found = next((each for each in reversed(order) if each.step == step), None)
        if found is None:
            steps = ", ".join(str(each.step) for each in order) or "none"
            wanted = "no older version" if step is None else f"no version of step {step}"
            raise UnknownVersionError(f"{wanted} is kept; kept are steps {steps}")
        self._served, self._pinned = found.seal, True
        return found

    def release(self) -> Version | None:
        """End a rollback: the newest version is served, and newer ones from then on."""
        self._pinned = False
        if self.newest is not None:
            self._served = self.newest.seal
        return self.served
