"""Settings for every test: Ray without tokens or dashboards, small files, the float mode."""

import ctypes
import os
import platform
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, settings
from xdist.scheduler import LoadFileScheduling

from runtime.free_list import FreeList

if TYPE_CHECKING:
    from ray_of_threads import RayOfThreads

# Before anything imports Ray. One thread a process, as in the actors of a job.
os.environ.setdefault("RAY_AUTH_MODE", "disabled")
os.environ.setdefault("RAY_DEDUP_LOGS", "0")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
# Ray's processes give way by default: beside other tests, on two cores, they would hardly run.
os.environ.setdefault("RAY_worker_niceness", "0")
# How often Ray passes metrics on; by default every ten seconds.
os.environ.setdefault("RAY_metrics_report_interval_ms", "1000")
os.environ.pop("RAY_ADDRESS", None)

# An example takes as long as other processes leave it: its time says nothing.
settings.register_profile("any_time", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("any_time")

ROOT = Path(__file__).parents[1]


class Scheduling(LoadFileScheduling):
    """Deals tests out by the file, as files compile kernels and make fixtures once.

    Those with Ray go to one process: two Rays would fight for a port of the node. Files come in
    the order below, and not by how many tests they have.
    """

    def __init__(self, config: pytest.Config, log: Any) -> None:
        config.option.loadscopereorder = False
        super().__init__(config, log)

    def _split_scope(self, nodeid: str) -> str:
        file = super()._split_scope(nodeid)
        return "ray" if _starts_ray(ROOT / file) else file


@cache
def _starts_ray(file: Path) -> bool:
    return "mark.ray" in file.read_text()


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Scheduling:
    return Scheduling(config, log)


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with what takes longest: those with Ray, then the simulated jobs."""
    items.sort(key=lambda item: (not _starts_ray(item.path), "simulation" not in item.path.parts))


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Leave out what needs a GPU where torch finds none: `make gpu-check` runs it."""
    if item.get_closest_marker("gpu") and not _has_gpu():
        pytest.skip("torch finds no GPU")


@cache
def _has_gpu() -> bool:
    import torch  # tests that are marked need it

    return bool(torch.cuda.is_available())


@pytest.fixture
def spoiled_arrays(monkeypatch: pytest.MonkeyPatch) -> None:
    """Spoil every array that is given back for use again: who still reads it finds no sense."""
    give = FreeList.give

    def spoil(self: Any, *taken: np.ndarray) -> None:
        for array in taken:
            array.view(np.uint8)[:] = 0xFF
        give(self, *taken)

    monkeypatch.setattr(FreeList, "give", spoil)


@pytest.fixture(scope="session")
def samples(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with train-*.parquet (5,000 rows in 3 files) and test.parquet (1,000 rows).

    Columns: label, d1, d2 (float32 with nulls), a (int64, few ids), b (int64, many), tags (lists).
    """
    folder = tmp_path_factory.mktemp("samples")
    rng = np.random.default_rng(11)
    for number, rows in enumerate((2000, 1700, 1300)):
        _write_samples(folder / f"train-{number}.parquet", rows, rng)
    _write_samples(folder / "test.parquet", 1000, rng)
    return folder


def _write_samples(path: Path, rows: int, rng: np.random.Generator) -> None:
    a = rng.integers(-3, 20, rows)
    b = rng.zipf(1.3, rows) % 5000
    dense = rng.exponential(2.0, (2, rows)).astype(np.float32)
    lengths = rng.integers(0, 4, rows)
    tags = [rng.integers(0, 30, n).tolist() for n in lengths]
    logit = 0.3 * a - 3 + np.log1p(dense[0]) * (b % 2) + 0.2 * lengths
    label = (rng.random(rows) < 1 / (1 + np.exp(-logit))).astype(np.int8)
    table = pa.table(
        {
            "label": label,
            "d1": pa.array(dense[0], mask=rng.random(rows) < 0.1),
            "d2": dense[1],
            "a": a,
            "b": pa.array(b, pa.int64(), mask=rng.random(rows) < 0.05),
            "tags": pa.array(tags, pa.list_(pa.int64())),
        }
    )
    pq.write_table(table, path, row_group_size=700)


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[None]:
    """A local Ray that the jobs of all tests share.

    A node ends itself where its own agents take 15 s to come up, on a machine that is busy with
    other tests: so it is tried more than once.
    """
    import ray

    from scheduler.driver.launch import start_ray
    from scheduler.job.config import ClusterConfig

    for left in (2, 1, 0):
        try:
            start_ray(ClusterConfig(workers=4, servers=4), namespace="tests")
            break
        except Exception:
            ray.shutdown()
            if not left:
                raise
    yield
    ray.shutdown()


@pytest.fixture(scope="module")
def jobs_in_threads() -> Iterator["RayOfThreads"]:
    """Jobs run in threads of this process: a second each, where a process's death is no matter."""
    from ray_of_threads import ray_of_threads

    with ray_of_threads() as fake:
        yield fake


@pytest.fixture
def in_float_mode() -> Callable[[str], AbstractContextManager[None]]:
    """Returns what sets this thread's float mode for a block: `flushing` or `upward`.

    Threads that are started within the block inherit it.
    """
    if sys.platform != "linux" or platform.machine() not in ("x86_64", "aarch64"):
        pytest.skip("the layout of the C library's fenv_t is known for Linux on x86-64 and AArch64")
    libm = ctypes.CDLL("libm.so.6")
    # Where in fenv_t the control register lies, and its bits.
    word, flushing = (7, 0x8040) if platform.machine() == "x86_64" else (0, 1 << 24)
    upward = 0x800 if platform.machine() == "x86_64" else 0x400000

    @contextmanager
    def setting(mode: str) -> Iterator[None]:
        before, changed = (ctypes.c_uint32 * 8)(), (ctypes.c_uint32 * 8)()
        libm.fegetenv(before)
        libm.fegetenv(changed)
        if mode == "flushing":
            changed[word] |= flushing
            libm.fesetenv(changed)
        else:
            libm.fesetround(upward)
        try:
            yield
        finally:
            libm.fesetenv(before)

    return setting
