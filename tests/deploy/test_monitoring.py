"""deploy/monitoring is what Kubernetes accepts, and shows figures that there are."""

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from ps.server.exported_figures import server_figures
from ps.server.figures import ServerFigures, TableFigures
from scheduler.coordinator.evaluation import EvaluationResult
from scheduler.coordinator.exported_figures import coordinator_figures
from scheduler.coordinator.progressive import TaskWindow, WindowResult
from scheduler.coordinator.state import WorkerFigures
from scheduler.coordinator.status import Status
from scheduler.scaling.decisions import Scaling, ScalingView
from worker.score_sums import TaskResult

MONITORING = Path(__file__).resolve().parents[2] / "deploy" / "monitoring"
DASHBOARD = json.loads((MONITORING / "grafana-dashboard.json").read_text())


@pytest.mark.parametrize("name", ["prometheus.yaml", "grafana.yaml"])
def test_kubernetes_accepts_it(name: str) -> None:
    for resource in yaml.safe_load_all((MONITORING / name).read_text()):
        kubernetes_validate.validate(resource, "1.32", strict=True)


def test_every_volume_has_a_source_that_is_made() -> None:
    kustomization = yaml.safe_load((MONITORING / "kustomization.yaml").read_text())
    made = {each["name"]: each["files"] for each in kustomization["configMapGenerator"]}
    named = set()
    for name in kustomization["resources"]:
        for resource in yaml.safe_load_all((MONITORING / name).read_text()):
            if resource["kind"] == "Deployment":
                volumes = resource["spec"]["template"]["spec"]["volumes"]
                named |= {v["configMap"]["name"] for v in volumes if "configMap" in v}

    assert named == set(made)
    assert all((MONITORING / file).is_file() for files in made.values() for file in files)


def test_prometheus_scrapes_the_port_that_pods_of_ray_name() -> None:
    (job,) = yaml.safe_load((MONITORING / "prometheus.yml").read_text())["scrape_configs"]
    keep = next(rule for rule in job["relabel_configs"] if rule.get("action") == "keep")
    clusters = yaml.safe_load_all((MONITORING.parent / "kuberay" / "raycluster.yaml").read_text())
    spec = next(each["spec"] for each in clusters if each["kind"] == "RayCluster")
    groups = [spec["headGroupSpec"], *spec["workerGroupSpecs"]]
    ports = [
        {port["name"]: port["containerPort"] for port in pod["containers"][0]["ports"]}
        for pod in (group["template"]["spec"] for group in groups)
    ]

    assert keep["regex"] == "yes;metrics"
    assert [port["metrics"] for port in ports] == [8080] * 3


def exported() -> dict[str, set[str]]:
    """Return the tags of every metric that a job exports, by the name that Prometheus sees."""
    decision = Scaling(
        number=1, role="worker", before=1, after=2, cause="gain", reason="", rate=1.0,
        predicted=2.0, realised=2.0,
    )  # fmt: skip
    of_servers = replace(decision, role="server", cause="load", share=1.0)
    status = Status(
        workers={0: WorkerFigures()},
        shard_lag=(0,),
        last_evaluation=EvaluationResult(
            step=1,
            clock=1,
            auc=0.5,
            auc_error_bound=0.0,
            logloss=0.5,
            samples=1,
            samples_skipped=0,
            gauc=0.5,
            tasks=(TaskResult("click", 0.5, 0.0, 0.5, 1),),
        ),
        last_window=WindowResult(
            begins=0.0,
            seconds=1.0,
            step=1,
            samples=1,
            label_rate=0.5,
            auc=0.5,
            auc_error_bound=0.0,
            logloss=0.5,
            normalized_entropy=1.0,
            calibration=1.0,
            tasks=(
                TaskWindow(
                    name="click",
                    samples=1,
                    label_rate=0.5,
                    auc=0.5,
                    auc_error_bound=0.0,
                    logloss=0.5,
                    normalized_entropy=1.0,
                    calibration=1.0,
                ),
            ),
        ),
        scaling=ScalingView(
            last=decision,
            last_of_servers=of_servers,
            servers=1,
            counts=(("worker", "gain", 1),),
        ),
    )
    figures = coordinator_figures(status)
    figures += server_figures(0, ServerFigures(tables={"t": TableFigures()}))
    return {
        f"ray_synchromesh_{each.name}" + ("_total" if each.kind == "counter" else ""): {
            "run", "role", "index", *each.labels
        }
        for each in figures
    }  # fmt: skip


def expressions() -> list[tuple[str, str, str]]:
    return [
        (panel["title"], target["expr"], target["legendFormat"])
        for panel in DASHBOARD["panels"]
        for target in panel["targets"]
    ]


@pytest.mark.parametrize(("title", "expression", "legend"), expressions())
def test_a_panel_shows_metrics_that_jobs_export(title: str, expression: str, legend: str) -> None:
    known = exported()
    names = re.findall(r"ray_synchromesh_\w+", expression)
    tags = set(re.findall(r"(\w+)(?:=~|=)\"", expression))
    for inside in re.findall(r"by \(([^)]*)\)", expression):
        tags |= set(re.split(r",\s*", inside))
    tags |= set(re.findall(r"{{(\w+)}}", legend))

    assert names
    for name in names:
        assert name in known, f"{title}: no job exports {name}"
        assert tags <= known[name], f"{title}: {name} has no tag {tags - known[name]}"


def test_every_metric_is_on_the_dashboard() -> None:
    shown = set(re.findall(r"ray_synchromesh_\w+", json.dumps(DASHBOARD["panels"])))

    assert set(exported()) - shown == set()


def test_the_dashboard_reads_from_the_source_that_is_provisioned() -> None:
    (source,) = yaml.safe_load((MONITORING / "datasource.yaml").read_text())["datasources"]
    named: set[Any] = {panel["datasource"]["uid"] for panel in DASHBOARD["panels"]}

    assert named == {source["uid"]}
