"""A job that publishes checkpoints and a mirror of them, both of which anything befalls, by a seed.

The job cuts, goes back to an older cut, and removes what it does not keep, while the mirror is in
the midst of fetching; connections break, and the mirror's process dies at any call.
"""

import json
import random
from dataclasses import dataclass, field

from ps.checkpoint.manifest import MANIFEST, Parent
from ps.following.mirror import Facts, GoneError, Mirror
from runtime.strict_json import json_text

KEPT_FULL = 2


class FollowingViolation(AssertionError):
    """A promise of the mirror does not hold."""


class BrokenConnectionError(Exception):
    """The connection is lost in the midst of a call."""


class KilledError(Exception):
    """The mirror's process dies."""


@dataclass(frozen=True, slots=True)
class Published:
    """A checkpoint as the job wrote it; `place` is its recovery epoch and step."""

    name: str
    place: tuple[int, int]
    parent: Parent | None
    files: dict[str, bytes]
    seal: str

    @property
    def manifest(self) -> bytes:
        files = [[path, len(data)] for path, data in self.files.items()]
        parent = None if self.parent is None else [self.parent.name, self.parent.seal]
        return json_text({"seal": self.seal, "parent": parent, "files": files}).encode()


def facts_of(name: str, manifest: bytes) -> Facts:
    found = json.loads(manifest)
    parent = None if found["parent"] is None else Parent(*found["parent"])
    return Facts(found["seal"], parent, tuple((path, size) for path, size in found["files"]))


@dataclass
class Job:
    """Publishes; every piece that is asked for gives it time to do something else."""

    random: random.Random
    there: dict[str, Published] = field(default_factory=dict)
    newest: str = ""
    calm: bool = False
    _epoch: int = 0
    _step: int = 0
    _below: Published | None = None
    _made: int = 0

    def live(self) -> None:
        """Do what a job does, now and then."""
        chance = self.random.random()
        if self.calm or chance > 0.3:
            return
        if chance < 0.03 and self._below is not None:
            # It goes back; the cuts after that were damaged, and are gone.
            for name in [n for n, each in self.there.items() if self.random.random() < 0.5]:
                self._remove(name)
            self._epoch += 1
            self._step = self.random.randrange(self._step + 1)
            self._below = None
        self.cut()

    def cut(self) -> None:
        self._step += 1
        full = self._below is None or self.random.random() < 0.2
        name = f"{'full' if full else 'delta'}-{self._step}"
        while name in self.there:
            name += "+"
        # Files of two histories may be as long.
        files = {
            path: self.random.randbytes(self.random.choice((0, 1, 3, 3)))
            for path in ("rows", "dense")
        }
        below = None if full or self._below is None else Parent(self._below.name, self._below.seal)
        self._made += 1
        made = Published(name, (self._epoch, self._step), below, files, str(self._made))
        self.there[name] = self._below = made
        self.newest = name
        full_ones = [each.name for each in self.there.values() if each.parent is None]
        if len(full_ones) > KEPT_FULL:
            for each in list(self.there)[: list(self.there).index(full_ones[-KEPT_FULL])]:
                self._remove(each)

    def _remove(self, name: str) -> None:
        if name != self.newest:
            del self.there[name]

    # What a mirror asks -----------------------------------------------------------------------

    def piece(self, checkpoint: str, path: str, offset: int) -> tuple[int, bytes]:
        self.live()
        if not self.calm and self.random.random() < 0.02:
            raise BrokenConnectionError
        found = self.there.get(checkpoint)
        if found is None:
            raise GoneError(checkpoint)
        data = found.manifest if path == MANIFEST else found.files[path]
        return len(data), data[offset : offset + self.random.choice((1, 2, 100))]


class Disk:
    """What the mirror keeps; it outlives the mirror's process, what is not finished does not."""

    def __init__(self, job: Job) -> None:
        self.there: dict[str, tuple[dict[str, bytes], bytes]] = {}
        self._job = job
        self._name = ""
        self._begun: dict[str, bytes] = {}
        self._written: dict[str, Published] = {}  # by seal

    def _may_die(self) -> None:
        if not self._job.calm and self._job.random.random() < 0.01:
            raise KilledError

    def names(self) -> list[str]:
        return list(self.there)

    def manifest(self, name: str) -> bytes | None:
        found = self.there.get(name)
        return None if found is None else found[1]

    def begin(self, name: str) -> None:
        self._may_die()
        self._name, self._begun = name, {}

    def append(self, path: str, data: bytes) -> None:
        self._may_die()
        self._begun[path] = self._begun.get(path, b"") + data

    def finish(self, manifest: bytes) -> None:
        self._may_die()
        if self._name in self.there:
            raise FollowingViolation(f"{self._name} is written over one that is there")
        self.there[self._name] = (self._begun, manifest)
        self._may_die()

    def remove(self, name: str) -> None:
        self._may_die()
        del self.there[name]
        self._may_die()


class Checked(Disk):
    """Looks at all that is there whenever that changes."""

    def __init__(self, job: Job, history: dict[str, Published]) -> None:
        super().__init__(job)
        self._history = history

    def finish(self, manifest: bytes) -> None:
        try:
            super().finish(manifest)
        finally:
            self._check()

    def remove(self, name: str) -> None:
        try:
            super().remove(name)
        finally:
            self._check()

    def _check(self) -> None:
        for name, (files, manifest) in self.there.items():
            facts = facts_of(name, manifest)
            right = self._history[facts.seal]
            if right.name != name or right.files != files:
                raise FollowingViolation(f"{name} is not what the job wrote: {files}")
            if facts.parent is not None:
                parent = self.there.get(facts.parent.name)
                if parent is None or facts_of(name, parent[1]).seal != facts.parent.seal:
                    raise FollowingViolation(f"{name} does not lie on its {facts.parent.name}")


class Recorded(dict[str, Published]):
    """What a job has published, by name; `history` by seal."""

    def __init__(self) -> None:
        super().__init__()
        self.history: dict[str, Published] = {}

    def __setitem__(self, name: str, made: Published) -> None:
        self.history[made.seal] = made
        super().__setitem__(name, made)


def follow(seed: int, mirror: type[Mirror] = Mirror, *, rounds: int = 60) -> int:
    """Have a mirror follow a job for a while, then in peace; return how many times it died.

    Raises:
        FollowingViolation: a promise does not hold.
    """
    there = Recorded()
    job = Job(random.Random(seed), there=there)
    disk = Checked(job, there.history)
    job.cut()
    deaths, brought = 0, (-1, -1)
    process: Mirror | None = None
    for number in range(rounds):
        job.calm = number > rounds - 4
        job.live()
        name = job.newest
        try:
            process = process or mirror(job, disk, facts_of)
            process.bring(name)
        except (GoneError, BrokenConnectionError):
            continue
        except KilledError:
            process, deaths = None, deaths + 1
            continue
        seal = facts_of(name, disk.there[name][1]).seal
        place = there.history[seal].place
        if place < brought:
            raise FollowingViolation(f"{place} came after {brought}")
        brought = place
    if job.newest not in disk.there:
        raise FollowingViolation(f"it never came to {job.newest}")
    needed, below = 0, there.get(job.newest)
    while below is not None:
        needed += 1
        below = None if below.parent is None else there.get(below.parent.name)
    if len(disk.there) > 2 * needed:
        raise FollowingViolation(f"{len(disk.there)} are kept, {needed} are needed")
    return deaths
