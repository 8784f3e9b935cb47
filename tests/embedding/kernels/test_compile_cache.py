import json
import os
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import numba
import pytest
from numba.core.caching import FunctionCache, IndexDataCacheFile

import embedding
from embedding.kernels import compile_cache
from embedding.kernels.compile_cache import SharedCache

PACKAGE = Path(embedding.__file__).parent
MIX_SOME_KEYS = """
import json
import numpy as np
from embedding.kernels import compile_cache, mixing
told = []
with compile_cache.when_compiling(lambda: told.append(1)):
    mixing.buckets_of(np.arange(4))
    mixing.buckets_of(np.arange(4))
stats = mixing._buckets.stats
loaded, compiled = sum(stats.cache_hits.values()), sum(stats.cache_misses.values())
print(json.dumps([loaded, compiled, stats.cache_path, len(told)]))
"""


def sources(folder: Path) -> Path:
    shutil.copytree(PACKAGE, folder / "embedding", ignore=shutil.ignore_patterns("__pycache__"))
    return folder


def run(
    folder: Path, home: Path, *, alone: bool = True, **environment: str
) -> tuple[int, int, Path]:
    """Return how many kernels were loaded and how many compiled, and where they are kept."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith("NUMBA_")}
    done = subprocess.run(
        [sys.executable, "-c", MIX_SOME_KEYS],
        cwd=folder,  # from where `-c` imports
        env={**kept, "XDG_CACHE_HOME": str(home), **environment},
        capture_output=True,
        text=True,
        check=True,
    )
    loaded, compiled, cache, told = json.loads(done.stdout)
    # Beside others a process may wait for what one of them compiles, and is told of it, too.
    assert told == compiled or (not alone and told == 1)
    return loaded, compiled, Path(cache)


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A home in which the sources' kernels were compiled once, and the folder of these."""
    folder = tmp_path_factory.mktemp("first")
    loaded, made, kept = run(sources(folder), folder / "home")
    assert (loaded, made) == (0, 1)
    return folder / "home", kept


def test_the_same_sources_at_another_path_load_what_was_compiled(
    compiled: tuple[Path, Path], tmp_path: Path
) -> None:
    """Whatever kernels of the packages above say, from which nothing is compiled into these."""
    home, _ = compiled
    second = sources(tmp_path / "second")
    (second / "worker").mkdir()
    (second / "worker" / "layers.py").write_text("import numba\n")
    assert run(second, home)[:2] == (1, 0)


@pytest.mark.parametrize(
    "with_what", ["kernels/finite.py", "kernels/line_search.py"], ids=["kernel", "intrinsic"]
)
def test_a_change_in_any_file_of_kernels_compiles_all_anew(
    compiled: tuple[Path, Path], tmp_path: Path, with_what: str
) -> None:
    home, before = compiled
    changed = sources(tmp_path / "second")
    with (changed / "embedding" / with_what).open("a") as file:
        file.write("\n# changed\n")
    loaded, made, after = run(changed, home)
    assert (loaded, made) == (0, 1)
    assert before != after


def test_processes_that_start_at_once_compile_a_kernel_once(tmp_path: Path) -> None:
    folder = sources(tmp_path / "sources")
    with ThreadPoolExecutor() as pool:
        processes = [pool.submit(run, folder, tmp_path / "home", alone=False) for _ in range(3)]
        counts = [process.result()[:2] for process in processes]
    assert sorted(counts) == [(0, 1), (1, 0), (1, 0)]


def test_a_kernel_that_another_process_never_finishes_is_compiled_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compile_cache, "_WAIT_SECONDS", 0.1)
    monkeypatch.setattr(FunctionCache, "__init__", lambda self, function: None)
    monkeypatch.setattr(FunctionCache, "load_overload", lambda self, sig, context: None)
    monkeypatch.setattr(SharedCache, "cache_path", str(tmp_path))
    monkeypatch.setattr(
        SharedCache, "_impl", SimpleNamespace(filename_base="kernel"), raising=False
    )
    stuck, other = SharedCache(abs), SharedCache(abs)
    assert stuck.load_overload("types", None) is None  # it compiles, and never saves
    assert other.load_overload("types", None) is None


def test_numba_cache_dir_is_left_to_the_person_who_set_it(tmp_path: Path) -> None:
    wanted = tmp_path / "mine"
    *_, folder = run(sources(tmp_path / "first"), tmp_path / "home", NUMBA_CACHE_DIR=str(wanted))
    assert folder.is_relative_to(wanted)
    assert not (tmp_path / "home" / "synchromesh").exists()


def test_versions_that_are_used_are_kept_however_old_they_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("CACHE_DIR", "CACHE_LOCATOR_CLASSES"):
        monkeypatch.setattr(numba.config, name, getattr(numba.config, name))
    monkeypatch.setattr(compile_cache.KernelLocator, "folders", {})
    monkeypatch.delenv("NUMBA_CACHE_DIR", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    versions = tmp_path / "synchromesh" / "kernels"
    for age, name in enumerate(["used", *map(str, range(compile_cache._KEPT))]):
        (versions / name).mkdir(parents=True)
        os.utime(versions / name, (age, age))

    for name in ("used", "new"):
        monkeypatch.setattr(compile_cache, "_digests", lambda name=name: {"worker": name})
        compile_cache.use_own_cache()

    left = {path.name for path in versions.iterdir()}
    assert "used" in left
    assert not {"0", "1"} & left


def test_kernels_that_are_saved_at_the_same_time_are_not_taken_for_each_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = (IndexDataCacheFile(str(tmp_path), "kernel", "") for _ in range(2))
    save_data = first._save_data

    def save_after_the_other(name: str, data: str) -> None:
        second.save("other types", "kernel of other types")
        save_data(name, data)

    # The second process has read the index before the first one wrote it.
    monkeypatch.setattr(second, "_load_index", dict)
    monkeypatch.setattr(first, "_save_data", save_after_the_other)

    first.save("types", "kernel")

    later = IndexDataCacheFile(str(tmp_path), "kernel", "")
    assert later.load("other types") == "kernel of other types"
    assert later.load("types") in ("kernel", None)
