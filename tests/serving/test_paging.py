"""Vectors that are not all in memory: the same bits, in bounded memory; files that fail."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from served_jobs import JOBS, SavedModel, some_samples

from embedding.kernels import disk_reads
from serving import Model, ServingError
from serving.rows import paging
from serving.rows.paging import NONE, FileTable, RowCache, RowCacheFigures, VectorFile
from synchromesh.commands.sizes import Bytes
from worker.inference import Predictor, probabilities

SLOW = pytest.mark.slow
SAMPLES = some_samples(np.random.default_rng(77), 300)
WIDTHS = {1: 3000, 5: 2000, 16: 1000, 700: 30, 1500: 20}  # rows of each


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> int:
    """Bytes of memory for a few vectors of 16 values."""
    monkeypatch.setattr(paging, "MIN_MEMORY_BYTES", 0)
    return 2500


def written(folder: Path, rows: int, width: int) -> np.ndarray:
    array = np.random.default_rng(width).random((rows, width), np.float32)
    (folder / f"values-{width}").write_bytes(array.tobytes())
    return array


def asked(rng: np.random.Generator, files: list[VectorFile], n: int) -> tuple[np.ndarray, ...]:
    """Return rows of any files, hot ones among them, and of none."""
    of_files = rng.integers(0, len(files), n)
    most = np.array(list(WIDTHS.values()))[of_files]
    numbers = np.where(rng.random(n) < 0.5, rng.integers(0, 5, n), rng.integers(0, most))
    rows = np.array([file.first for file in files])[of_files] + numbers
    rows[rng.random(n) < 0.1] = NONE
    return rows, of_files, numbers


@pytest.mark.parametrize("queue", [True, False], ids=["queue", "one after another"])
def test_rows_of_any_width_come_from_memory_or_their_files(
    tmp_path: Path, queue: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(disk_reads, "_readers", disk_reads._Readers())
    monkeypatch.setattr(disk_reads, "_SUPPORTED", disk_reads._SUPPORTED and queue)
    monkeypatch.setattr(paging, "MIN_MEMORY_BYTES", 0)
    arrays = [written(tmp_path, rows, width) for width, rows in WIDTHS.items()]
    files = [VectorFile(tmp_path / f"values-{w}", rows, w) for w, rows in WIDTHS.items()]
    table, cache = FileTable(files), RowCache(1 << 20, max(WIDTHS))

    def check(seed: int) -> None:
        rng = np.random.default_rng(seed)
        for n in (1, 0, 900):
            rows, of_files, numbers = asked(rng, files, n)
            words = cache.read(rows, of_files, table)
            for i in np.flatnonzero(rows != NONE):
                array = arrays[of_files[i]]
                assert words[i, : array.shape[1]].tobytes() == array[numbers[i]].tobytes()

    with ThreadPoolExecutor(4) as threads:
        list(threads.map(check, range(8)))

    figures = cache.figures()
    assert figures.memory_bytes <= 1 << 20
    assert figures.hits > 100
    assert figures.reads > 1000


def test_rows_that_are_asked_for_often_stay(tmp_path: Path, small: int) -> None:
    written(tmp_path, 1000, 16)
    file = VectorFile(tmp_path / "values-16", 1000, 16)
    table, cache = FileTable([file]), RowCache(small, 16)

    def read(numbers: np.ndarray) -> int:
        before = cache.figures().reads
        cache.read(file.first + numbers, np.zeros(numbers.size, np.int64), table)
        return cache.figures().reads - before

    hot = np.arange(4)
    for start in range(4, 900, 8):
        read(hot)
        read(np.arange(start, start + 8))

    assert read(hot) == 0


def test_a_file_that_ends_early_is_named_and_one_that_is_not_there(
    tmp_path: Path, small: int
) -> None:
    written(tmp_path, 1000, 16)
    file = VectorFile(tmp_path / "values-16", 1000, 16)
    table, cache = FileTable([file]), RowCache(small, 16)
    (tmp_path / "values-16").write_bytes(b"")

    with pytest.raises(ServingError, match=f"below {tmp_path} can't be read: it ends before"):
        cache.read(file.first + np.array([900]), np.zeros(1, np.int64), table)
    with pytest.raises(ServingError, match=f"{tmp_path}/none: No such file"):
        VectorFile(tmp_path / "none", 10, 16)


def test_too_little_memory_is_refused_with_what_is_needed(tmp_path: Path) -> None:
    job = SavedModel("plain", tmp_path / "run")
    job.cut()
    with pytest.raises(ServingError, match=r"1,000 bytes of memory .* at least 1,048,576"):
        Model.open(job.run, memory_bytes=1000)


@pytest.mark.parametrize(
    "name",
    [each if each in ("plain", "dynamic") else pytest.param(each, marks=SLOW) for each in JOBS],
)
def test_every_version_predicts_what_its_checkpoint_does(
    name: str, tmp_path: Path, small: int
) -> None:
    job = SavedModel(name, tmp_path / "run")
    job.train(6)
    seen: list[np.ndarray] = []
    checkpoint = job.cut()

    with Model.open(tmp_path / "run", keep_versions=10, memory_bytes=small) as model:
        for number in range(4):
            batch = model.schema.batch_of_columns(SAMPLES)
            expected = probabilities(Predictor.from_checkpoint(checkpoint).logits(batch))
            seen.append(model.predict(SAMPLES).values)
            np.testing.assert_array_equal(seen[-1], expected)
            job.train(2, evict=number % 2 == 1)
            checkpoint = job.cut(full=number == 2)
            model.refresh()
        for version, values in zip(model.versions, seen, strict=False):
            model.rollback(version.step)
            np.testing.assert_array_equal(model.predict(SAMPLES).values, values)
        figures = model.row_cache

    assert figures is not None
    assert figures.reads > 100
    assert figures.memory_bytes <= small


@pytest.mark.parametrize("rows", ["bf16", "int8"])
def test_rows_of_fewer_bits_are_read_alike(rows: Any, tmp_path: Path, small: int) -> None:
    job = SavedModel("plain", tmp_path / "run")
    job.train(6)
    job.cut()
    with (
        Model.open(job.run, rows=rows) as mapped,
        Model.open(job.run, rows=rows, memory_bytes=small) as paged,
    ):
        for _ in range(2):
            found = [each.predict(SAMPLES).values for each in (mapped, paged)]
            np.testing.assert_array_equal(*found)
            one = {name: values[:1] for name, values in SAMPLES.items()}
            np.testing.assert_array_equal(*(m.predict(one).values for m in (mapped, paged)))


def test_a_server_says_where_rows_were(start: Callable[..., Any]) -> None:
    served = start(memory_bytes=1 << 20)
    for _ in range(2):
        served.serving.model.predict(SAMPLES)
    page = served.ask("GET", "/metrics")[2].decode()

    told = dict(line.split() for line in page.splitlines() if "serving_row_" in line[:30])
    assert float(told["synchromesh_serving_row_hits_total"]) > 0
    assert float(told["synchromesh_serving_row_reads_total"]) > 0
    assert 0 < float(told["synchromesh_serving_row_memory_bytes"]) <= 1 << 20


def test_figures_of_processes_are_added() -> None:
    parts = [RowCacheFigures(10, 3, 1), RowCacheFigures(10, 4, 2)]
    assert sum(parts, RowCacheFigures()) == RowCacheFigures(20, 7, 3)


@pytest.mark.parametrize(
    ("text", "size"),
    [("2GB", 2 * 10**9), ("1.5GiB", 3 << 29), ("500 mb", 5 * 10**8), ("70000", 70000)],
)
def test_an_amount_of_memory_has_a_unit(text: str, size: int) -> None:
    assert Bytes().convert(text, None, None) == size


@pytest.mark.parametrize("text", ["", "2 G B", "-3GB", "GB", "2PB"])
def test_what_is_no_amount_of_memory_is_refused(text: str) -> None:
    with pytest.raises(Exception, match="is no amount of memory"):
        Bytes().convert(text, None, None)
