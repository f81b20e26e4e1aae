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


def _workers(file: Path) -> None:
    """One machine of every worker type, as the autoscaler on the head would make it."""
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


def main(folder: Path) -> dict[str, Any]:
    """Account, head by `ray up`, workers; then what EC2 has."""
    made = _account()
    file = _cluster_file(folder, made)
    # It makes the head, then tries to reach it by ssh without end; there is no way out of here.
    with contextlib.suppress(subprocess.TimeoutExpired):
        up = [str(Path(sys.executable).with_name("ray")), "up", "--yes", "--no-config-cache", str(file)]
        log = (folder / "up.log").open("wb")
        subprocess.run(up, timeout=30, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT)
    _workers(file)
    ec2 = boto3.client("ec2")
    instances = [one for group in ec2.describe_instances()["Reservations"] for one in group["Instances"]]
    spot = ec2.describe_spot_instance_requests()["SpotInstanceRequests"]
    return {
        "account": made,
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
