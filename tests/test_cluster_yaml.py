"""cluster.yaml is what Ray accepts, and offers what jobs ask for."""

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def cluster() -> dict[str, Any]:
    return yaml.safe_load((ROOT / "cluster.yaml").read_text())


def test_ray_accepts_it(cluster: dict[str, Any]) -> None:
    from ray.autoscaler._private.util import prepare_config, validate_config

    validate_config(prepare_config(cluster))


def test_it_offers_every_resource_that_the_documented_job_asks_for(
    cluster: dict[str, Any],
) -> None:
    page = (ROOT / "docs" / "running-on-a-cluster.md").read_text()
    asked = set(re.findall(r"\{(ps|worker|coordinator): [\d.]+\}", page))
    offered = {r for node in cluster["available_node_types"].values() for r in node["resources"]}

    assert asked == {"ps", "worker", "coordinator"}
    assert asked <= offered


def test_every_node_installs_what_the_project_needs(cluster: dict[str, Any]) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    needed = {d for d in project["dependencies"] if not d.startswith("ray")}
    installed = set(re.findall(r'"([^"]+)"', cluster["setup_commands"][0]))

    assert installed == needed


def test_servers_are_on_nodes_that_stay_and_workers_on_spot_nodes(cluster: dict[str, Any]) -> None:
    types = cluster["available_node_types"]
    spot = {name: "InstanceMarketOptions" in each["node_config"] for name, each in types.items()}

    assert spot == {"head": False, "ps": False, "worker": True}
    assert types["ps"]["labels"] == {"role": "ps", "market": "on-demand"}
    assert types["worker"]["labels"] == {"role": "worker", "market": "spot"}
    assert types["worker"]["min_workers"] == 0


def test_every_node_asks_for_the_token_that_it_is_given(cluster: dict[str, Any]) -> None:
    assert cluster["file_mounts"] == {"/home/ray/.ray/auth_token": "~/.ray/auth_token"}
    for role in ("head", "worker"):
        (start,) = [c for c in cluster[f"{role}_start_ray_commands"] if "ray start" in c]
        assert start.startswith("export RAY_AUTH_MODE=token;")
        assert "--dashboard-host" not in start  # of the loopback address alone
