"""best.yaml loads as it is and says what may be believed of it."""

from __future__ import annotations

from pathlib import Path

import yaml
from confirmation_samples import BASE, confirmed, made_outcomes, made_space, searched

from mpma.config import changed_keys, load_config
from orchestration.search.best_recipe import best_recipe, recipe_of_search
from orchestration.search.comparison import compare
from orchestration.search.confirm import plan_confirmation
from orchestration.search.records import SearchState
from orchestration.search.space import SearchSpace


def head(text: str) -> str:
    lines = text.splitlines()
    comment = [line.removeprefix("# ") for line in lines if line.startswith("#")]
    assert lines[: len(comment)] == [f"# {line}" for line in comment]
    assert max(len(line) for line in comment) < 110
    return " ".join(comment)


def ended(space: SearchSpace, skill: float) -> SearchState:
    state = searched([(90, 0.2), (90, 0.4), (90, 0.3)])
    results = {"trial-1": [0.5] * 3, "trial-2": [0.3] * 3, "default": [0.4] * 3}
    confirmed(state, plan_confirmation(space, state), results)
    outcomes = {("trial-1", seed): made_outcomes(skill, seed) for seed in (5, 6, 7)}
    outcomes |= {("default", seed): made_outcomes(0.3, seed + 100) for seed in (5, 6, 7)}
    state.apply({"event": "compare", "time": 1e5, "result": compare(space, state, outcomes)})
    return state


def test_a_recipe_of_any_params_loads_as_it_is(tmp_path: Path) -> None:
    params = {"image.mask_ratio": 0.6, "report.mask_ratio": 0.5, "memory.kind": "none", "memory.slots": None}
    text = best_recipe(made_space(fidelity={"steps": 120}), BASE, params, ["A line.", "word " * 60])
    (tmp_path / "best.yaml").write_text(text)
    config = load_config(tmp_path / "best.yaml").config
    assert set(changed_keys(BASE, config)) == {"image.mask_ratio", "memory.kind", "training.steps"}
    assert (config.training.steps, config.training.seed) == (120, BASE.training.seed)
    assert config.data.path == "some/data"
    assert "image.mask_ratio: 0.6 (was 0.75)" in head(text)
    assert "memory.kind: none (was shared)" in head(text)
    assert "report.mask_ratio:" not in head(text)


def test_a_confirmed_winner_stands_there_with_its_interval(tmp_path: Path) -> None:
    space = made_space()
    state = ended(space, 0.7)
    text = recipe_of_search(space, BASE, state, "masking")
    (tmp_path / "best.yaml").write_text(text)
    config = load_config(tmp_path / "best.yaml").config
    assert (config.image.mask_ratio, config.report.mask_ratio) == (0.41, 0.3)
    assert config.training == BASE.training
    assert state.comparison is not None
    assert state.comparison["reason"] in head(text)
    assert "From the search masking: 3 trials of 90 steps at most." in head(text)
    assert "image.mask_ratio: 0.41 (was 0.75)" in head(text)


def test_where_nothing_better_was_found_the_recipes_own_values_stand_there(tmp_path: Path) -> None:
    space = made_space()
    text = recipe_of_search(space, BASE, ended(space, 0.3), "masking")
    (tmp_path / "best.yaml").write_text(text)
    assert load_config(tmp_path / "best.yaml").config == BASE
    assert "The search found nothing better than the recipe's own values" in head(text)
    assert (
        "A suggestion that is not confirmed, trial-1: image.mask_ratio: 0.41 (was 0.75); "
        "report.mask_ratio: 0.3 (was 0.5)."
    ) in head(text)
    assert "The searched keys have the values of the recipe" in head(text)


def test_without_confirmation_the_best_trial_is_called_unconfirmed() -> None:
    space = made_space(confirmation={"candidates": 0})
    text = recipe_of_search(space, BASE, searched([(90, 0.2), (90, 0.4), (90, 0.3)]), "quick")
    assert "trial-1 was the best on validation patients, with one seed; nothing was confirmed." in head(text)
    assert yaml.safe_load(text)["image"]["mask_ratio"] == 0.41


def test_a_search_without_any_result_gives_the_recipe_back() -> None:
    space, state = made_space(), searched([])
    text = recipe_of_search(space, BASE, state, "empty")
    assert "Nothing was confirmed." in head(text)
    assert yaml.safe_load(text)["image"]["mask_ratio"] == 0.75
