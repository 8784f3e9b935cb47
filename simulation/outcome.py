"""How a simulated job ended."""

from dataclasses import dataclass

from scheduler.coordinator.evaluation import EvaluationResult


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a run ended.

    Args:
        digest: of the model.
        steps, batches: how many were applied or resolved.
        dropped: batches that weighed nothing.
        kills, hangs: workers that died, and threads of them that hung.
        reissued, superseded: batches given out again, and attempts that came too late.
        late_gradients: gradients of evicted keys that were dropped.
        recoveries: how often another recovery epoch began.
        cuts, failed_cuts: how many were written, and could not be.
        promotions, copies: standbys that took the place of their primary, and that were made.
        moves: how often a process moved without a loss; resizes: buckets between shards;
            given_up: and something came between.
    """

    digest: str
    evaluations: tuple[EvaluationResult, ...] = ()
    steps: int = 0
    batches: int = 0
    kills: int = 0
    hangs: int = 0
    dropped: int = 0
    reissued: int = 0
    superseded: int = 0
    late_gradients: int = 0
    recoveries: int = 0
    cuts: int = 0
    failed_cuts: int = 0
    promotions: int = 0
    copies: int = 0
    moves: int = 0
    resizes: int = 0
    given_up: int = 0
    seconds: float = 0.0
