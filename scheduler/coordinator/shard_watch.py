"""Notices shards that answer nothing any more; time is an argument, in seconds of any clock."""

import threading
from collections.abc import Iterable

BEAT_SECONDS = 1.0


def server_lease_seconds(limit: float) -> float:
    """Return for how long a shard that does not hear its coordinator may go on to answer workers.

    Half as long as the coordinator waits for it: nobody has its place before it has fallen silent.

    Args:
        limit: of the watch, in seconds.
    """
    return limit / 2


class ShardWatch:
    """When each copy of a shard was asked something, and when it was heard.

    One thread speaks to the shards, any other may ask who is silent. What a shard has to say is
    known only once it is read: while the thread is held up, by a shard that takes nothing more of
    what it is sent, the silence of the others says nothing.

    Args:
        shards: the numbers of the copies.
        limit: seconds for which a shard that was asked something may answer nothing; None: any.
    """

    def __init__(self, shards: Iterable[int], *, limit: float | None) -> None:
        self._limit = limit
        self._lock = threading.Lock()
        self._asked_since: dict[int, float | None] = dict.fromkeys(shards)
        self._heard = dict.fromkeys(self._asked_since, 0.0)
        self._read_until = 0.0
        self._told: set[int] = set()

    def asks(self, shard: int, now: float) -> None:
        """A shard is asked something."""
        with self._lock:
            if self._asked_since[shard] is None:
                self._asked_since[shard] = now

    def heard(self, shard: int, now: float) -> None:
        """A shard has answered something."""
        with self._lock:
            self._asked_since[shard] = None
            self._heard[shard] = now

    def read(self, now: float) -> None:
        """All that the shards have said until now is read."""
        with self._lock:
            self._read_until = now

    def due(self, now: float) -> list[int]:
        """Return the shards that are asked nothing and were not heard of for a while."""
        with self._lock:
            return [
                shard
                for shard, since in self._asked_since.items()
                if since is None and now - self._heard[shard] >= BEAT_SECONDS
            ]

    def newly_silent(self, now: float, *, held_up_by: int | None) -> list[tuple[int, float]]:
        """Return, once each, the shards that are silent, and for how many seconds.

        Args:
            held_up_by: the shard that the thread is just speaking to.
        """
        if self._limit is None:
            return []
        found = []
        with self._lock:
            for shard, since in self._asked_since.items():
                until = now if shard == held_up_by else self._read_until
                if since is None or until - since <= self._limit or shard in self._told:
                    continue
                self._told.add(shard)
                found.append((shard, until - since))
        return found
