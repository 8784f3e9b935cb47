import pytest

from worker.faults import FaultPlan, Faults, Hang, Kill, Slow


def faults(*listed, worker=0, incarnation=0, seed=1):
    plan = FaultPlan(faults=listed, seed=seed, started=100.0)
    return Faults(plan, worker=worker, incarnation=incarnation)


def test_a_slow_worker_waits_until_its_batch_took_factor_times_as_long():
    slow = faults(Slow(workers=(0,), factor=4.0))

    assert slow.pause(0.5, 100.0) == 1.5
    assert faults(Slow(workers=(0,), factor=4.0), worker=1).pause(0.5, 100.0) == 0.0
    assert faults().pause(0.5, 100.0) == 0.0


@pytest.mark.parametrize(("now", "pause"), [(109.9, 0.0), (110.0, 1.0), (129.9, 1.0), (130.0, 0.0)])
def test_it_is_slow_in_its_time_only(now, pause):
    slow = faults(Slow(workers=(0, 3), factor=2.0, from_seconds=10, to_seconds=30))

    assert slow.pause(1.0, now) == pause


def test_factors_of_several_faults_multiply():
    slow = faults(Slow(workers=(0,), factor=2.0), Slow(workers=(0, 1), factor=3.0))

    assert slow.pause(1.0, 100.0) == 5.0


def test_sleep_stands_in_for_a_computation_and_is_multiplied_by_factors():
    slow = faults(Slow(workers=(0, 1), least_seconds=0.5), Slow(workers=(0,), factor=4.0))

    assert slow.pause(0.25, 100.0) == 1.75
    assert slow.pause(1.0, 100.0) == 3.0


def test_jitter_is_drawn_by_the_seed_and_stays_in_its_range():
    def pauses(seed):
        slow = faults(Slow(workers=(0,), factor=4.0, jitter=0.25), seed=seed)
        return [slow.pause(1.0, 100.0) for _ in range(1000)]

    assert pauses(1) == pauses(1) != pauses(2)
    assert 2.0 <= min(pauses(1)) < 2.1
    assert 3.9 < max(pauses(1)) < 4.0


def test_only_the_first_process_of_a_worker_is_killed():
    kill = Kill(workers=(0,), at_step=5)

    assert [faults(kill).dies_at(step) for step in (4, 5, 6)] == [False, True, True]
    assert not faults(kill, incarnation=1).dies_at(5)
    assert not faults(kill, worker=1).dies_at(5)


def test_only_the_first_process_of_a_worker_hangs_and_in_its_stage():
    hang = Hang(workers=(0,), at_step=5, stage="read")

    assert [faults(hang).hangs_at(step, "read") for step in (4, 5, 6)] == [False, True, True]
    assert not faults(hang).hangs_at(5, "compute")
    assert not faults(hang, incarnation=1).hangs_at(5, "read")
    assert not faults(hang, worker=1).hangs_at(5, "read")
    assert not faults(hang).dies_at(5)
