"""Run inside a network namespace: makes the cluster of cluster.yaml on a mocked EC2, and prints what there
is then.

    python mocked_ec2.py FOLDER     (AWS_ENDPOINT_URL names moto's server)
"""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import boto3
import yaml

ROOT = Path(__file__).resolve().parents[2]
SSH_FROM = "203.0.113.7/32"


def _account() -> dict[str, str]:
    """What deploy/aws-account.yaml makes, by the names of its outputs."""
    stacks = boto3.client("cloudformation")
    stacks.create_stack(
        StackName="mpma",
        TemplateBody=(ROOT / "deploy" / "aws-account.yaml").read_text(),
        Parameters=[{"ParameterKey": "SshFrom", "ParameterValue": SSH_FROM}],
        Capabilities=["CAPABILITY_NAMED_IAM"],
    )
    outputs = stacks.describe_stacks(StackName="mpma")["Stacks"][0]["Outputs"]
    return {output["OutputKey"]: output["OutputValue"] for output in outputs}


def _cluster_file(folder: Path, made: dict[str, str]) -> Path:
    """cluster.yaml with the values that a user must change."""
    image = boto3.client("ec2").describe_images()["Images"][0]["ImageId"]
    text = (ROOT / "cluster.yaml").read_text()
    for before, after in (
        ("sg-CHANGE-ME", made["SecurityGroup"]),
        ("arn:aws:iam::CHANGE-ME:instance-profile/mpma-head", made["HeadProfileArn"]),
        ("arn:aws:iam::CHANGE-ME:instance-profile/mpma-worker", made["WorkerProfileArn"]),
        ("ami-CHANGE-ME", image),
    ):
        assert text.count(before) == 1, before
        text = text.replace(before, after)
    file = folder / "cluster.yaml"
    file.write_text(text)
    return file


def _ray_up(folder: Path, file: Path) -> tuple[int | None, str]:
    """(exit code, what it said) of `ray up`; no code where it was still at work after half a minute."""
    log = folder / "up.log"
    up = [str(Path(sys.executable).with_name("ray")), "up", "--yes", "--no-config-cache", str(file)]
    code = None
    with log.open("wb") as stream, contextlib.suppress(subprocess.TimeoutExpired):
        done = subprocess.run(
            up, timeout=30, stdin=subprocess.DEVNULL, stdout=stream, stderr=subprocess.STDOUT
        )
        code = done.returncode
    return code, log.read_text()


def _workers(file: Path) -> dict[str, Any]:
    """One machine of every worker type, as the autoscaler on the head would make it; the types."""
    from ray.autoscaler._private.aws.config import bootstrap_aws
    from ray.autoscaler._private.aws.node_provider import AWSNodeProvider
    from ray.autoscaler._private.util import prepare_config
    from ray.autoscaler.tags import TAG_RAY_NODE_KIND, TAG_RAY_USER_NODE_TYPE

    config = bootstrap_aws(prepare_config(yaml.safe_load(file.read_text())))
    provider = AWSNodeProvider(config["provider"], config["cluster_name"])
    for name, node_type in config["available_node_types"].items():
        if name != config["head_node_type"]:
            tags = {TAG_RAY_NODE_KIND: "worker", TAG_RAY_USER_NODE_TYPE: name}
            provider.create_node(node_type["node_config"], tags, 1)
    return dict(config["available_node_types"])


def main(folder: Path) -> dict[str, Any]:
    """Account, head by `ray up`, workers; then what EC2 has."""
    made = _account()
    ec2 = boto3.client("ec2")
    unchanged, said = _ray_up(folder, ROOT / "cluster.yaml")
    refused = {"code": unchanged, "said": said, "instances": len(ec2.describe_instances()["Reservations"])}
    file = _cluster_file(folder, made)
    # It makes the head, then tries to reach it by ssh without end; there is no way out of here.
    _ray_up(folder, file)
    kinds = _workers(file)
    instances = [one for group in ec2.describe_instances()["Reservations"] for one in group["Instances"]]
    spot = ec2.describe_spot_instance_requests()["SpotInstanceRequests"]
    machines = sorted({kind["node_config"]["InstanceType"] for kind in kinds.values()})
    return {
        "account": made,
        "refused": refused,
        "kinds": {name: kind["resources"] for name, kind in kinds.items()},
        "catalogue": ec2.describe_instance_types(InstanceTypes=machines)["InstanceTypes"],
        "instances": instances,
        "spot": spot,
        "group": ec2.describe_security_groups(GroupIds=[made["SecurityGroup"]])["SecurityGroups"][0],
        "groups": [group["GroupName"] for group in ec2.describe_security_groups()["SecurityGroups"]],
        "profiles": [
            profile["InstanceProfileName"]
            for profile in boto3.client("iam").list_instance_profiles()["InstanceProfiles"]
        ],
        "buckets": [bucket["Name"] for bucket in boto3.client("s3").list_buckets()["Buckets"]],
    }


if __name__ == "__main__":
    print("RESULT " + json.dumps(main(Path(sys.argv[1])), default=str))
