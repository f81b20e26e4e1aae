"""Which machines Ray's autoscaler asks for with the kinds of cluster.yaml, and what it makes of a refusal."""

from __future__ import annotations

from collections import Counter
from functools import partial
from typing import Any

import pytest
import yaml
from network_hosts import ROOT
from ray.autoscaler._private.node_provider_availability_tracker import NodeProviderAvailabilityTracker
from ray.autoscaler._private.resource_demand_scheduler import _default_utilization_scorer, get_nodes_for
from ray.autoscaler.node_launch_exception import NodeLaunchException

from orchestration import spot_first

CONFIG = yaml.safe_load((ROOT / "cluster.yaml").read_text())
NOW = 1_000_000
REFUSAL = NodeLaunchException("InsufficientInstanceCapacity", "none left", None)


class Clock:
    """Refusals and the time at which they are looked at."""

    def __init__(self) -> None:
        self.now = NOW
        self.tracker = NodeProviderAvailabilityTracker(timer=lambda: self.now)

    def refuse(self, kind: str, seconds_ago: int = 0) -> None:
        self.tracker.update_node_availability(kind, self.now - seconds_ago, REFUSAL)


def _asked(
    clock: Clock,
    requests: list[dict[str, float]],
    running: dict[str, int] | None = None,
    scorer: Any = spot_first.score,
) -> dict[str, int]:
    """The machines that Ray's own scheduler would add."""
    added, _ = get_nodes_for(
        CONFIG["available_node_types"],
        running or {},
        CONFIG["head_node_type"],
        CONFIG["max_workers"],
        requests,
        partial(scorer, node_availability_summary=clock.tracker.summary()),
    )
    return dict(added)


ONE, EIGHT = {"CPU": 1.0, "GPU": 1.0}, {"CPU": 8.0, "GPU": 8.0}


def test_the_scorer_stands_in_the_start_command_of_the_head_and_loads_as_ray_loads_it() -> None:
    from ray.autoscaler._private.loader import load_function_or_class

    command = next(line for line in CONFIG["head_start_ray_commands"] if "ray start" in line)
    assert "RAY_enable_autoscaler_v2=0" in command
    name = command.split("RAY_AUTOSCALER_UTILIZATION_SCORER=")[1].split(";")[0]
    assert load_function_or_class(name) is spot_first.score


@pytest.mark.parametrize(("request_", "kind"), [(ONE, "one_gpu"), (EIGHT, "eight_gpus")])
def test_spot_comes_first_and_a_refused_kind_stands_back_for_half_an_hour(
    request_: dict[str, float], kind: str
) -> None:
    clock = Clock()
    assert _asked(clock, [request_]) == {f"{kind}_spot": 1}
    clock.refuse(f"{kind}_spot")
    assert _asked(clock, [request_]) == {f"{kind}_on_demand": 1}
    clock.now += 29 * 60
    assert _asked(clock, [request_]) == {f"{kind}_on_demand": 1}
    clock.now += 2 * 60
    assert _asked(clock, [request_]) == {f"{kind}_spot": 1}


def test_two_refused_kinds_are_asked_for_in_turn_and_never_replaced_by_larger_machines() -> None:
    clock = Clock()
    asked = []
    for _ in range(6):
        (kind,) = _asked(clock, [ONE])
        asked.append(kind)
        clock.refuse(kind)
        clock.now += 5
    assert asked == ["one_gpu_spot", "one_gpu_on_demand"] * 3


def test_a_trial_of_one_gpu_takes_a_large_machine_only_when_no_small_one_may_be_added() -> None:
    kinds = CONFIG["available_node_types"]
    full = {name: kind["max_workers"] for name, kind in kinds.items() if name.startswith("one_gpu")}
    nearly = {**full, "one_gpu_on_demand": full["one_gpu_on_demand"] - 1}
    assert _asked(Clock(), [ONE], running=nearly) == {"one_gpu_on_demand": 1}
    assert _asked(Clock(), [ONE], running=full) == {"eight_gpus_spot": 1}


def test_more_work_than_spot_machines_takes_on_demand_ones_as_well_within_the_most_of_all() -> None:
    asked = Counter(_asked(Clock(), [ONE] * 40))
    types = CONFIG["available_node_types"]
    assert asked["one_gpu_spot"] == types["one_gpu_spot"]["max_workers"]
    assert asked["one_gpu_on_demand"] > 0
    assert asked.total() <= CONFIG["max_workers"]


def test_requests_without_a_gpu_or_larger_than_any_machine_are_judged_as_by_ray_itself() -> None:
    for requests in ([{"CPU": 1.0}], [{"GPU": 9.0}], [{"CPU": 500.0}]):
        with_ours = bool(_asked(Clock(), requests))
        assert with_ours == bool(_asked(Clock(), requests, scorer=_default_utilization_scorer))


def test_rays_own_scorer_asks_again_for_what_was_refused() -> None:
    """Why there is a scorer of ours; if this fails, Ray has learnt it and the module may go."""
    clock = Clock()
    (kind,) = _asked(clock, [ONE], scorer=_default_utilization_scorer)
    clock.refuse(kind)
    assert _asked(clock, [ONE], scorer=_default_utilization_scorer) == {kind: 1}
