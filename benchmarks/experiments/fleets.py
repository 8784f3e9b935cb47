"""E6: how many workers can one coordinator serve?"""

from bench.fleets import CASES, measure, section
from bench.runs import Experiment, Results, Row, Run, Scale


def plan(scale: Scale, results: Results) -> list[Run]:
    return [Run("E6", case, 1) for case in (CASES[:2] if scale.quick else CASES)]


def simulate(run: Run) -> Row:
    """Simulate one fleet."""
    return {**measure(run.case), "cores_used_by_others": 0.0}


E6 = Experiment(
    name="E6", title="Thousands of workers", plan=plan, section=section, simulate=simulate
)
