"""deploy/kuberay is what Kubernetes, KubeRay and Ray's autoscaler accept, and fits the job in it.

Pods and Kubernetes' own kinds are held against the schemas of Kubernetes, KubeRay's fields against
a list of their names and types (kuberay_fields.yaml), and the cluster against what the autoscaler
in Ray's wheel makes of it.
"""

from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from scheduler.job.config import JobConfig

ROOT = Path(__file__).resolve().parents[2]
KUBERAY = ROOT / "deploy" / "kuberay"
FIELDS = yaml.safe_load((Path(__file__).parent / "kuberay_fields.yaml").read_text())
KUBERNETES = "1.32"
TYPES: dict[str, Any] = {"string": str, "integer": int, "boolean": bool, "number": (int, float)}


def documents(name: str) -> dict[str, Any]:
    """Return the documents of a file by kind."""
    found = list(yaml.safe_load_all((KUBERAY / name).read_text()))
    return {each["kind"]: each for each in found}


def wrong_fields(value: Any, allowed: Any, where: str) -> list[str]:
    """Return what KubeRay would not take, by path."""
    if allowed == "PodTemplateSpec":
        return wrong_pod(value, where)
    if allowed == "ResourceRequirements":
        pod = {"spec": {"containers": [{"name": "x", "image": "x", "resources": value}]}}
        return wrong_pod(pod, where)
    if isinstance(allowed, str) and allowed in FIELDS:
        return wrong_fields(value, FIELDS[allowed], where)
    if allowed == "strings":
        texts = isinstance(value, dict) and all(isinstance(v, str) for v in value.values())
        return [] if texts else [f"{where} must map names to texts"]
    if isinstance(allowed, list) and isinstance(allowed[0], dict):
        return [
            text
            for i, each in enumerate(value)
            for text in wrong_fields(each, allowed[0], f"{where}.{i}")
        ]
    if isinstance(allowed, list):
        return [] if value in allowed else [f"{where} must be one of {allowed}"]
    if isinstance(allowed, dict):
        unknown = [f"{where}.{name} is unknown" for name in set(value) - set(allowed)]
        return unknown + [
            text
            for name in set(value) & set(allowed)
            for text in wrong_fields(value[name], allowed[name], f"{where}.{name}")
        ]
    right = isinstance(value, TYPES[allowed]) and (allowed == "boolean") == isinstance(value, bool)
    return [] if right else [f"{where} must be of type {allowed}"]


def wrong_pod(template: dict[str, Any], where: str) -> list[str]:
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "x"}, **template}
    try:
        kubernetes_validate.validate(pod, KUBERNETES, strict=True)
    except kubernetes_validate.ValidationError as error:
        return [f"{where}: {error.message}"]
    return []


@pytest.mark.parametrize(
    ("name", "kind"), [("raycluster.yaml", "RayCluster"), ("rayjob.yaml", "RayJob")]
)
def test_kuberay_accepts_it(name: str, kind: str) -> None:
    resource = documents(name)[kind]

    assert resource["apiVersion"] == "ray.io/v1"
    assert wrong_fields(resource["spec"], FIELDS[kind], "spec") == []


@pytest.mark.parametrize(
    ("name", "kind"), [("raycluster.yaml", "PersistentVolumeClaim"), ("rayjob.yaml", "ConfigMap")]
)
def test_kubernetes_accepts_it(name: str, kind: str) -> None:
    kubernetes_validate.validate(documents(name)[kind], KUBERNETES, strict=True)


def test_a_misspelt_field_is_found() -> None:
    spec = documents("raycluster.yaml")["RayCluster"]["spec"]
    group = spec["workerGroupSpecs"][0]
    container = group["template"]["spec"]["containers"][0]
    group["maxReplica"] = 3
    container["imagePullPolice"] = "Always"
    spec["authOptions"] = {"mode": "tokens"}
    group["resources"]["ps"] = 1

    texts = " ".join(wrong_fields(spec, FIELDS["RayCluster"], "spec"))

    for expected in (
        "workerGroupSpecs.0.maxReplica is unknown",
        "imagePullPolice",
        "authOptions.mode must be one of ['disabled', 'token']",
        "resources must map names to texts",
    ):
        assert expected in texts


def node_types(cluster: dict[str, Any]) -> dict[str, Any]:
    """Return what Ray's autoscaler makes of a RayCluster."""
    from ray.autoscaler._private.kuberay import autoscaling_config

    cluster["metadata"]["namespace"] = "default"
    made = autoscaling_config._derive_autoscaling_config_from_ray_cr(cluster)
    types: dict[str, Any] = made["available_node_types"]
    return types


def test_the_autoscaler_knows_which_pods_have_what_the_job_asks_for() -> None:
    types = node_types(documents("raycluster.yaml")["RayCluster"])
    config = job().cluster

    for role, group in (("coordinator", "headgroup"), ("server", "ps"), ("worker", "worker")):
        offered = types[group]
        asked = {"CPU": getattr(config, f"{role}_cpus"), **getattr(config.resources, role)}
        assert all(offered["resources"][name] >= amount for name, amount in asked.items())
        assert getattr(config.labels, role).items() <= offered["labels"].items()
    worker = types["worker"]
    places = min(
        worker["resources"]["worker"] // config.resources.worker["worker"],
        worker["resources"]["CPU"] // config.worker_cpus,
    )
    assert worker["max_workers"] * places >= job().max_workers
    assert types["ps"]["max_workers"] >= config.servers


def job() -> JobConfig:
    """Return the job of rayjob.yaml, as its entrypoint would read it."""
    resources = documents("rayjob.yaml")
    command, path, *overrides = resources["RayJob"]["spec"]["entrypoint"].split()[1:]
    assert (command, path) == ("train", "/etc/synchromesh/job.yaml")
    values = yaml.safe_load(resources["ConfigMap"]["data"]["job.yaml"])
    for override in overrides:
        section, name = override.split("=")[0].split(".")
        values[section][name] = override.split("=")[1]
    return JobConfig.from_dict(values)


def test_each_try_of_the_job_goes_on_in_a_directory_that_outlives_its_cluster() -> None:
    config = job()
    spec = documents("rayjob.yaml")["RayJob"]["spec"]
    head = spec["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]
    mounts = {m["mountPath"]: m["name"] for m in head["containers"][0]["volumeMounts"]}
    volumes = {volume["name"]: volume for volume in head["volumes"]}

    assert spec["backoffLimit"] > 0
    assert (config.run.resume, config.run.dir) == ("auto", "/shared/runs/dlrm")
    assert "persistentVolumeClaim" in volumes[mounts["/shared"]]
    assert volumes[mounts["/etc/synchromesh"]]["configMap"]["name"] == "synchromesh-job"
    assert config.cluster.autoscale


def test_the_job_has_the_cluster_of_the_other_file() -> None:
    cluster = documents("raycluster.yaml")["RayCluster"]["spec"]
    of_job = documents("rayjob.yaml")["RayJob"]["spec"]["rayClusterSpec"]
    head = of_job["headGroupSpec"]["template"]["spec"]
    head["containers"][0]["volumeMounts"].pop()
    head["volumes"].pop()

    assert of_job == cluster
