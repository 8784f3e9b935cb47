"""Whether a shard's coordinator was heard lately; time is an argument, in seconds of any clock."""

import math


class CoordinatorLease:
    """The right to answer pulls and to take pushes: every word of the coordinator renews it.

    A shard that is cut off from its coordinator may have been replaced, and only the messages of
    another recovery epoch would tell it so. Who holds no lease answers nobody.

    One thread hears the coordinator, any other may ask.

    Args:
        seconds: for which it holds; None: for ever.
    """

    def __init__(self, seconds: float | None) -> None:
        self._seconds = seconds
        # In which recovery epoch the coordinator was heard, and when: replaced as one.
        self._heard: tuple[int, float] | None = None

    def heard(self, recovery_epoch: int, now: float) -> None:
        """The coordinator of a recovery epoch has said something."""
        self._heard = recovery_epoch, now

    def silence(self, recovery_epoch: int, now: float) -> float | None:
        """Return for how long the coordinator of an epoch is silent, where that is too long.

        Infinity where it was never heard: a shard that entered an epoch, and was cut off and
        replaced before its coordinator spoke, must not answer whoever is cut off with it.
        """
        if self._seconds is None:
            return None
        heard = self._heard
        silent = math.inf if heard is None or heard[0] != recovery_epoch else now - heard[1]
        return silent if silent > self._seconds else None

    def is_late(self, recovery_epoch: int, since: float, now: float) -> bool:
        """Return whether a word of the coordinator that is read now may be older than the lease.

        Where the process stood still, what came meanwhile lies there to be read, and says nothing
        of whether the coordinator is there now.

        Args:
            since: when it proved on this connection who it is.
        """
        if self._seconds is None:
            return False
        heard = self._heard
        if heard is not None and heard[0] == recovery_epoch:
            since = max(since, heard[1])
        return now - since > self._seconds
