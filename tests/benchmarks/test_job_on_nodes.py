"""A job on nodes with a network: what it prints, and that nothing is left of them."""

import json
import os
import subprocess
from pathlib import Path

import pytest
from job_on_nodes import main

from bench.nodes import Nodes, are_allowed
from worker.datasets.synthetic import CriteoLike, write_criteo_like

needs_root = pytest.mark.skipif(not are_allowed(), reason="nodes of a network take root")


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.timeout(600)
@needs_root
def test_servers_are_spread_over_the_nodes_which_are_gone_at_the_end(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_criteo_like(tmp_path / "data", CriteoLike(rows=2000))

    code = main(
        [
            "--nodes=2",
            "--mbit=1000",
            "jobs/dlrm.yaml",
            f"data.train={tmp_path}/data/train/*.parquet",
            "data.eval=null",
            "data.batch_size=50",
            "training.mode=sync",
            "training.max_samples=1000",
            "training.global_batch=100",
            "model.top_mlp=[1000, 500]",
            "cluster.worker_cpus=1.2",
            f"run.dir={tmp_path / 'run'}",
        ]
    )

    (line,) = map(json.loads, capsys.readouterr().out.splitlines())
    assert code == 0
    assert (line["name"], line["steps"]) == ("job_on_nodes", 10)
    # More than half a million parameters: half of them come from the other node in each step.
    assert min(line["received_mb"]) > 10
    assert max(line["received_mb"]) < 1.5 * min(line["received_mb"])
    assert not any(name.startswith(f"sm{os.getpid() % 100_000}n") for name in _names_of_all())


@needs_root
def test_nodes_are_gone_with_the_end_of_their_block() -> None:
    with Nodes(2, 1000) as nodes:
        names = set(nodes.names)
        assert names <= _names_of_all()
        assert len(nodes.bytes_of(1)) == 2

    assert not names & _names_of_all()


def _names_of_all() -> set[str]:
    listed = subprocess.run(["ip", "netns"], capture_output=True, text=True, check=True)
    return {line.split()[0] for line in listed.stdout.splitlines()}


@pytest.mark.parametrize(
    ("wrong", "text"),
    [(["--nodes=0", "a.yaml"], "--nodes must be >= 1"), (["--nodes=99", "a.yaml"], "at most 32")],
)
def test_wrong_options_are_refused(
    wrong: list[str], text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(wrong)

    assert ended.value.code == 2
    assert text in capsys.readouterr().err


def test_a_job_file_that_is_not_there_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["nowhere.yaml"]) == 2
    assert "there is no job file nowhere.yaml" in capsys.readouterr().err
