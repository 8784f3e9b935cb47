"""The whole step of a worker, from its file to the applied gradient: no large array is new."""

import tracemalloc

import pytest

from bench.one_step import OneWorker
from bench.training_jobs import Case, Data, job_of
from scheduler.driver.resolved import resolve
from worker.datasets.synthetic import CriteoLike, write_criteo_like

BATCH, STEPS, WARM_UP = 512, 30, 15


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Data:
    out = tmp_path_factory.mktemp("data") / "criteo"
    write_criteo_like(out, CriteoLike(rows=STEPS * BATCH, test_rows=100, files=1))
    return Data(out, STEPS * BATCH)


def test_a_step_allocates_nothing_large_in_the_steady_state(data: Data) -> None:
    peaks = []
    with OneWorker(resolve(job_of(Case(1, 2, "async", BATCH), data))) as worker:
        for number in range(WARM_UP):
            worker.give_back(worker.step(number))
        tracemalloc.start()
        try:
            for number in range(WARM_UP, STEPS):
                before, _ = tracemalloc.get_traced_memory()
                tracemalloc.reset_peak()
                worker.give_back(worker.step(number))
                peaks.append(tracemalloc.get_traced_memory()[1] - before)
        finally:
            tracemalloc.stop()

    # Dense parameters have 1,904,004 bytes, as their gradient; the rows some 260,000, a batch's
    # positions 106,496.
    assert max(peaks) < 65_536, peaks
