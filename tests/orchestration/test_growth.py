"""What a cluster can become, from the file that its autoscaler was started with."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from orchestration import growth

ROOT = Path(growth.__file__).parents[1]
ADDRESS = "192.0.2.7:6399"


def _config(most: int, **kinds: dict[str, Any]) -> dict[str, Any]:
    head = {"resources": {"CPU": 64, "trial_driver": 64}, "max_workers": 0}
    return {
        "available_node_types": {"head": head, **kinds},
        "head_node_type": "head",
        "max_workers": most,
    }


def _kind(most: int | None = None, **resources: float) -> dict[str, Any]:
    return {"resources": resources} | ({} if most is None else {"max_workers": most})


@pytest.mark.parametrize(
    ("config", "most"),
    [
        (_config(9, small=_kind(2, CPU=4)), {"CPU": 8}),
        (_config(1, small=_kind(2, CPU=4)), {"CPU": 4}),
        (_config(3, small=_kind(None, CPU=4)), {"CPU": 12}),
        (_config(3, small=_kind(2, CPU=4, GPU=1), large=_kind(2, CPU=16, GPU=8)), {"CPU": 36, "GPU": 17}),
        (_config(2, small=_kind(2, CPU=4), large=_kind(1, GPU=8)), {"CPU": 8, "GPU": 8}),
        (_config(5, none=_kind(0, CPU=4)), {"CPU": 0}),
        (_config(0, small=_kind(2, CPU=4)), {"CPU": 0}),
        (_config(5, rack={"resources": {}}), {}),
        ({}, {}),
    ],
)
def test_kinds_bound_one_another_and_the_head_does_not_count(
    config: dict[str, Any], most: dict[str, float]
) -> None:
    assert growth.most_of_each(config) == most


def test_the_shipped_cluster_can_hold_what_its_file_says() -> None:
    config = yaml.safe_load((ROOT / "cluster.yaml").read_text())
    machines = sorted(
        (
            kind["resources"]["GPU"]
            for name, kind in config["available_node_types"].items()
            if name != "head"
            for _ in range(kind["max_workers"])
        ),
        reverse=True,
    )
    assert growth.most_of_each(config)["GPU"] == sum(machines[: config["max_workers"]]) >= 8


@pytest.fixture
def autoscaler(tmp_path: Path) -> Iterator[Path]:
    """A process with the command line of the autoscaler of the Ray at `ADDRESS`; the file that it names."""
    program, file = tmp_path / "monitor.py", tmp_path / "cluster.yaml"
    program.write_text("print('up', flush=True); input()")
    words = [f"--gcs-address={ADDRESS}", f"--autoscaling-config={file}"]
    process = subprocess.Popen(
        [sys.executable, str(program), *words], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert process.stdout
    process.stdout.readline()
    yield file
    process.communicate(b"\n", timeout=20)


def test_the_file_is_found_by_the_command_line_of_the_autoscaler_of_this_ray(autoscaler: Path) -> None:
    autoscaler.write_text(yaml.safe_dump(_config(2, small=_kind(2, CPU=4))))
    assert growth.possible(ADDRESS) == {"CPU": 8}
    assert growth.possible("192.0.2.8:6399") == {}, "the autoscaler of another Ray"


@pytest.mark.parametrize("text", [None, "", "- 1\n", "a: [", "available_node_types: {}"])
def test_a_file_that_says_nothing_leaves_what_there_is(autoscaler: Path, text: str | None) -> None:
    if text is not None:
        autoscaler.write_text(text)
    assert growth.possible(ADDRESS) == {}
