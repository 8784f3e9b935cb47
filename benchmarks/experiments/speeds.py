"""How fast jobs from nothing are on a virtual clock, by their length: nothing is trained."""

from dataclasses import replace

from bench.runs import Row, Run
from experiments.figures import table
from scheduler.coordinator.ledger_plan import LedgerPlan
from scheduler.coordinator.modes.rules import ModeOptions
from simulation.fleet import Fleet, FleetSpec, coordinator_spec

WORKERS = (4, 8)
STRAGGLERS = (1, 4)
STEPS = (100, 300, 1000)
BEGUN, PLAIN, SYNC = "gba", "gba, begin_in_sync: false", "sync"


def runs() -> list[Run]:
    """Return what is simulated: M = W, by the number of steps."""
    return [
        Run("E8", {"W": workers, "straggler": slower, "steps": steps, "speed of": what}, 1)
        for workers in WORKERS
        for slower in STRAGGLERS
        for steps in STEPS
        for what in (SYNC, BEGUN, PLAIN)
    ]


def simulate(run: Run) -> Row:
    """Return the batches per second of a job."""
    case = run.case
    workers = case["W"]
    spec = FleetSpec(
        mode="sync" if case["speed of"] == SYNC else "gba",
        workers=workers,
        group_size=workers,
        options=ModeOptions(on_stale="reissue"),
        stragglers=1 / workers if case["straggler"] > 1 else 0.0,
        slower=case["straggler"],
        call_seconds=0.001,
        handle_seconds=0.0001,
        shards=1,
        seed=run.seed,
    )
    begins = case["speed of"] == BEGUN
    plan = LedgerPlan(
        batches_per_epoch=case["steps"] * workers, epochs=1, rows_of=lambda _: 1, lanes=workers
    )
    job = replace(
        coordinator_spec(spec), plan=plan, settles=begins, mode="sync" if begins else spec.mode
    )
    fleet = Fleet(spec, job)
    fleet.finish()
    samples = fleet.coordinator.ledger.samples
    return {
        "batches_per_second": samples.total / fleet.now,
        "dropped": samples.dropped,
        "wall_seconds": 0.0,
    }


def lines(rows: list[Row]) -> list[str]:
    """Return the table, and what it says of long jobs."""
    found = {
        (r["case"]["W"], r["case"]["straggler"], r["case"]["steps"], r["case"]["speed of"]): r
        for r in rows
        if "speed of" in r["case"]
    }
    head = ["W = M", "straggler"]
    for steps in STEPS:
        head += [f"{steps:,} steps: of sync's", "begin_in_sync costs"]
    body = []
    for workers in WORKERS:
        for slower in STRAGGLERS:
            cells = [str(workers), f"{slower} ×" if slower > 1 else "none"]
            for steps in STEPS:
                rates = [
                    found[workers, slower, steps, what]["batches_per_second"]
                    for what in (SYNC, BEGUN, PLAIN)
                    if (workers, slower, steps, what) in found
                ]
                if len(rates) < 3:
                    cells += ["", ""]
                    continue
                sync, begun, plain = rates
                cells += [f"{begun / sync:.2f} ×", f"{100 * (1 - begun / plain):.1f} %"]
            body.append(cells)
    return [*TEXT, "", *table(head, body), ""] if found else []


TEXT = [
    "A job is longer than these, and its first 20 steps count for less. The same clock with"
    " nothing trained, M = W, by the number of steps: how many samples a second `gba` trains to"
    " each of `sync`, and how much slower it is than without `begin_in_sync`. That is the time"
    " of 6 to 8 steps where workers are even and of 45 to 60 with a straggler, once in a job's"
    " life.",
]
