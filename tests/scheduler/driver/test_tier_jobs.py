"""Tables with tiers in whole jobs: the same model, also over a checkpoint; what is refused."""

import shutil
from pathlib import Path
from typing import Any

import pytest

from embedding import Tiers
from scheduler import ConfigError, JobConfig, Trainer
from scheduler.driver import tier_paths
from scheduler.driver.tier_paths import check_tiers
from worker.datasets.planted import DENSE_COLUMNS, SPARSE_COLUMNS
from worker.datasets.synthetic import CriteoLike, write_criteo_like


def job(samples: Path, run: Path, **embedding: Any) -> JobConfig:
    return JobConfig.from_dict(
        {
            "data": {
                "train": str(samples / "train"),
                "dense": list(DENSE_COLUMNS[:2]),
                "sparse": list(SPARSE_COLUMNS[:3]),
                "batch_size": 128,
            },
            "embedding": {"dim": 32, "optimizer": {"type": "adam"}, **embedding},
            "model": {"type": "dlrm", "bottom_mlp": [8], "top_mlp": [8]},
            "training": {"mode": "sync"},
            "cluster": {"workers": 2, "servers": 2, "start_timeout_seconds": 240},
            "run": {"dir": str(run)},
        }
    )


@pytest.fixture(scope="module")
def samples(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("samples")
    write_criteo_like(folder, CriteoLike(rows=4000, test_rows=100))
    return folder


def test_a_job_with_tiers_trains_the_same_model(
    jobs_in_threads: None, samples: Path, tmp_path: Path
) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    tiers = {"memory_bytes": 1 << 17, "path": str(disk)}

    plain = Trainer(job(samples, tmp_path / "plain")).fit().metrics
    tiered = Trainer(job(samples, tmp_path / "tiered", tiers=tiers)).fit().metrics

    assert tiered["model_digest"] == plain["model_digest"]
    tables = tiered["tables"].values()
    assert sum(table["disk_rows"] for table in tables) > 500
    assert all(table["memory_rows"] + table["disk_rows"] == table["rows"] for table in tables)
    assert all("disk_rows" not in table for table in plain["tables"].values())
    assert sum(table["prefetched"] for table in tables) > 20
    assert list(disk.iterdir()) == []


def test_one_table_has_tiers_of_its_own(samples: Path, tmp_path: Path) -> None:
    from scheduler.job.specs import model_spec, table_tiers

    name = SPARSE_COLUMNS[1]
    tiers = {"memory_bytes": 10**6, "path": "/a"}
    values = job(samples, tmp_path / "run", tiers=tiers).model_dump()
    values["tables"] = {name: {"tiers": {"memory_bytes": 10**7, "path": "/b"}}}
    config = JobConfig.from_dict(values)

    found = table_tiers(config, model_spec(config))

    assert found[name] == Tiers(memory_bytes=10**7, path="/b")
    assert found[SPARSE_COLUMNS[0]] == Tiers(memory_bytes=10**6, path="/a")


def test_a_folder_that_is_not_there_is_refused_before_anything_starts(
    samples: Path, tmp_path: Path
) -> None:
    tiers = {"memory_bytes": 1 << 17, "path": str(tmp_path / "none")}
    run = tmp_path / "run"
    with pytest.raises(ConfigError, match=f"tiers.path of .* is {tmp_path}/none, which is no"):
        Trainer(job(samples, run, tiers=tiers)).fit()
    assert not run.exists()


def test_a_folder_that_can_have_no_file_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"path of table items is /proc: .*can't have a file"):
        check_tiers({"items": Tiers(memory_bytes=1 << 17, path="/proc")}, ())


def test_a_disk_with_less_room_than_memory_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tmp_path)._replace(free=10**9)
    monkeypatch.setattr(tier_paths.shutil, "disk_usage", lambda _: usage)
    both = {name: Tiers(memory_bytes=6 * 10**8, path=str(tmp_path)) for name in ("items", "users")}
    check_tiers({"items": both["items"]}, ())
    with pytest.raises(ConfigError, match="has 1,000,000,000 bytes free: less than the 1,2"):
        check_tiers(both, ())


def test_memory_without_room_for_a_few_rows_is_refused(samples: Path, tmp_path: Path) -> None:
    tiers = {"memory_bytes": 1 << 17, "path": str(tmp_path)}
    with pytest.raises(ConfigError, match=r"memory_bytes of table .* has no room for 16 rows"):
        Trainer(job(samples, tmp_path / "run", dim=4096, tiers=tiers)).fit()
