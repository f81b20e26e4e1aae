"""deploy/kuberay.yaml without a Kubernetes: known fields, closed, and in agreement with the rest."""

from __future__ import annotations

import re
from importlib.metadata import version
from typing import Any

import kubernetes_validate
import pytest
import yaml
from network_hosts import ROOT

JOB_FIELDS = {
    "entrypoint",
    "submissionMode",
    "shutdownAfterJobFinishes",
    "ttlSecondsAfterFinished",
    "rayClusterSpec",
}
CLUSTER_FIELDS = {"rayVersion", "authOptions", "enableInTreeAutoscaling", "headGroupSpec", "workerGroupSpecs"}
GROUP_FIELDS = {"groupName", "replicas", "minReplicas", "maxReplicas", "rayStartParams", "template"}


@pytest.fixture(scope="module")
def documents() -> dict[str, Any]:
    text = (ROOT / "deploy" / "kuberay.yaml").read_text()
    return {document["kind"]: document for document in yaml.safe_load_all(text)}


@pytest.fixture(scope="module")
def pods(documents: dict[str, Any]) -> list[dict[str, Any]]:
    cluster = documents["RayJob"]["spec"]["rayClusterSpec"]
    return [group["template"]["spec"] for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"])]


def test_fields_are_those_of_a_ray_job(documents: dict[str, Any]) -> None:
    job = documents["RayJob"]
    assert job["apiVersion"] == "ray.io/v1"
    assert set(job["spec"]) == JOB_FIELDS
    cluster = job["spec"]["rayClusterSpec"]
    assert set(cluster) == CLUSTER_FIELDS
    assert set(cluster["headGroupSpec"]) == {"serviceType", "rayStartParams", "template"}
    for group in cluster["workerGroupSpecs"]:
        assert set(group) == GROUP_FIELDS
        assert group["minReplicas"] <= group["replicas"] <= group["maxReplicas"]


def test_pods_and_policy_fit_the_schema_of_kubernetes(
    documents: dict[str, Any], pods: list[dict[str, Any]]
) -> None:
    newest = kubernetes_validate.latest_version()
    named = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "ray"}}
    for document in (documents["NetworkPolicy"], *({**named, "spec": pod} for pod in pods)):
        kubernetes_validate.validate(document, newest, strict=True)  # unknown fields are refused too
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate({**named, "spec": {**pods[0], "container": []}}, newest, strict=True)


def test_ray_is_the_one_of_the_lock_and_wants_a_token(documents: dict[str, Any]) -> None:
    cluster = documents["RayJob"]["spec"]["rayClusterSpec"]
    locked = re.search(r"^ray==(\S+)$", (ROOT / "requirements.lock").read_text(), re.M)
    assert locked is not None
    assert cluster["rayVersion"] == locked[1] == version("ray")
    assert cluster["authOptions"] == {"mode": "token"}


def test_the_head_trains_nothing_and_no_port_leaves_the_cluster(
    documents: dict[str, Any], pods: list[dict[str, Any]]
) -> None:
    head = documents["RayJob"]["spec"]["rayClusterSpec"]["headGroupSpec"]
    assert head["serviceType"] == "ClusterIP"
    assert (head["rayStartParams"]["num-cpus"], head["rayStartParams"]["num-gpus"]) == ("0", "0")
    assert "trial_driver" in head["rayStartParams"]["resources"]
    policy = documents["NetworkPolicy"]["spec"]
    assert policy["policyTypes"] == ["Ingress"]
    # Each `from` names pods: an empty one would admit everybody.
    assert all(peer["podSelector"] for rule in policy["ingress"] for peer in rule["from"])
    for pod in pods:
        assert "hostNetwork" not in pod
        assert pod["automountServiceAccountToken"] is False
        assert pod["securityContext"]["runAsNonRoot"] is True
        (container,) = pod["containers"]
        assert container["securityContext"]["allowPrivilegeEscalation"] is False
        assert "ports" not in container


def test_its_variables_are_those_of_every_cluster(pods: list[dict[str, Any]]) -> None:
    start = yaml.safe_load((ROOT / "deploy" / "on-prem.yaml").read_text())["worker_start_ray_commands"][-1]
    expected = dict(re.findall(r"(RAY_\w+)=([^\s;]+)", start))
    del expected["RAY_AUTH_MODE"]  # the operator sets it, with the token
    for pod in pods:
        assert {one["name"]: one["value"] for one in pod["containers"][0]["env"]} == expected


def test_what_the_image_is_built_from_exists() -> None:
    for line in (ROOT / "deploy" / "Dockerfile").read_text().splitlines():
        if line.startswith("COPY "):
            for source in line.split()[2:-1]:
                assert (ROOT / source).exists(), source
