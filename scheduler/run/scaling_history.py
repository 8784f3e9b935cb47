"""What was decided on the number of workers and servers, as metrics and results have it."""

from collections import Counter
from dataclasses import asdict
from typing import Any

from scheduler.scaling.decisions import Role, Scaling, ScalingView

# The latest; of those before only the counts are kept.
MOST_DECISIONS = 1000


class ScalingHistory:
    """Decisions in their order, each with what came of it once that is known."""

    def __init__(self) -> None:
        self._decisions: dict[tuple[Role, int], Scaling] = {}
        self._counts: Counter[tuple[str, str]] = Counter()
        self._news: dict[tuple[Role, int], Scaling] = {}

    def add(self, decision: Scaling) -> None:
        """Take a decision, or one that was taken before with what came of it."""
        name = decision.role, decision.number
        if name not in self._decisions:
            self._counts[decision.role, decision.cause] += 1
        self._decisions[name] = self._news[name] = decision
        while len(self._decisions) > MOST_DECISIONS:
            del self._decisions[next(iter(self._decisions))]

    def news(self) -> list[dict[str, Any]]:
        """Return what is new or better known since the last call."""
        news, self._news = self._news, {}
        return [asdict(decision) for decision in news.values()]

    def all(self) -> list[dict[str, Any]]:
        """Return the latest decisions, in their order."""
        return [asdict(decision) for decision in self._decisions.values()]

    def view(self, why: str, *, servers: int) -> ScalingView:
        """Return what is shown of it.

        Args:
            why: there are as many workers as there are.
            servers: that there are.
        """
        of_workers = [d for (role, _), d in self._decisions.items() if role == "worker"]
        of_servers = [d for (role, _), d in self._decisions.items() if role == "server"]
        return ScalingView(
            why=why,
            last=of_workers[-1] if of_workers else None,
            last_of_servers=of_servers[-1] if of_servers else None,
            servers=servers,
            counts=tuple((role, cause, n) for (role, cause), n in sorted(self._counts.items())),
        )
