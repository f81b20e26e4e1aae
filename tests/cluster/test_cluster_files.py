"""The files that start clusters: valid for Ray, closed to strangers, with the same environment everywhere."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from network_hosts import ROOT

from orchestration.ray_environment import NODE
from orchestration.spot_first import SPOT

FILES = ("cluster.yaml", "deploy/gcp.yaml", "deploy/on-prem.yaml")


def _read(name: str) -> dict[str, Any]:
    return yaml.safe_load((ROOT / name).read_text())  # type: ignore[no-any-return]


@pytest.mark.parametrize("name", FILES)
def test_ray_accepts_the_file_and_its_schema_refuses_a_misspelt_key(name: str) -> None:
    from ray.autoscaler._private.util import prepare_config, validate_config

    validate_config(prepare_config(_read(name)))
    broken = prepare_config(_read(name))
    broken["idle_timeout"] = 5
    with pytest.raises(Exception, match="idle_timeout"):
        validate_config(broken)


@pytest.mark.parametrize("name", FILES)
def test_every_start_command_has_the_token_and_the_environment_of_a_node(name: str) -> None:
    config = _read(name)
    for key in ("head_start_ray_commands", "worker_start_ray_commands"):
        starts = [command for command in config[key] if "ray start" in command]
        assert len(starts) == 1, key
        given = dict(re.findall(r"(RAY_\w+)=(\S+?)[; ]", starts[0]))
        assert {variable: given.get(variable) for variable in NODE} == NODE, key


@pytest.mark.parametrize("name", FILES)
def test_nothing_listens_to_or_admits_the_world_and_no_secret_stands_in_the_file(name: str) -> None:
    text = (ROOT / name).read_text()
    assert "0.0.0.0" not in text
    head = next(command for command in _read(name)["head_start_ray_commands"] if "ray start" in command)
    assert "--dashboard-host=127.0.0.1" in head
    assert _read(name)["file_mounts"]["~/.ray/auth_token"] == "~/.ray/auth_token"
    assert any("chmod 600 ~/.ray/auth_token" in command for command in _read(name)["setup_commands"])


@pytest.mark.parametrize("name", FILES)
def test_what_is_copied_to_the_machines_is_there_and_holds_no_data(name: str) -> None:
    mounts = _read(name)["file_mounts"]
    for remote, local in mounts.items():
        if not local.startswith("~"):
            assert (ROOT / local).exists(), f"{remote}: {local}"
    assert not {"runs", "searches", "datasets", "."} & {Path(local).name or "." for local in mounts.values()}


@pytest.mark.parametrize("name", ["cluster.yaml", "deploy/gcp.yaml"])
def test_a_cloud_starts_with_a_head_without_work_and_grows_from_nothing_within_bounds(name: str) -> None:
    config = _read(name)
    types = config["available_node_types"]
    head = types.pop(config["head_node_type"])
    assert head["resources"]["CPU"] == 0
    assert head["resources"]["trial_driver"] > 0
    assert len(types) >= 3
    for node in types.values():
        assert node["min_workers"] == 0
        assert 0 < node["max_workers"] <= config["max_workers"]
        assert node["resources"]["GPU"] in (1, 8)
    spot = {key for key in types if key.endswith("_spot")}
    assert {key.replace("_spot", "_on_demand") for key in spot} == set(types) - spot
    for key in spot:
        # Machines that are not equal would never take one another's place.
        assert types[key]["resources"] == types[key.replace("_spot", "_on_demand")]["resources"]
    assert config["idle_timeout_minutes"] > 0


def test_on_aws_the_kinds_named_spot_are_the_spot_ones() -> None:
    """spot_first goes by the name."""
    for key, node in _read("cluster.yaml")["available_node_types"].items():
        market = node["node_config"].get("InstanceMarketOptions", {}).get("MarketType")
        assert (market == "spot") == key.endswith(SPOT), key
        assert "priority" not in node, "the autoscaler of this file does not read it"


def test_on_google_the_kinds_named_spot_are_the_spot_ones_and_come_first() -> None:
    types = _read("deploy/gcp.yaml")["available_node_types"]
    for key, node in types.items():
        (scheduling,) = node["node_config"].get("scheduling", [{}])
        assert (scheduling.get("provisioningModel") == "SPOT") == key.endswith(SPOT), key
        if key.endswith(SPOT):
            assert node["priority"] > types[key.replace("_spot", "_on_demand")]["priority"]


def test_on_aws_machines_use_a_group_of_ones_own_encrypted_disks_and_closed_credentials() -> None:
    config = _read("cluster.yaml")
    # Ray adds ssh from everywhere to every group that it makes, whatever the file says.
    assert "security_group" not in config["provider"]
    assert config["provider"]["cache_stopped_nodes"] is False
    for node in config["available_node_types"].values():
        settings = node["node_config"]
        assert settings["SecurityGroupIds"] == ["sg-CHANGE-ME"]
        assert settings["MetadataOptions"]["HttpTokens"] == "required"
        assert all(disk["Ebs"]["Encrypted"] for disk in settings["BlockDeviceMappings"])
        assert settings["IamInstanceProfile"]["Arn"].count("CHANGE-ME") == 1


def test_head_and_user_may_change_only_machines_that_carry_the_tag() -> None:
    """Read from the stack, since the mocked EC2 lets everybody do everything."""

    class Loader(yaml.SafeLoader):
        """CloudFormation's short forms, as what they are applied to."""

    Loader.add_multi_constructor("!", lambda loader, suffix, node: getattr(node, "value", suffix))
    text = (ROOT / "deploy" / "aws-account.yaml").read_text()
    resources = yaml.load(text, Loader)["Resources"]  # nothing but our own file is read
    of_head = resources["HeadRole"]["Properties"]["Policies"][1]["PolicyDocument"]["Statement"]
    of_user = resources["UserPolicy"]["Properties"]["PolicyDocument"]["Statement"]
    for statements in (of_head, of_user):
        for statement in statements:
            actions = statement["Action"] if isinstance(statement["Action"], list) else [statement["Action"]]
            assert not [action for action in actions if action in ("*", "ec2:*", "iam:*", "s3:*")]
            harmful = {"ec2:CreateTags", "ec2:TerminateInstances"} & set(actions)
            if harmful:
                (wanted,) = statement["Condition"]["StringEquals"].items()
                assert wanted in (("ec2:CreateAction", "RunInstances"), ("aws:ResourceTag/project", "mpma"))
                assert wanted[0] != "ec2:CreateAction" or harmful == {"ec2:CreateTags"}
            if "ec2:RunInstances" in actions and "Resource" in statement:
                assert statement["Condition"]["StringEquals"] == {"aws:RequestTag/project": "mpma"}
            if "iam:PassRole" in actions:
                assert statement["Resource"] != "*"
