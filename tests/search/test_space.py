"""What a space file means: parameters, conditions, rungs, points, objectives."""

from __future__ import annotations

import json
import math
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from mpma.config import load_config
from orchestration.search.parameters import Parameter
from orchestration.search.space import (
    Constraint,
    Fidelity,
    LoadedSpace,
    Objective,
    SearchSpace,
    apply_params,
    load_space,
)

ROOT = Path(__file__).resolve().parents[2]
RECIPE = ROOT / "recipes" / "search.yaml"
SHIPPED = sorted(
    path for path in (ROOT / "search_spaces").glob("*.yaml") if not path.name.startswith("planted_")
)
MEMORY = ROOT / "search_spaces" / "memory.yaml"


def parameter(**form: Any) -> Parameter:
    return Parameter.model_validate(form)


def load(tmp_path: Path, parameters: dict[str, Any], *overrides: str, **rest: Any) -> LoadedSpace:
    path = tmp_path / "space.yaml"
    path.write_text(
        yaml.safe_dump({"recipe": str(RECIPE), "parameters": parameters, **rest}, sort_keys=False)
    )
    return load_space(path, overrides=["memory.slots=128", "memory.top_k=16", *overrides])


# -- values ----------------------------------------------------------------------------------------------


def test_values_of_a_step_grid_are_clean() -> None:
    values = parameter(uniform=[0.15, 0.75], step=0.05).values()
    assert values == [0.15, 0.2, 0.25, 0.3, 0.35, 0.4, 0.45, 0.5, 0.55, 0.6, 0.65, 0.7, 0.75]
    assert parameter(uniform=[0.15, 0.75], step=0.05).normalised(0.15 + 3 * 0.05) == 0.3


def test_whole_numbers_stay_whole() -> None:
    found = parameter(int=[2, 8], step=3)
    assert found.values() == [2, 5, 8]
    assert all(isinstance(value, int) for value in found.values() or [])
    assert isinstance(found.normalised(4.9), int)
    assert parameter(log_int=[1, 4]).values() == [1, 2, 3, 4]


def test_a_continuous_range_has_no_list_of_values() -> None:
    assert parameter(log_uniform=[0.1, 10.0]).values() is None
    assert parameter(uniform=[0.0, 1.0]).values() is None


@pytest.mark.parametrize(
    ("form", "inside", "outside"),
    [
        (
            {"uniform": [0.4, 0.9], "step": 0.05},
            [0.4, 0.75, 0.9, 0.4 + 7 * 0.05],
            [0.39, 0.42, 0.95, "0.5", True],
        ),
        ({"log_uniform": [0.03, 3.0], "or_zero": True}, [0, 0.0, 0.03, 1.0, 3], [0.01, 3.1, math.nan]),
        ({"int": [1, 4]}, [1, 4, 2.0], [0, 5, 1.5]),
        ({"choice": [1, "a", None]}, [1, "a", None], [2, "b", True]),
        ({"fixed": 1.0}, [1.0, 1], [2.0]),
    ],
)
def test_a_parameter_knows_its_values(form: dict[str, Any], inside: list[Any], outside: list[Any]) -> None:
    found = parameter(**form)
    assert [value for value in inside if not found.contains(value)] == []
    assert [value for value in outside if found.contains(value)] == []


@pytest.mark.parametrize(
    ("form", "value", "nearest"),
    [
        ({"uniform": [0.4, 0.9], "step": 0.05}, 0.62, 0.6),
        ({"uniform": [0.4, 0.9], "step": 0.05}, 0.1, 0.4),
        ({"choice": [8, 16, 40]}, 128, 40),
        ({"choice": ["a", "b"]}, "c", "a"),
        ({"log_uniform": [0.03, 3.0], "or_zero": True}, 0.0, 0.0),
        ({"int": [1, 4]}, 9, 4),
    ],
)
def test_the_nearest_value_is_taken_where_the_recipes_own_does_not_fit(
    form: dict[str, Any], value: Any, nearest: Any
) -> None:
    assert parameter(**form).nearest(value) == nearest


@pytest.mark.parametrize(
    ("form", "value", "lowered"),
    [
        ({"choice": [8, 16, 32, 64]}, 64, 32),
        ({"choice": [8, 16, 32, 64]}, 16, 16),
        ({"int": [1, 100], "step": 9}, 91, 28),
        ({"int": [1, 100]}, 91, 32),
        ({"uniform": [0.0, 64.0], "step": 0.5}, 60.0, 32.0),
    ],
)
def test_a_limited_value_is_lowered_to_the_largest_allowed(form: Any, value: Any, lowered: Any) -> None:
    found = parameter(**form, at_most={"memory.slots": 0.5})
    assert found.clamped(value, {"memory.slots": 64}) == lowered
    assert found.clamped(value, {}) == value


# -- conditions ------------------------------------------------------------------------------------------


def test_each_kind_of_memory_has_its_own_sizes() -> None:
    space = load_space(MEMORY).space
    assert space.active({"memory.kind": "none"}, "memory.slots") is None
    shared = space.active({"memory.kind": "shared"}, "memory.slots")
    key_value = space.active({"memory.kind": "key_value"}, "memory.slots")
    assert shared is not None
    assert key_value is not None
    assert (max(shared.choices), max(key_value.choices)) == (512, 128)
    assert space.active({"memory.kind": "key_value"}, "memory.top_k") is None


def test_conditions_come_before_what_depends_on_them(tmp_path: Path) -> None:
    loaded = load(
        tmp_path,
        {
            "memory.top_k": {
                "choice": [8, 16],
                "when": {"memory.kind": "shared"},
                "at_most": {"memory.slots": 0.5},
            },
            "memory.slots": {"choice": [32, 128], "when": {"memory.kind": ["shared", "key_value"]}},
            "fusion.layers": {"int": [1, 2]},
            "memory.kind": {"choice": ["shared", "key_value", "none"]},
        },
    )
    assert list(loaded.space.parameters) == ["memory.kind", "memory.slots", "memory.top_k", "fusion.layers"]


def test_a_condition_on_an_unsearched_key_is_judged_by_the_recipe(tmp_path: Path) -> None:
    slots = {"choice": [64, 128], "when": {"memory.kind": "shared"}}
    loaded = load(tmp_path, {"memory.slots": slots})
    assert loaded.space.active({}, "memory.slots") is not None


def test_random_points_of_every_shipped_space_are_valid_experiments() -> None:
    draw = random.Random(0)
    for path in SHIPPED:
        loaded = load_space(path)
        for _ in range(60):
            params: dict[str, Any] = {}
            for key in loaded.space.parameters:
                found = loaded.space.active(params, key)
                if found is None:
                    continue
                values = found.values() or [draw.uniform(found.low, found.high)]
                params[key] = found.clamped(found.normalised(draw.choice(values)), params)
            assert loaded.space.objection(params) is None
            config = apply_params(loaded.base, params, steps=loaded.full_steps, seed=3)
            assert (config.training.steps, config.training.seed) == (loaded.full_steps, 3)


# -- the default point -----------------------------------------------------------------------------------


def test_the_default_point_is_the_recipes_own() -> None:
    for path in SHIPPED:
        loaded = load_space(path)
        params = loaded.space.default_params(loaded.base)
        assert loaded.space.objection(params) is None
        assert apply_params(loaded.base, params, steps=loaded.full_steps) == loaded.base


def test_slots_that_a_recipe_leaves_open_are_those_of_its_kind(tmp_path: Path) -> None:
    parameters = {"memory.slots": {"choice": [40, 80]}}
    loaded = load(tmp_path, parameters, "memory.kind=key_value", "memory.slots=null")
    assert loaded.space.default_params(loaded.base) == {"memory.slots": 40}


def test_a_fixed_key_changes_the_recipe_too(tmp_path: Path) -> None:
    loaded = load(tmp_path, {"image.mask_ratio": {"uniform": [0.4, 0.9]}, "fusion.layers": {"fixed": 3}})
    assert loaded.base.fusion.layers == 3
    assert loaded.space.default_params(loaded.base)["fusion.layers"] == 3
    assert loaded.space.searched_keys() == ["image.mask_ratio"]


def test_a_point_is_completed_by_the_recipe() -> None:
    loaded = load_space(MEMORY, overrides=["memory.slots=128", "fusion.layers=1"])
    found = loaded.space.completed({"memory.kind": "key_value"}, loaded.base)
    assert found == {"memory.kind": "key_value", "memory.slots": 128, "fusion.layers": 1}
    found = loaded.space.completed({"memory.slots": 64, "memory.top_k": 64}, loaded.base)
    assert found["memory.top_k"] == 32


# -- the rest of the file --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fidelity", "full", "rungs"),
    [
        ({"first_rung": 45, "reduction": 3}, 405, (45, 135, 405)),
        ({"first_rung": 40, "reduction": 3}, 405, (40, 120, 360, 405)),
        ({"first_rung": 40, "reduction": 2}, 40, (40,)),
        ({"reduction": 3}, 90, (10, 30, 90)),
        ({"reduction": 3}, 300, (34, 102, 300)),
    ],
)
def test_rungs_rise_to_the_full_length(fidelity: dict[str, int], full: int, rungs: tuple[int, ...]) -> None:
    assert Fidelity(**fidelity).rungs(full) == rungs  # type: ignore[arg-type]


def test_a_full_length_trial_has_the_steps_of_the_fidelity(tmp_path: Path) -> None:
    loaded = load(tmp_path, {"fusion.layers": {"int": [1, 2]}}, fidelity={"steps": 90})
    assert (loaded.full_steps, loaded.base.training.steps) == (90, 90)
    assert load_config(RECIPE).config.training.steps != 90


def test_overrides_reach_the_space_or_the_recipe_by_their_first_name(tmp_path: Path) -> None:
    loaded = load(
        tmp_path,
        {"fusion.layers": {"int": [1, 2]}},
        "budget.trials=5",
        "training.batch_size=32",
        "parameters.image.mask_ratio={uniform: [0.5, 0.8]}",
        "searcher={name: random}",
    )
    assert loaded.space.budget.trials == 5
    assert loaded.space.searcher.name == "random"
    assert loaded.space.searched_keys() == ["fusion.layers", "image.mask_ratio"]
    assert loaded.base.training.batch_size == 32


def test_the_recipe_lies_beside_the_space_and_can_be_replaced(tmp_path: Path) -> None:
    loaded = load_space(MEMORY, data="some/where #1")
    assert loaded.base.data.path == "some/where #1"
    other = load_space(ROOT / "search_spaces" / "masking.yaml", config=ROOT / "recipes" / "demo.yaml")
    assert other.base.image.width == 192


def test_the_hash_changes_with_what_decides_the_trials_alone() -> None:
    own = load_space(MEMORY).hash
    for same in ("budget.trials=99", "concurrency=1", "retries=0", "training.log_every_steps=3"):
        assert load_space(MEMORY, overrides=[same]).hash == own, same
    for other in ("seed=1", "fidelity.steps=200", "image.mask_ratio=0.5", "scheduler.name=median"):
        assert load_space(MEMORY, overrides=[other]).hash != own, other


def test_a_resolved_space_makes_the_same_space_anew() -> None:
    for path in SHIPPED:
        space = load_space(path).space
        assert SearchSpace.model_validate(json.loads(json.dumps(space.resolved()))) == space


def test_an_objective_reads_its_metric_with_its_sign() -> None:
    up, down = Objective(metric="val/probe/auroc"), Objective(metric="loss/total", direction="minimise")
    assert (up.value({"val/probe/auroc": 0.7}), up.minimised({"val/probe/auroc": 0.7})) == (0.7, -0.7)
    assert down.minimised({"loss/total": 2}) == 2.0
    for missing in ({}, {"val/probe/auroc": None}, {"val/probe/auroc": math.nan}):
        assert up.value(missing) is None
        assert up.minimised(missing) is None


def test_a_violation_is_positive_where_a_bound_is_broken() -> None:
    most = Constraint(metric="peak_memory_bytes", at_most=10.0)
    least = Constraint(metric="pairs_per_second", at_least=5.0)
    assert (most.violation({"peak_memory_bytes": 12.0}), most.violation({"peak_memory_bytes": 10.0})) == (
        2,
        0,
    )
    assert (least.violation({"pairs_per_second": 4.0}), least.violation({"pairs_per_second": 8.0})) == (1, -3)
    assert most.violation({}) == least.violation({"pairs_per_second": math.nan}) == math.inf


def test_the_schema_is_that_of_the_space() -> None:
    from orchestration.search.space_reference import SCHEMA, space_schema

    assert json.loads(SCHEMA.read_text()) == space_schema(), (
        "run python -m orchestration.search.space_reference"
    )


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_every_shipped_space_opens_with_its_schema_command_hardware_time_and_result(path: Path) -> None:
    first, *lines = path.read_text().splitlines()
    assert first == "# yaml-language-server: $schema=../docs/search_space.schema.json"
    head = "\n".join(line for line in lines if line.startswith("#"))
    for words in (f"--space search_spaces/{path.name}", "Hardware:", "Time:", "Result:"):
        assert words in head


def test_the_shipped_spaces_are_the_four() -> None:
    assert [path.stem for path in SHIPPED] == ["full", "loss_weights", "masking", "memory"]


def test_a_space_loads_without_torch_ray_or_optuna() -> None:
    code = (
        "import sys; from orchestration.search.space import load_space; load_space(sys.argv[1]);"
        "sys.exit(str([m for m in ('torch', 'ray', 'optuna', 'pandas') if m in sys.modules] or ''))"
    )
    done = subprocess.run([sys.executable, "-c", code, str(MEMORY)], capture_output=True, text=True, cwd=ROOT)
    assert done.stderr.strip() == ""
