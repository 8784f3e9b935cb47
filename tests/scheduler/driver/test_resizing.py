"""Jobs whose servers change in number while they train, in threads: what moves, what may fail."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import ray
from held_back import hold_back
from held_end import count_hand_overs, hold_the_end, order, pause
from ray_of_threads import Handle, RayOfThreads
from saved_job import saved_job

import scheduler.driver.trainer
from ps.server.data_plane import DataPlane
from ps.server.server import ShardServer
from scheduler import JobConfig, Trainer
from scheduler.coordinator.events import PauseWanted, ServersWanted, ShiftWanted, WorkersWanted
from scheduler.driver.epochs import Epochs
from scheduler.driver.processes import Processes
from scheduler.driver.resizing import Resizing
from scheduler.driver.supervisor import Supervisor

LATE_STEP, LATE_ASYNC_STEP = 30, 130  # of 40, of 158
# Of a batch, while there is something to move.
SECONDS = 0.1


@pytest.fixture
def fake(jobs_in_threads: RayOfThreads, monkeypatch: pytest.MonkeyPatch) -> Iterator[RayOfThreads]:
    monkeypatch.setattr("scheduler.driver.resizing.FIRST_PAUSE_SECONDS", 0.1)
    jobs_in_threads.handles.clear()
    yield jobs_in_threads
    for handle in jobs_in_threads.handles:  # who was killed lives on
        if handle.killed and isinstance(getattr(handle.instance, "_plane", None), DataPlane):
            handle.instance.close()


def job(samples: Path, run: Path, servers: int = 2, **sections: Any) -> JobConfig:
    options = {
        "cluster": {"workers": 2, "servers": servers},
        "checkpoint": {"every_steps": 7, "every_seconds": None, "full_every": 1},
        **sections,
    }
    return JobConfig.from_dict(saved_job(samples, run, **options))


@pytest.fixture(scope="module")
def calm(
    samples: Path, tmp_path_factory: pytest.TempPathFactory, jobs_in_threads: RayOfThreads
) -> dict[str, Any]:
    """What the job comes to with the same servers all the time."""
    return Trainer(job(samples, tmp_path_factory.mktemp("calm") / "run")).fit().metrics


class Steps:
    """Does things to a job at chosen steps and in chosen stages of a change, each once.

    A job that is due to move does not end before it has: from its first step on it is slow until
    then, and paused late in its run, which changes no bit.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.at_step: dict[int, Callable[[Supervisor], None]] = {}
        self.in_stage: dict[str, Callable[[Resizing], None]] = {}
        self.stages: list[str] = []
        self.later: list[Callable[[Supervisor], None]] = []  # at the next look
        self.due = 0  # moves that the job is to make before it ends
        self.late_step = LATE_STEP
        self.epochs = 0  # recovery epochs that have begun
        self.trains_on = False  # whether a step is trained while a cut is taken in
        made = count_hand_overs(monkeypatch)
        status_of, look, begin_epoch = Supervisor.status, Resizing.look, Resizing.begin_epoch

        def status(supervisor: Supervisor) -> Any:
            found = status_of(supervisor)
            later, self.later = self.later, []
            for act in later:
                act(supervisor)
            for step in [step for step in self.at_step if step <= found.applied_step]:
                self.at_step.pop(step)(supervisor)
            return found

        def looked(resizing: Resizing, status: Any, **options: Any) -> None:
            stage = resizing._work.__name__.strip("_")
            trains = self.epochs > 1 and not status.paused
            if stage == "idle" and trains and resizing._begun_step == status.applied_step:
                return  # what moves before the first step after a loss belongs to that
            stands = status.paused or resizing.stands_still
            level = not stands and status.step <= resizing._taken_step
            if self.trains_on and stage == "await_taken" and level:
                return  # so that something has changed since, whenever the driver looks
            if not self.stages or self.stages[-1] != stage:
                self.stages.append(stage)
            if stage in self.in_stage:
                self.in_stage.pop(stage)(resizing)
            look(resizing, status, **options)

        def begun(resizing: Resizing, step: int) -> None:
            self.epochs += 1
            begin_epoch(resizing, step)

        monkeypatch.setattr(Supervisor, "status", status)
        monkeypatch.setattr(Resizing, "look", looked)
        monkeypatch.setattr(Resizing, "begin_epoch", begun)
        hold_back(monkeypatch, lambda: len(made) < self.due, seconds=SECONDS)
        hold_the_end(monkeypatch, lambda: len(made) >= self.due, at_step=lambda: self.late_step)

    def want(self, count: int) -> Callable[[Supervisor], None]:
        """Return what has the job come to so many servers."""
        self.due += 1
        return lambda supervisor: order(supervisor, ServersWanted(count))


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch) -> Steps:
    return Steps(monkeypatch)


def servers_of(fake: RayOfThreads) -> list[Handle]:
    of_servers = [h for h in fake.handles if isinstance(h.instance, ShardServer)]
    return [handle for handle in of_servers if not handle.killed]


@pytest.mark.parametrize(("before", "after"), [(2, 3), (3, 1)])
def test_servers_come_and_go_while_a_job_trains_and_no_bit_is_another(
    fake: RayOfThreads,
    steps: Steps,
    calm: dict[str, Any],
    samples: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    before: int,
    after: int,
) -> None:
    steps.at_step[5] = steps.want(after)
    steps.trains_on = True

    metrics = Trainer(job(samples, tmp_path / "run", before)).fit().metrics

    assert metrics["model_digest"] == calm["model_digest"]
    for name, table in calm["tables"].items():
        for count in ("rows", "unadmitted"):
            assert metrics["tables"][name][count] == table[count]
    (recovery,) = metrics["recoveries"]
    assert (recovery["kind"], recovery["redone_steps"]) == ("move", 0)
    (move,) = metrics["server_moves"]
    assert (move["before"], move["after"]) == (before, after)
    assert move["buckets"] == {3: 1365, 1: 2730}[after]
    # One cut where no step was made while it was taken in.
    assert move["rounds"] >= 1
    assert move["rows_in_pause"] < move["rows"]
    assert sum(move["pause_parts"].values()) == pytest.approx(move["pause_seconds"])
    assert move["pause_seconds"] == recovery["seconds"] < move["seconds"]
    assert sum(process["role"] == "server" for process in metrics["processes"]) == after
    said = capsys.readouterr().err
    assert f"{after} servers are wanted, there are {before}" in said
    assert f"there are {after} servers, there were {before}: {move['buckets']} buckets" in said


def killed_server(index: int) -> Callable[[Resizing], None]:
    return lambda resizing: resizing._processes.servers[index].handle.kill()


def killed_new_server(resizing: Resizing) -> None:
    (process,) = resizing._new.values()
    process.handle.kill()


def killed_coordinator(resizing: Resizing) -> None:
    resizing._processes.coordinator.handle.kill()


def in_the_hold(kill: Callable[[Resizing], None]) -> Callable[[Resizing], None]:
    """Return what kills once all stand still."""

    def hold(resizing: Resizing) -> None:
        go = resizing._go_once_level

        def kill_first(status: Any) -> None:
            resizing._go_once_level = go  # type: ignore[method-assign]
            kill(resizing)  # as at a look before they are level

        resizing._go_once_level = kill_first  # type: ignore[method-assign]

    return hold


LOST, SLOW_TEST = ["loss", "move"], pytest.mark.slow


@pytest.mark.parametrize(
    ("stage", "kill", "kinds"),
    [
        pytest.param("come_up", killed_server(0), LOST, id="source before", marks=SLOW_TEST),
        pytest.param("await_taken", killed_server(1), LOST, id="source during", marks=SLOW_TEST),
        pytest.param("await_taken", killed_new_server, ["move"], id="target", marks=SLOW_TEST),
        pytest.param("await_taken", killed_coordinator, LOST, id="coordinator", marks=SLOW_TEST),
        pytest.param("take_in", in_the_hold(killed_server(0)), LOST, id="source in the hold"),
        pytest.param(
            "take_in", in_the_hold(killed_new_server), ["move"], id="target in the hold",
            marks=SLOW_TEST,
        ),
        pytest.param(
            "take_in", in_the_hold(killed_coordinator), LOST, id="coordinator in the hold",
            marks=SLOW_TEST,
        ),
    ],
)  # fmt: skip
def test_who_dies_before_the_hand_over_leaves_the_old_routing_and_it_is_tried_again(
    fake: RayOfThreads,
    steps: Steps,
    calm: dict[str, Any],
    samples: Path,
    tmp_path: Path,
    stage: str,
    kill: Callable[[Resizing], None],
    kinds: list[str],
) -> None:
    steps.at_step[5] = steps.want(3)
    steps.in_stage[stage] = kill

    metrics = Trainer(job(samples, tmp_path / "run")).fit().metrics

    assert metrics["model_digest"] == calm["model_digest"]
    assert [recovery["kind"] for recovery in metrics["recoveries"]] == kinds
    assert metrics["recoveries"][-1]["redone_steps"] == 0
    assert [move["after"] for move in metrics["server_moves"]] == [3]
    assert steps.stages.count("come_up") == 2, "it has begun twice"


def killed_of(processes: Processes, who: int | None) -> None:
    """Kill a server, the last one for -1, or the coordinator."""
    process = processes.coordinator if who is None else processes.servers[who]
    process.handle.kill()


@pytest.mark.slow
@pytest.mark.parametrize("after", [1, 3])
@pytest.mark.parametrize("who", [0, -1, None], ids=["a server", "the last one", "coordinator"])
def test_who_dies_in_the_hand_over_leaves_the_new_routing_and_no_step_is_done_again(
    fake: RayOfThreads,
    steps: Steps,
    calm: dict[str, Any],
    samples: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    after: int,
    who: int | None,
) -> None:
    steps.at_step[5] = steps.want(after)
    took_over = Resizing.took_over

    def kill(resizing: Resizing, new: Any) -> None:
        took_over(resizing, new)
        killed_of(resizing._processes, who)

    monkeypatch.setattr(Resizing, "took_over", kill)

    metrics = Trainer(job(samples, tmp_path / "run")).fit().metrics

    assert metrics["model_digest"] == calm["model_digest"]
    (recovery,) = metrics["recoveries"]
    assert (recovery["kind"], recovery["redone_steps"]) == ("loss", 0)
    assert f"{after} servers were wanted; then" in recovery["cause"]
    assert [move["after"] for move in metrics["server_moves"]] == [after]
    assert sum(process["role"] == "server" for process in metrics["processes"]) == after
    assert steps.stages.count("come_up") == 1


@pytest.mark.slow
@pytest.mark.parametrize("who", [0, None], ids=["server", "coordinator"])
def test_a_job_recovers_after_a_move_by_the_new_routing(
    fake: RayOfThreads,
    steps: Steps,
    calm: dict[str, Any],
    samples: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    who: int | None,
) -> None:
    """From the cut of the move, which lies on those before, or where its servers are."""
    begin_epoch, begun = Supervisor.begin_epoch, list[None]()

    def count(supervisor: Supervisor, state: Any, parent: Any) -> None:
        begun.append(None)
        begin_epoch(supervisor, state, parent)

    monkeypatch.setattr(Supervisor, "begin_epoch", count)
    hold_back(monkeypatch, lambda: len(begun) < 3, seconds=SECONDS)  # also until that is seen

    def kill(supervisor: Supervisor) -> None:
        if not supervisor.resizing.done:  # some steps later
            steps.at_step[supervisor.last_status.applied_step + 1] = kill
        else:
            killed_of(supervisor.processes, who)

    steps.at_step |= {5: steps.want(3), 8: kill}

    metrics = Trainer(job(samples, tmp_path / "run")).fit().metrics

    assert metrics["model_digest"] == calm["model_digest"]
    assert [recovery["kind"] for recovery in metrics["recoveries"]] == ["move", "loss"]
    assert (metrics["recoveries"][1]["redone_steps"] > 0) == (who == 0)
    assert sum(process["role"] == "server" for process in metrics["processes"]) == 3


def test_each_sample_is_trained_once_in_async_where_servers_come_and_go_twice(
    fake: RayOfThreads, steps: Steps, samples: Path, tmp_path: Path
) -> None:
    want_more, want_less = steps.want(3), steps.want(2)

    def again(supervisor: Supervisor) -> None:
        if supervisor.resizing.done:
            want_less(supervisor)
        else:
            steps.later.append(again)

    steps.at_step |= {10: want_more, 12: again}
    steps.late_step = LATE_ASYNC_STEP
    training = {"mode": "async"}

    metrics = Trainer(job(samples, tmp_path / "run", training=training)).fit().metrics

    assert metrics["samples_trained"] == 2 * 5000
    assert [(m["before"], m["after"]) for m in metrics["server_moves"]] == [(2, 3), (3, 2)]
    assert metrics["redone_steps"] == 0


@pytest.mark.parametrize("at", [0, 5], ids=["at its beginning", "later"])
def test_servers_come_while_a_job_is_paused_which_changes_nothing(
    fake: RayOfThreads,
    steps: Steps,
    calm: dict[str, Any],
    samples: Path,
    tmp_path: Path,
    at: int,
) -> None:
    def pause_first(supervisor: Supervisor) -> None:
        pause(supervisor)
        order(supervisor, ServersWanted(3))
        steps.later.append(go_on)

    def go_on(supervisor: Supervisor) -> None:
        if supervisor.processes.servers[2:] and not supervisor.resizing.is_busy:
            pause(supervisor, False)
        else:
            steps.later.append(go_on)

    steps.at_step[at] = pause_first
    steps.due = 1

    metrics = Trainer(job(samples, tmp_path / "run")).fit().metrics

    assert metrics["model_digest"] == calm["model_digest"]
    (move,) = metrics["server_moves"]
    assert move["after"] == 3


def test_servers_that_come_and_go_before_a_step_is_trained_have_moved_twice(
    fake: RayOfThreads,
    steps: Steps,
    calm: dict[str, Any],
    samples: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def pause_first(supervisor: Supervisor) -> None:
        pause(supervisor)
        order(supervisor, ServersWanted(3))
        steps.later.append(lose_it_again)

    def lose_it_again(supervisor: Supervisor) -> None:
        if supervisor.processes.servers[2:]:
            order(supervisor, ServersWanted(2))
            steps.later.append(go_on)
        else:
            steps.later.append(lose_it_again)

    def go_on(supervisor: Supervisor) -> None:
        if supervisor.processes.servers[2:]:
            steps.later.append(go_on)
        else:
            pause(supervisor, False)

    steps.at_step[0] = pause_first
    steps.due = 2

    metrics = Trainer(job(samples, tmp_path / "run")).fit().metrics

    assert metrics["model_digest"] == calm["model_digest"]
    first, second = metrics["server_moves"]
    assert [(m["before"], m["after"]) for m in (first, second)] == [(2, 3), (3, 2)]
    assert first["time"] + first["seconds"] <= second["time"] + second["seconds"]
    (together,) = metrics["recoveries"]  # the job has stood still once
    pauses = first["pause_seconds"] + second["pause_seconds"]
    assert pauses == pytest.approx(together["seconds"], abs=0.1)
    told = capsys.readouterr().err
    assert "there are 3 servers, there were 2" in told
    assert "there are 2 servers, there were 3" in told


@pytest.mark.slow
def test_standbys_are_made_again_after_a_move(
    fake: RayOfThreads,
    steps: Steps,
    calm: dict[str, Any],
    samples: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def until_then(supervisor: Supervisor) -> None:
        """Let the job end once all have standbys again."""
        step = supervisor.last_status.applied_step + 1
        if step < 25:
            steps.at_step[step] = until_then

    steps.at_step |= {5: steps.want(3), 6: until_then}
    cluster = {"workers": 2, "servers": 2, "standby": 1}

    metrics = Trainer(job(samples, tmp_path / "run", cluster=cluster)).fit().metrics

    assert metrics["model_digest"] == calm["model_digest"]
    assert [recovery["kind"] for recovery in metrics["recoveries"]] == ["move"]
    assert "standbys are made again" in capsys.readouterr().err


def test_a_lost_standby_is_made_again_also_while_servers_that_are_wanted_have_no_place(
    fake: RayOfThreads,
    steps: Steps,
    calm: dict[str, Any],
    samples: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    join, again = Epochs._join, list[None]()

    def joined(epochs: Epochs, step: int) -> None:
        before = len(epochs._processes.standbys)
        join(epochs, step)
        if len(epochs._processes.standbys) > before:
            again.append(None)

    def lose_it(supervisor: Supervisor) -> None:
        assert supervisor.resizing.is_busy
        supervisor.processes.standbys[0].handle.kill()

    monkeypatch.setattr(Epochs, "_join", joined)
    monkeypatch.setattr(Resizing, "_come_up", lambda resizing, status: None)
    steps.at_step |= {1: lambda supervisor: supervisor.resizing.want(3), 4: lose_it}
    hold_back(monkeypatch, lambda: not again, seconds=SECONDS)
    cluster = {"workers": 2, "servers": 2, "standby": 1}

    metrics = Trainer(job(samples, tmp_path / "run", cluster=cluster)).fit().metrics

    assert again
    assert metrics["model_digest"] == calm["model_digest"]
    assert metrics["server_moves"] == []


def test_what_can_t_be_had_is_refused_with_words(
    fake: RayOfThreads, steps: Steps, samples: Path, tmp_path: Path
) -> None:
    refused: list[str] = []

    def ask(supervisor: Supervisor) -> None:
        handle = supervisor.processes.coordinator.handle
        for count in (0, 4097):
            with pytest.raises(ValueError, match="a job has 1 to 4096 servers") as error:
                ray.get(handle.order.remote(ServersWanted(count)))
            refused.append(str(error.value))

    steps.at_step[1] = ask

    metrics = Trainer(job(samples, tmp_path / "run", data={"epochs": 1})).fit().metrics

    assert len(refused) == 2
    assert metrics["server_moves"] == []


def test_who_wants_something_of_a_training_that_has_ended_is_told_that_it_comes_too_late(
    fake: RayOfThreads, samples: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    finish, refused = scheduler.driver.trainer.finish, list[None]()

    def ask_first(specs: Any, processes: Processes, *args: Any, **options: Any) -> Any:
        for wanted in (ServersWanted(3), WorkersWanted(1), ShiftWanted("gba"), PauseWanted(True)):
            with pytest.raises(ValueError, match="too late: training has ended, and nothing was"):
                ray.get(processes.coordinator.handle.order.remote(wanted))
            refused.append(None)
        return finish(specs, processes, *args, **options)

    monkeypatch.setattr(scheduler.driver.trainer, "finish", ask_first)

    metrics = Trainer(job(samples, tmp_path / "run", data={"epochs": 1})).fit().metrics

    assert len(refused) == 4
    assert metrics["server_moves"] == []


def test_servers_that_have_not_come_until_training_ends_are_told_of(
    fake: RayOfThreads,
    steps: Steps,
    samples: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(Resizing, "_come_up", lambda resizing, status: None)
    steps.at_step[1] = lambda supervisor: supervisor.resizing.want(3)

    metrics = Trainer(job(samples, tmp_path / "run", data={"epochs": 1})).fit().metrics

    assert metrics["server_moves"] == []
    said = capsys.readouterr().err
    assert "before there were the 3 servers that were wanted: the job ends with 2" in said
