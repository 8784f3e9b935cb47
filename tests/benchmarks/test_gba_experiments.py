"""The runner of the experiments on modes: what it runs, what it leaves out, and what it writes."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from command_here import run_here
from gba_experiments import main

from bench.runs import Experiment, Results, Row, Run, Scale, carry_out
from bench.virtual_job import Trained, VirtualJob
from experiments import speeds
from experiments.ablation import E5
from experiments.beginning import E8
from experiments.bounds import E4
from experiments.fleets import E6
from experiments.lost_tokens import Setting, play
from experiments.more_beginnings import E9
from experiments.page import Facts, page, renewed
from experiments.parity import E1
from experiments.stale import E7
from experiments.stragglers import E2
from experiments.switching import E3, oracle_seconds, straggler_window
from scheduler import JobConfig
from scheduler.driver.resolved import resolve
from worker.datasets.synthetic import CriteoLike, write_criteo_like

ROOT = Path(__file__).parents[2]
FACTS = Facts(options="--seeds 2", machine="Measured on 2 cores.")
EXPERIMENTS = pytest.mark.parametrize("experiment", [E1, E2, E3, E4, E5], ids=lambda e: e.name)
INTERVALS = [
    {
        "seconds": t,
        "samples": 100 * t,
        "mode": "sync",
        "batch_seconds": {"0": s, "1": 0.1, "2": 0.1},
    }
    for t, s in enumerate([0.1, 0.1, 0.8, 0.8, 0.8, 0.1, 0.1], start=1)
]
SHIFT = {
    "mode": "gba", "from_step": 7, "seconds": 1.0, "samples_per_second": 900.0,
    "reissued_batches": 3, "seconds_to_next_step": 0.25, "reason": "r",
    "predicted_sync_samples_per_second": 100.0, "predicted_gba_samples_per_second": 300.0,
}  # fmt: skip
Train = Callable[[Run], Row]


@pytest.fixture(autouse=True)
def _in_the_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)


@pytest.fixture
def scale(tmp_path: Path) -> Scale:
    return Scale(out=tmp_path, data=tmp_path / "data", rows=1_000_000, seeds=2)


@pytest.fixture
def results(tmp_path: Path) -> Results:
    return Results(tmp_path / "results.jsonl")


def mode_of(run: Run) -> str:
    return next(o.partition("=")[2] for o in run.overrides if o.startswith("training.mode="))


def training(auc: Callable[[Run], float] = lambda run: 0.77) -> Train:
    """What trains nothing and finds these AUCs."""

    def train(run: Run) -> Row:
        stale = {kind: {"mean": 1.0, "p99": 3, "max": 4} for kind in ("data", "parameter")}
        return {
            "auc": auc(run), "logloss": 0.46, "samples_per_second": 1000.0, "train_seconds": 2.0,
            "wall_seconds": 6.0, "samples": 2000, "samples_dropped": 0, "reissued": 0,
            "staleness": stale, "cores_used": 1.0, "cores_used_by_others": 0.0,
            "model_digest": "00", "intervals": INTERVALS, "samples_trained": 2000,
            "evaluations": [{"auc": 0.7}, {"auc": 0.71}],
            "mode_history": [{"mode": "sync", "seconds": 1.0}, SHIFT],
        }  # fmt: skip

    return train


def refuse(run: Run) -> Row:
    raise AssertionError(f"{run.label()} is run though it has finished")


@EXPERIMENTS
def test_every_run_is_a_valid_job(experiment: Experiment, scale: Scale, results: Results) -> None:
    runs = [run for run in experiment.plan(scale, results) if run.job]

    jobs = [JobConfig.from_yaml(run.job, [*run.overrides, f"seed={run.seed}"]) for run in runs]

    assert len({run.key for run in runs}) == len(jobs) > 10


def test_what_has_finished_is_not_run_again(scale: Scale, results: Results, tmp_path: Path) -> None:
    carry_out(E2, scale, results, training())

    carry_out(E2, scale, Results(tmp_path / "results.jsonl"), refuse)


def test_a_line_that_was_cut_off_is_run_again_and_hides_no_other(
    scale: Scale, results: Results, tmp_path: Path
) -> None:
    carry_out(E2, scale, results, training())
    file = tmp_path / "results.jsonl"
    file.write_text(file.read_text()[:-20])
    again: list[Run] = []

    def train(run: Run) -> Row:
        again.append(run)
        return training()(run)

    carry_out(E2, scale, Results(file), train)
    carry_out(E2, scale, Results(file), refuse)

    assert len(again) == 1


def test_a_run_is_known_by_its_settings_and_not_by_its_name(tmp_path: Path) -> None:
    job = tmp_path / "job.yaml"
    job.write_text("seed: 1")
    run = Run("E1", {"mode": "sync"}, 1, str(job), ("training.mode=sync",))
    key = run.key

    assert Run("E1", {"called": "sync"}, 1, str(job), ("training.mode=sync",)).key == key
    assert Run("E1", {"mode": "sync"}, 2, str(job), ("training.mode=sync",)).key != key
    assert Run("E1", {"mode": "sync"}, 1, str(job), ("training.mode=gba",)).key != key
    job.write_text("seed: 2")
    assert run.key != key


def test_the_learning_rate_that_async_does_best_with_is_run_on_every_seed(
    scale: Scale, results: Results
) -> None:
    def auc(run: Run) -> float:
        return 0.78 if run.case.get("learning rate") == "× 0.5" else 0.77

    carry_out(E1, scale, results, training(auc))

    done = [run for run in E1.plan(scale, results) if run.case["task"] == "DLRM"]
    tuned = [run.seed for run in done if run.case["learning rate"] == "× 0.5"]
    assert tuned == [1, 2]
    assert [run.seed for run in done if run.case["learning rate"] == "× 2"] == [1]


@EXPERIMENTS
def test_the_page_tells_what_has_not_been_run(
    experiment: Experiment, scale: Scale, results: Results
) -> None:
    runs = [run for run in experiment.plan(scale, results) if run.job]
    for run in runs[:4]:
        results.add(run, training()(run))

    text = page([experiment], scale, results, FACTS)

    planned = len(experiment.plan(scale, results))
    assert f"{planned - 4} more runs are planned and have not been done" in text.replace("\n", " ")


@pytest.mark.parametrize(("gba", "words"), [(0.001, "above sync"), (-0.001, "below sync")])
@pytest.mark.parametrize(("spread", "where"), [(0.01, "within"), (0.0001, "outside")])
def test_the_verdict_on_parity_follows_from_the_figures(
    scale: Scale, results: Results, gba: float, words: str, spread: float, where: str
) -> None:
    def auc(run: Run) -> float:
        return 0.77 + run.seed * spread + (gba if mode_of(run) == "gba" else 0.0)

    carry_out(E1, scale, results, training(auc))

    text = page([E1], scale, results, FACTS).replace("\n", " ")
    verdict = text[text.index("DLRM: gba") :]
    assert verdict.startswith(f"DLRM: gba (learning rate × 1) is 0.0010 {words} on average")
    assert f"{words.split()[0]} on every seed" in verdict[: verdict.index(";")]
    assert f"{where} sync's spread" in verdict[: verdict.index(";")]


def test_the_page_of_stragglers_says_how_much_faster_gba_is(scale: Scale, results: Results) -> None:
    def train(run: Run) -> Row:
        fast = 2.5 if mode_of(run) == "gba" else 1.0
        return {**training()(run), "samples_per_second": 1000.0 * fast}

    carry_out(E2, scale, results, train)

    text = page([E2], scale, results, FACTS)
    assert "gba trains 2.50 times the samples/s of sync" in text.replace("\n", " ")


def test_lost_tokens_disable_the_filter_and_reissued_ones_do_not() -> None:
    kept, lost = (
        play(Setting(workers=4, m=4, steps=200, lost=0.1, reissue=reissue), seed=1)[-1]
        for reissue in (True, False)
    )

    assert kept.dropped > 0
    assert lost.dropped == 0
    assert lost.staleness / lost.batches < -10 < kept.staleness / kept.batches


def test_one_experiment_is_renewed_alone() -> None:
    old = "head\n\n## E1: One\n\nfirst\n\n## E10: Ten\n\ntenth\n"

    assert renewed(old, "new head\n\n## E2: Two\n\nsecond\n") == (
        "head\n\n## E1: One\n\nfirst\n\n## E2: Two\n\nsecond\n\n## E10: Ten\n\ntenth\n\n"
    )
    assert "first" not in renewed(old, "## E1: One\n\nfirst again\n").replace("first again", "")
    everything = "new\n\n## E1: One\n\na\n\n## E10: Ten\n\nb\n\n"
    assert renewed(old, everything) == everything


@pytest.mark.parametrize("arguments", [["E99"], ["--criteo", "nowhere"]])
def test_a_wrong_call_is_refused(arguments: list[str]) -> None:
    done = run_here(*arguments, main=main)

    assert done.returncode == 2
    assert "error:" in done.stderr
    assert "Traceback" not in done.stderr


def test_the_straggler_is_seen_in_the_times_of_its_batches() -> None:
    assert straggler_window(INTERVALS) == (3, 5)
    assert straggler_window(INTERVALS[:2]) is None


def test_the_oracle_changes_the_mode_at_exactly_the_right_moments() -> None:
    def at(samples: list[int]) -> list[Row]:
        return [{"seconds": float(t), "samples": n} for t, n in enumerate(samples)]

    # 100 a second, 10 while the straggler is there; gba 90 all the time.
    sync = at([0, 100, 200, 210, 220, 320, 420])
    gba = at([0, 90, 180, 270, 360, 450, 540])

    seconds = oracle_seconds(sync, gba, (2.0, 4.0), samples=480)

    assert seconds == pytest.approx(4 + (480 - 200 - 180) / 100)
    assert oracle_seconds(sync, gba, (2.0, 4.0), samples=290) == pytest.approx(3)


def test_the_page_tells_each_shift_with_what_was_predicted_and_realised(
    scale: Scale, results: Results
) -> None:
    carry_out(E3, scale, results, training())

    text = " ".join(page([E3], scale, results, FACTS).split())

    assert "step 7: to gba, predicted 100 samples/s in sync and 300 in gba, realised" in text
    assert "straggler was there from second 3 to 5" in text
    assert "0.25 (0.25)" in text, "what the shifts cost"


def test_fleets_are_simulated_and_the_page_says_what_one_coordinator_serves(
    scale: Scale, results: Results
) -> None:
    stale = {"mean": 1.0, "p99": 3, "max": 4}

    def simulate(run: Run) -> Row:
        return {
            "us_per_report": 50.0, "us_per_report_p50": 40.0, "us_per_report_p99": 90.0,
            "us_per_batch": 50.0, "batches_per_report": 1.0, "batches_per_second": 300.0,
            "batches_per_second_without_waiting": 320.0, "steps_per_second": 19.0, "busy": 0.5,
            "data_staleness": stale, "parameter_staleness": stale, "wall_seconds": 1.0,
        }  # fmt: skip

    carry_out(replace(E6, simulate=simulate), scale, results, refuse)

    text = " ".join(page([E6], scale, results, FACTS).split())
    assert "up to 7,692 batches/s with a report for each, that is 385 workers" in text
    assert "20,000 without what sockets cost. 4,096 workers of this kind make 81,920" in text


def test_the_verdict_on_a_job_from_nothing_counts_settings_that_lose_too_much(
    scale: Scale, results: Results, monkeypatch: pytest.MonkeyPatch
) -> None:
    def simulate(run: Run) -> Row:
        if "speed of" in run.case:
            rate = {"sync": 1000.0, "gba": 2600.0}.get(run.case["speed of"], 3000.0)
            return {"batches_per_second": rate, "dropped": 0, "wall_seconds": 1.0}
        gba = run.case["mode"] == "gba"
        lost = 0.002 if gba and (run.case["W"], run.case["task"]) == (8, "DLRM") else 0.0
        return {
            "auc": 0.7 + run.seed / 1000 - lost, "parameter_staleness": [1.0, 2.0],
            "dropped": 0, "reissued": 4, "wall_seconds": 1.0,
        }  # fmt: skip

    monkeypatch.setattr("experiments.more_beginnings.find_spec", lambda name: "found")
    for experiment in (E8, E9):
        carry_out(replace(experiment, simulate=simulate), scale, results, refuse)

    text = " ".join(page([E8], scale, results, FACTS).split())
    assert "16 settings: 4 of them with a mean loss of 0.001 of AUC or more" in text
    assert "The worst mean is −0.0020 (DLRM, W = 8, M = 8, even workers). 0 samples" in text
    assert "| 4 | 4 × | 2.60 × | 13.3 % | 2.60 × | 13.3 % |" in text
    more = " ".join(page([E9], scale, results, FACTS).split())
    assert "| DLRM | 8 | 8 | none | 15 | 0.7080 | 0.7060 | −0.0020 ± 0.0000 |" in more
    assert "| torch: DCN v2 | 4 | 4 | 4 × | 5 | 0.7030 | 0.7030 | +0.0000 ± 0.0000 |" in more


def test_gba_is_faster_than_sync_on_the_virtual_clock_where_a_worker_is_slow() -> None:
    case = {"W": 4, "straggler": 4, "steps": 100}
    sync, begun, plain = (
        speeds.simulate(Run("E8", {**case, "speed of": what}, 1))["batches_per_second"]
        for what in (speeds.SYNC, speeds.BEGUN, speeds.PLAIN)
    )

    assert plain > 2.8 * sync
    assert 1.5 * sync < begun < plain


def test_the_table_of_effects_pairs_each_case_with_its_own_base(
    scale: Scale, results: Results
) -> None:
    def simulate(run: Run) -> Row:
        lost = {"all one step": 0.003, "sync, sums of squares begin at 0.1": 0.01}
        auc = 0.7 + run.seed / 1000 - lost.get(run.case["case"], 0.0)
        return {"auc": auc, "dense_squares": 1e-3, "wall_seconds": 1.0}

    carry_out(replace(E7, simulate=simulate), scale, results, refuse)

    lines = page([E7], scale, results, FACTS).splitlines()
    by_case = {line.split("|")[1].strip(): line for line in lines if line.startswith("|")}
    assert "| −0.0030 ± 0.0000 |" in by_case["all one step"]
    against = "one step, sums of squares begin at 0.1, against `sync, sums of squares begin at 0.1`"
    assert "| +0.0100 ± 0.0000 |" in by_case[against]


def test_a_job_on_the_virtual_clock_is_the_same_in_every_run_and_in_sync_whoever_is_slow(
    tmp_path: Path,
) -> None:
    write_criteo_like(tmp_path, CriteoLike(rows=3000, test_rows=500, files=2))

    def trained(mode: str, slower: float) -> Trained:
        config = JobConfig.from_yaml(
            "jobs/gba/dlrm.yaml",
            [
                f"data.train={tmp_path}/train/*.parquet", f"data.eval={tmp_path}/test/*.parquet",
                "data.batch_size=32", "training.global_batch=64", "cluster.workers=3",
                f"training.mode={mode}",
            ],
        )  # fmt: skip
        return VirtualJob(resolve(config), slower=slower, seed=1, prepared={}).run()

    assert trained("gba", 4.0) == trained("gba", 4.0)
    even, slow = (trained("sync", slower) for slower in (1.0, 4.0))
    assert even.auc == slow.auc
    assert even.samples_per_second > 1.5 * slow.samples_per_second
    assert even.parameter_staleness == (0.0, 0)
    assert trained("gba", 1.0).gba_from == 20 * 64
