"""A user's first job: on a Ray that it starts itself, with a home that has nothing of Ray's."""

import json
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[3]


@pytest.mark.ray
def test_a_user_s_first_job_keeps_the_token_to_them_and_relative_paths_follow_synchromesh_root(
    samples: Path, tmp_path: Path
) -> None:
    job = {
        "data": {
            "train": "train-0.parquet",
            "eval": "test.parquet",
            "dense": ["d1", "d2"],
            "sparse": ["a", "b"],
            "batch_size": 64,
        },
        "embedding": {"dim": 4},
        "model": {"type": "dlrm", "bottom_mlp": [8], "top_mlp": [8]},
        "training": {"mode": "sync", "global_batch": 128},
        "cluster": {"workers": 1, "servers": 1},
        "run": {"dir": str(tmp_path / "run")},
    }
    (tmp_path / "job.yaml").write_text(yaml.safe_dump(job))
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith("RAY_AUTH")},
        "SYNCHROMESH_ROOT": str(samples),
        "HOME": str(tmp_path),
        "XDG_CACHE_HOME": os.environ.get("XDG_CACHE_HOME", str(Path.home() / ".cache")),
    }

    done = subprocess.run(
        [sys.executable, str(ROOT / "scripts" / "train.py"), str(tmp_path / "job.yaml")],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=environment,
    )

    assert done.returncode == 0, done.stderr
    token = tmp_path / ".ray" / "auth_token"
    assert stat.S_IMODE(token.stat().st_mode) == 0o600
    assert "chmod" not in done.stderr
    assert json.loads(done.stdout)["eval"]["samples"] == 1000
