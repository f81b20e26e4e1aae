"""cluster.yaml's machines on a mocked EC2: what they are, who may reach them, what they may do.

moto's server and everything that talks to it run in a network namespace that has nothing but loopback,
since `ray up` then tries to reach its head by ssh.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import yaml
from network_hosts import ROOT, Host, forget_ended, require_namespaces

pytestmark = [pytest.mark.slow, pytest.mark.timeout(240)]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Any]]:
    """What there is on EC2 after the account's stack, `ray up`, and a machine of every worker type."""
    if find_spec("moto") is None or find_spec("boto3") is None:
        pytest.skip("moto is not installed")
    require_namespaces()
    forget_ended()
    folder = tmp_path_factory.mktemp("aws")
    (folder / "home" / ".ray").mkdir(parents=True)
    (folder / "home" / ".ray" / "auth_token").write_text("0" * 64)
    alone = Host("alone", f"mpma{os.getpid()}-alone", "127.0.0.1", 1)
    environment = {
        **os.environ,
        "HOME": str(folder / "home"),
        "PYTHONPATH": str(ROOT),
        "AWS_ENDPOINT_URL": "http://127.0.0.1:5555",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_ACCESS_KEY_ID": "nobody",
        "AWS_SECRET_ACCESS_KEY": "nothing",
        "MOTO_IAM_LOAD_MANAGED_POLICIES": "true",
        "AWS_EC2_METADATA_DISABLED": "true",
    }
    subprocess.run(["ip", "netns", "add", alone.namespace], check=True)
    try:
        subprocess.run(["ip", "-n", alone.namespace, "link", "set", "lo", "up"], check=True)
        server = [
            sys.executable,
            "-c",
            "from moto.server import main; main()",
            "-H",
            "127.0.0.1",
            "-p",
            "5555",
        ]
        log = (folder / "moto.log").open("wb")
        subprocess.Popen(alone.command(server), env=environment, stdout=log, stderr=subprocess.STDOUT)
        listening = ["bash", "-c", "exec 3<>/dev/tcp/127.0.0.1/5555"]
        end = time.monotonic() + 60
        while subprocess.run(alone.command(listening), capture_output=True).returncode:
            assert time.monotonic() < end, (folder / "moto.log").read_text()
            time.sleep(0.3)
        done = subprocess.run(
            alone.command([sys.executable, str(Path(__file__).with_name("mocked_ec2.py")), str(folder)]),
            env=environment,
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=180,
        )
        results = [line for line in done.stdout.splitlines() if line.startswith("RESULT ")]
        assert results, done.stdout[-3000:] + done.stderr[-3000:]
        yield json.loads(results[0].removeprefix("RESULT "))
    finally:
        alone.kill_everything()
        subprocess.run(["ip", "netns", "delete", alone.namespace], check=False)


def _by_type(made: dict[str, Any]) -> dict[str, dict[str, Any]]:
    found = {}
    for instance in made["instances"]:
        tags = {tag["Key"]: tag["Value"] for tag in instance["Tags"]}
        found[tags["ray-user-node-type"]] = {**instance, "tags": tags}
    return found


def test_a_file_that_nobody_has_filled_in_starts_nothing_and_says_why(made: dict[str, Any]) -> None:
    refused = made["refused"]
    assert refused["code"] not in (0, None), refused["said"][-2000:]
    assert refused["instances"] == 0
    assert "SecurityGroupIds" in refused["said"]


def test_the_file_says_of_its_machines_what_the_catalogue_of_ec2_says(made: dict[str, Any]) -> None:
    """A kind with more CPUs in the file than in truth would be given more work than it can do."""
    catalogue = {each["InstanceType"]: each for each in made["catalogue"]}
    for name, node in yaml.safe_load((ROOT / "cluster.yaml").read_text())["available_node_types"].items():
        machine = catalogue[node["node_config"]["InstanceType"]]
        gpus = sum(each["Count"] for each in machine.get("GpuInfo", {}).get("Gpus", []))
        if name == "head":
            assert gpus == 0
        else:
            has = {"CPU": machine["VCpuInfo"]["DefaultVCpus"], "GPU": gpus}
            assert node["resources"] == has, name
            assert {key: made["kinds"][name][key] for key in has} == has


def test_every_node_type_is_made_as_the_file_says(made: dict[str, Any]) -> None:
    types = yaml.safe_load((ROOT / "cluster.yaml").read_text())["available_node_types"]
    instances = _by_type(made)
    assert set(instances) == set(types)
    for name, instance in instances.items():
        wanted = types[name]["node_config"]
        assert instance["InstanceType"] == wanted["InstanceType"]
        assert instance["tags"]["project"] == "mpma"
        assert instance["tags"]["ray-cluster-name"] == "mpma"
        assert instance["MetadataOptions"]["HttpTokens"] == "required"
        spot = instance.get("InstanceLifecycle") == "spot"
        assert spot == name.endswith("_spot"), name


def test_machines_stand_in_the_closed_group_alone_and_ray_has_made_none_of_its_own(
    made: dict[str, Any],
) -> None:
    for instance in made["instances"]:
        assert [group["GroupId"] for group in instance["SecurityGroups"]] == [
            made["account"]["SecurityGroup"]
        ]
    assert not [name for name in made["groups"] if name.startswith("ray-")]
    rules = made["group"]["IpPermissions"]
    from_outside = [rule for rule in rules if rule["IpRanges"] or rule.get("Ipv6Ranges")]
    assert [(rule["FromPort"], rule["ToPort"], rule["IpProtocol"]) for rule in from_outside] == [
        (22, 22, "tcp")
    ]
    assert [entry["CidrIp"] for entry in from_outside[0]["IpRanges"]] == ["203.0.113.7/32"]
    among = [rule for rule in rules if not rule["IpRanges"]]
    assert [pair["GroupId"] for rule in among for pair in rule["UserIdGroupPairs"]] == [
        made["account"]["SecurityGroup"]
    ]


def test_head_and_workers_have_the_roles_of_the_stack_and_the_bucket_is_private(made: dict[str, Any]) -> None:
    profiles = {name: each["IamInstanceProfile"]["Arn"] for name, each in _by_type(made).items()}
    assert profiles.pop("head") == made["account"]["HeadProfileArn"]
    assert set(profiles.values()) == {made["account"]["WorkerProfileArn"]}
    assert sorted(made["profiles"]) == ["mpma-head", "mpma-worker"], "none of Ray's, which may do anything"
    assert made["buckets"] == [made["account"]["BucketName"]]
    # The mocked CloudFormation makes the bucket and leaves these out.
    stack = (ROOT / "deploy" / "aws-account.yaml").read_text()
    for name in ("BlockPublicAcls", "BlockPublicPolicy", "IgnorePublicAcls", "RestrictPublicBuckets"):
        assert f"{name}: true" in stack


@pytest.mark.parametrize(
    ("network", "taken"),
    [
        ("203.0.113.7/32", True),
        ("198.51.100.0/24", True),
        ("0.0.0.0/0", False),
        ("10.0.0.0/7", False),
        ("", False),
    ],
)
def test_the_stack_takes_a_network_of_ones_own_and_not_the_world(network: str, taken: bool) -> None:
    stack = (ROOT / "deploy" / "aws-account.yaml").read_text()
    pattern = re.search(r'AllowedPattern: "(.*)"', stack)
    assert pattern
    assert bool(re.fullmatch(pattern[1].replace("\\\\", "\\"), network)) == taken
