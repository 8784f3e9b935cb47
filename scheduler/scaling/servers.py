"""How many servers a job should have: by what they hold, and by how long they apply."""

from dataclasses import replace
from math import ceil
from statistics import fmean

from scheduler.scaling.decisions import Cause, Scaling, ScalingOptions, Window, figures_of

# What a server may be filled up to, and what the others may be after one has gone.
_FULL, _ROOMY = 0.8, 0.6
# Fewer servers are decided on by so many times as many windows as more.
_PATIENCE = 3


class ServerPolicy:
    """Looks at windows, and says how many servers are wanted.

    Rows and dense blocks are spread evenly, so that both what a server holds and how long it
    applies go with 1 / servers.

    Args:
        least, most: bounds of the number.
        held_back: why no decision is carried out; None: they are.
    """

    def __init__(
        self, options: ScalingOptions, *, least: int, most: int, held_back: str | None = None
    ) -> None:
        self._options = options
        self._least, self._most = least, most
        self._held_back = held_back
        self._decisions = 0
        self._decided: int | None = None
        self._wanted, self._agreeing, self._content = 0, 0, 0
        self._open: Scaling | None = None  # what came of it is not known yet
        self._shares: list[float] = []  # that were measured since

    def look(self, window: Window) -> list[Scaling]:
        """Take a window that is over.

        Returns:
            A decision that was made before, with what came of it, and a new one; each may lack.
        """
        return self._came_of_it(window) + self._decide(window)

    def _came_of_it(self, window: Window) -> list[Scaling]:
        """Measure what was decided, for as long as the servers are as many as that."""
        done = self._open
        if done is None or window.servers == done.before:
            return []
        if window.servers != done.after:  # somebody else wants another number
            self._open = None
            return []
        self._shares.append(self._share(done.cause, window))
        if len(self._shares) < self._options.windows:
            return []
        self._open = None
        return [replace(done, realised=fmean(self._shares))]

    def _share(self, cause: Cause, window: Window) -> float:
        """Return how busy, or how full, the server is that a cause is about."""
        budget = self._options.server_memory_bytes
        if cause == "memory" and budget is not None:
            return window.server_bytes / budget
        return window.server_load

    def _decide(self, window: Window) -> list[Scaling]:
        up, cause, reason = self._needed(window, full=_FULL, load=self._options.server_load)
        if up > window.servers:
            return self._after(self._options.windows, up, cause, reason, window)
        down, cause, reason = self._needed(
            window, full=_ROOMY, load=_ROOMY * self._options.server_load
        )
        if down < window.servers:
            patience = _PATIENCE * self._options.windows
            return self._after(patience, down, cause, reason, window)
        self._agreeing = 0
        self._content += 1
        if self._content >= _PATIENCE * self._options.windows:
            self._decided = None  # what is wanted after that is told again
        return []

    def _needed(self, window: Window, *, full: float, load: float) -> tuple[int, Cause, str]:
        """Return how many servers would be filled and busy up to these parts, and by what."""
        by_load = ceil(window.servers * window.server_load / load - 1e-9)
        found: list[tuple[int, Cause, str]] = [
            (by_load, "load", f"the busiest server applies {window.server_load:.0%} of the time")
        ]
        budget = self._options.server_memory_bytes
        if budget is not None:
            needed = ceil(window.servers * window.server_bytes / (budget * full) - 1e-9)
            text = f"the fullest server holds {window.server_bytes:,} of {budget:,} bytes"
            found.append((needed, "memory", text))
        count, cause, reason = max(found, key=lambda each: each[0])
        return min(max(count, self._least, 1), self._most), cause, reason

    def _after(
        self, windows: int, wanted: int, cause: Cause, reason: str, window: Window
    ) -> list[Scaling]:
        """Decide once so many windows in a row want more, or fewer; and once, while it is held."""
        self._content = 0
        same_way = (wanted > window.servers) == (self._wanted > window.servers)
        self._agreeing = self._agreeing + 1 if self._agreeing and same_way else 1
        self._wanted = wanted
        if self._agreeing < windows or self._is_decided(wanted, window.servers):
            return []
        self._agreeing, self._decided = 0, wanted
        self._decisions += 1
        share = self._share(cause, window)
        decision = Scaling(
            number=self._decisions,
            role="server",
            before=window.servers,
            after=wanted,
            cause=cause,
            reason=reason,
            rate=window.rate,
            share=share,
            predicted=share * window.servers / wanted,
            held_back=self._held_back,
            figures=figures_of(window),
        )
        self._open, self._shares = (None if self._held_back else decision), []
        return [decision]

    def _is_decided(self, wanted: int, servers: int) -> bool:
        """Whether as much was decided before, and has not happened."""
        before = self._decided
        if before is None or (before > servers) != (wanted > servers):
            return False
        return abs(wanted - servers) <= abs(before - servers)
