"""What a run writes of its figures keeps its names: others read these files."""

import json
from dataclasses import replace
from typing import Any

import pytest

from ps.server.figures import ServerFigures, TableFigures
from runtime.process_figures import ProcessFigures
from runtime.strict_json import json_text
from scheduler.coordinator.clock import ClockState
from scheduler.coordinator.coordinator_state import CoordinatorState
from scheduler.coordinator.evaluation import EvaluationResult
from scheduler.coordinator.ledger_state import LedgerState, Samples, Tallies
from scheduler.coordinator.mode_control import ModeState
from scheduler.coordinator.modes.shift import Shift
from scheduler.coordinator.staleness import Histogram
from scheduler.coordinator.state import WorkerFigures
from scheduler.coordinator.status import Status
from scheduler.job.config import JobConfig
from scheduler.run.metrics import IntervalReport, make_result, reached
from scheduler.run.recoveries import DrainNotice, RecoveryFigures, ServerMove

CONFIG = JobConfig.from_dict(
    {
        "data": {"train": "x", "sparse": ["a"]},
        "model": {"type": "wide_deep"},
        "run": {"dir": "run"},
    }
)
SHIFT = Shift(
    step=3, samples=24, seconds=2.0, from_mode="sync", to_mode="gba", cause="control",
    reason="asked for", reissued=1,
)  # fmt: skip
STATUS = Status(
    mode="gba",
    applied_step=4,
    applied_samples=24,
    clock=3,
    train_seconds=4.0,
    samples=Samples(applied=32, dropped=8, skipped=8, skipped_by_reason={"bad_file": 8}),
    batches=Tallies(leased=7, done=5, applied=4, dropped=1, skipped=1, reissued=2, superseded=3),
    loss_sum=16.0,
    loss_samples=32,
    data_staleness=Histogram({-1: 1, 0: 3}),
    parameter_staleness=Histogram({2: 4}),
    workers={
        0: WorkerFigures(
            batches=4, samples=32, seconds=2.0,
            process=ProcessFigures(
                peak_rss_bytes=70, bytes_sent=5, bytes_received=6, cpu_seconds=1.5,
                stage_seconds={"read": 0.5},
            ),
        ),
    },
    shard_lag=(1,),
    shifts=(SHIFT,),
    evaluations=(EvaluationResult(4, 3, 0.75, 0.001, 0.5, 100),),
    peak_rss_bytes=90,
    cpu_seconds=0.25,
)  # fmt: skip
SERVER_MOVE = ServerMove(
    time=1.0, step=7, before=2, after=3, buckets=1365, rounds=3, rows=40, bytes=4000,
    rows_in_pause=4, bytes_in_pause=400, seconds=5.0, pause_seconds=0.5,
)  # fmt: skip
RECOVERY = RecoveryFigures(
    time=8.0, cause="server 0 died", from_step=3, to_step=1, redone_steps=2, redone_samples=16,
    seconds=1.5,
)  # fmt: skip
SERVERS = [
    ServerFigures(
        tables={"a": TableFigures(rows=4, unadmitted=2, evicted=1, non_finite=3, bytes=64)},
        dense_non_finite=2,
        gradients_of_evicted_keys=5,
        process=ProcessFigures(
            peak_rss_bytes=80, bytes_sent=7, bytes_received=8, cpu_seconds=1.0,
            stage_seconds={"apply": 0.5},
        ),
    )
]  # fmt: skip
BATCHES = {
    "leased": 7, "done": 5, "applied": 4, "dropped": 1, "skipped": 1, "reissued": 2,
    "superseded": 3,
}  # fmt: skip
STALENESS = {
    "data": {"mean": -0.25, "p50": 0, "p99": 0, "max": 0},
    "parameter": {"mean": 2.0, "p50": 2, "p99": 2, "max": 2},
}


def written(figures: dict[str, Any]) -> Any:
    """What is read of a line; the order of its keys stays."""
    return json.loads(json_text(figures))


def test_a_line_of_metrics_has_these_keys_in_this_order(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("scheduler.run.metrics.time.time", lambda: 9.0)

    line = json_text(IntervalReport(CONFIG).line(STATUS, SERVERS, [RECOVERY], [{"role": "worker"}]))

    assert line == json_text(
        {
            "time": 9.0,
            "train_seconds": 4.0,
            "global_step": 4,
            "clock": 3,
            "mode": "gba",
            "shifts": [
                {
                    "step": 3, "samples": 24, "seconds": 2.0, "from_mode": "sync",
                    "to_mode": "gba", "cause": "control", "reason": "asked for", "reissued": 1,
                    "sync_rate": None, "gba_rate": None, "seconds_to_next_step": None,
                }
            ],
            "recoveries": [
                {
                    "time": 8.0, "cause": "server 0 died", "from_step": 3, "to_step": 1,
                    "redone_steps": 2, "redone_samples": 16, "seconds": 1.5,
                    "promoted": (), "kind": "loss",
                }
            ],
            "scalings": [{"role": "worker"}],
            "workers_wanted": 0,
            "drains": [],
            "servers": 1,
            "server_moves": [],
            "load_skew": None,
            "rebalancings": [],
            "worker_restarts": 0,
            "predicted": None,
            "learning_rate": {
                "embedding": CONFIG.embedding.optimizer.learning_rate,
                "model": CONFIG.model.optimizer.learning_rate,
            },
            "samples": 32, "applied_samples": 24,
            "samples_dropped": 8,
            "samples_skipped": 8,
            "skipped_by_reason": {"bad_file": 8},
            "batches_dropped": 1,
            "batches_reissued": 2,
            "samples_per_second": 8.0,
            "train_loss": 0.5,
            "eval_auc": 0.75,
            "eval_auc_error_bound": 0.001,
            "eval_logloss": 0.5,
            "eval_step": 4,
            "windows": [],
            "stream": None,
            "staleness": STALENESS,
            "staleness_of_interval": {"data": {"-1": 1, "0": 3}, "parameter": {"2": 4}},
            "batches": BATCHES,
            "workers": {
                "0": {
                    "batches": 4, "samples": 32, "batch_seconds": 0.5, "share": 1.0, "lost": False,
                }
            },
            "all_workers": {
                "count": 1, "lost": 0, "batches": 4, "samples": 32,
                "batch_seconds": {"mean": 0.5, "p50": 0.5, "p99": 0.5, "max": 0.5},
            },
            "together": {},
            "standbys": 0,
            "shard_lag": [1],
            "rows": {"a": 4},
            "new_keys_per_sample": {"a": None},
            "table_bytes": {"a": 64},
            "non_finite": {"a": 3},
            "dense_non_finite": 2,
            "peak_rss_bytes": {"worker": [70], "server": [80], "coordinator": [90]},
            "wire_bytes": {
                "pushed_and_pulled_by_workers": 11, "sent_by_servers": [7],
                "received_by_servers": [8],
            },
            "cpu_seconds": {"worker": [1.5], "server": [1.0], "coordinator": [0.25]},
            "stage_seconds": {"worker": [{"read": 0.5}], "server": [{"apply": 0.5}]},
        }
    )  # fmt: skip


def test_a_line_before_anything_has_happened_has_all_its_keys() -> None:
    first = IntervalReport(CONFIG).line(Status(), [])

    assert list(first) == list(IntervalReport(CONFIG).line(STATUS, SERVERS))
    assert (first["samples_per_second"], first["train_loss"], first["eval_auc"]) == (None,) * 3


def test_the_first_line_after_a_return_counts_from_the_state_that_the_job_went_on_from() -> None:
    state = CoordinatorState(
        step=2,
        ledger=LedgerState(),
        modes=ModeState(mode="gba"),
        clock=ClockState(),
        data_staleness=((0, 7), (1, 2)),
        parameter_staleness=((3, 9),),
    )
    now = replace(STATUS, data_staleness=Histogram({0: 8, 1: 2}),
                  parameter_staleness=Histogram({3: 9, 4: 1}))  # fmt: skip
    for before in (None, replace(STATUS, data_staleness=Histogram({0: 50}))):
        interval = IntervalReport(CONFIG)
        if before is not None:  # that went further
            interval.line(before, SERVERS)
        interval.begin_at(state)

        line = interval.line(now, SERVERS)

        assert line["staleness_of_interval"] == {"data": {"0": 1}, "parameter": {"4": 1}}


def test_a_result_names_its_figures_as_ever() -> None:
    result = written(
        make_result(
            config=CONFIG, status=STATUS, servers=SERVERS, model_digest="d", peak_rss_bytes={},
            processes=[], worker_restarts=0, workers_moved=2, recoveries=[RECOVERY, RECOVERY],
            drains=[DrainNotice(7.0, "n", None, ("server 0",))], scalings=[], checkpoint="c",
            server_moves=[SERVER_MOVE], rebalancings=[],
            skipped_files={}, started_at={}, lost_writes={},
        )
    )  # fmt: skip

    assert list(result) == [
        "name", "mode", "samples_trained", "samples_dropped", "samples_skipped",
        "skipped_by_reason", "skipped_files", "stream", "stopped", "epochs", "global_step",
        "started_at", "lost_writes", "train_seconds", "samples_per_second", "train_loss", "eval",
        "evaluations", "mode_history",
        "staleness", "dropped_contributions", "reissued_batches", "dense_non_finite",
        "gradients_of_evicted_keys", "ledger", "worker_restarts", "workers_moved",
        "recoveries", "scalings", "drains", "server_moves", "rebalancings", "recovery_seconds",
        "redone_steps", "redone_samples", "promotions", "standbys", "workers", "tables",
        "model_digest", "peak_rss_bytes",
        "cpu_seconds", "stage_seconds", "wire_bytes", "processes", "checkpoint", "versions", "seed",
    ]  # fmt: skip
    assert result["samples_trained"] == 32
    assert len(result["recoveries"]) == 2
    sums = result["recovery_seconds"], result["redone_steps"], result["redone_samples"]
    assert sums == (3.0, 4, 32)
    assert [move["pause_seconds"] for move in result["server_moves"]] == [0.5]
    assert result["drains"] == [
        {"time": 7.0, "node": "n", "seconds_left": None, "processes": ["server 0"]}
    ]
    assert result["staleness"] == STALENESS
    assert result["ledger"] == BATCHES
    assert result["workers"] == {"0": {"batches": 4, "samples": 32, "seconds": 2.0}}
    assert result["tables"] == {
        "a": {
            "rows": 4, "admitted": 4, "unadmitted": 2, "evicted": 1, "non_finite": 3, "bytes": 64,
        }
    }  # fmt: skip
    assert result["wire_bytes"] == {"server-0": {"sent": 7, "received": 8}}
    assert (result["dense_non_finite"], result["gradients_of_evicted_keys"]) == (2, 5)


def test_a_job_that_failed_says_how_far_it_came() -> None:
    assert written(reached(STATUS)) == {
        "global_step": 4,
        "applied_samples": 24,
        "samples": {
            "applied": 32, "dropped": 8, "skipped": 8, "skipped_by_reason": {"bad_file": 8},
        },
        "evaluations": [
            {"step": 4, "clock": 3, "auc": 0.75, "auc_error_bound": 0.001, "logloss": 0.5}
        ],
    }  # fmt: skip
