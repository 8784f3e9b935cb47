"""What everything in the simulation shares: one event queue, one source of chance, one story."""

import heapq
import math
import random
from collections.abc import Callable
from typing import Literal

from simulation.scenario import Arrow, Scenario
from worker.protocol import Token

Action = Callable[[], None]
Fault = Literal["pause", "hang", "slow", "cut", "lose", "duplicate", "delay", "old_epoch", "relay"]

NETWORK_SECONDS = 0.001
LONG_DELAY_SECONDS = 0.4
AGAIN_SECONDS = 0.05
SHORT_HANG_SECONDS = 4.0


class EventQueue:
    """Actions in the order of their virtual time; ties in the order in which they were added."""

    def __init__(self) -> None:
        self.now = 0.0
        self.done = 0
        self._heap: list[tuple[float, int, Action]] = []
        self._added = 0

    def at(self, time: float, action: Action) -> None:
        heapq.heappush(self._heap, (max(time, self.now), self._added, action))
        self._added += 1

    def later(self, seconds: float, action: Action) -> None:
        self.at(self.now + seconds, action)

    def step(self) -> bool:
        """Run the next action; return False where there is none."""
        if not self._heap:
            return False
        self.now, _, action = heapq.heappop(self._heap)
        self.done += 1
        action()
        return True


class Story:
    """What happened, for people who look at a failure; formatted only then."""

    def __init__(self, queue: EventQueue) -> None:
        self._queue = queue
        self._lines: list[tuple[float, int | None, str, tuple[object, ...]]] = []

    def tell(self, text: str, *values: object, batch: int | None = None) -> None:
        """Add a line; `text` has a %s for each value."""
        self._lines.append((self._queue.now, batch, text, values))

    def of(self, batch: int | None, *, last: int = 40) -> str:
        """Return the lines of a batch and the latest ones of all."""
        chosen = [line for line in self._lines if batch is not None and line[1] == batch]
        parts = [f"the story of batch {batch}:"] if chosen else []
        parts += [_formatted(line) for line in chosen[-2 * last :]]
        parts += ["the latest events:"]
        return "\n".join([*parts, *(_formatted(line) for line in self._lines[-last:])])


def train_batch(token: Token) -> int | None:
    """Return the batch whose story a token belongs to; evaluations have none."""
    return token.batch_id if token.kind == "train" else None


def _formatted(line: tuple[float, int | None, str, tuple[object, ...]]) -> str:
    time, batch, text, values = line
    about = "" if batch is None else f"batch {batch}: "
    return f"  {time:9.4f} {about}{text % values}"


class World:
    """Queue, chance and story of one run; partitions and moves have a chance of their own."""

    def __init__(self, scenario: Scenario) -> None:
        self.scenario = scenario
        self.faults = scenario.faults
        self.queue = EventQueue()
        self.random = random.Random(f"events {scenario.seed}")
        self.partitions = random.Random(f"partitions {scenario.seed}")
        self.moves = random.Random(f"moves {scenario.seed}")
        self.story = Story(self.queue)
        self.num_kills = 0
        self.num_hangs = 0

    def strikes(self, fault: Fault) -> bool:
        """Whether a fault happens here and now."""
        rate: float = getattr(self.faults, fault)
        faulty = rate > 0 and self.queue.now < self.faults.until
        return faulty and self.random.random() < rate

    def kills_at(self, arrow: Arrow) -> bool:
        """Whether a worker dies as it crosses this arrow."""
        faults = self.faults
        if self.num_kills >= faults.max_kills or self.queue.now >= faults.until:
            return False
        rate = faults.kill if faults.kill_at is None else 4 * faults.kill
        if faults.kill_at not in (None, arrow) or self.random.random() >= rate:
            return False
        self.num_kills += 1
        return True

    def hangs_for(self) -> float:
        """Return for how many seconds a thread of a worker hangs from here on; mostly 0."""
        if self.num_hangs >= self.faults.max_hangs or not self.strikes("hang"):
            return 0.0
        self.num_hangs += 1
        return self.random.choice([math.inf, SHORT_HANG_SECONDS * self.random.random()])

    @property
    def fleet_is_slow(self) -> bool:
        """Whether every worker is slow now."""
        first, last = self.faults.fleet_slow or (0.0, 0.0)
        return first <= self.queue.now < last

    def delay(self) -> float:
        """Return how long a message takes, in virtual seconds."""
        usual = NETWORK_SECONDS * self.random.uniform(0.5, 2.0)
        if self.strikes("delay"):
            return usual + LONG_DELAY_SECONDS * self.random.random() ** 2
        return usual
