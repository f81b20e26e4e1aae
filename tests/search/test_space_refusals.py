"""What a space file may not say: each mistake is one line that names the file and the key."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from mpma.comparability import NOT_SEARCHED
from mpma.errors import UserError
from orchestration.search.space import load_space

RECIPE = Path(__file__).resolve().parents[2] / "recipes" / "search.yaml"
LAYERS = {"fusion.layers": {"int": [1, 2]}}
KIND = {"choice": ["shared", "key_value", "none"]}


def refusal(tmp_path: Path, parameters: Any, *overrides: str, **rest: Any) -> UserError:
    path = tmp_path / "space.yaml"
    tree = {"recipe": str(RECIPE), "parameters": parameters, **rest}
    path.write_text(yaml.safe_dump(tree, sort_keys=False))
    fixed = ["memory.slots=128", "memory.top_k=16", "fusion.layers=1", "image.mask_ratio=0.75"]
    with pytest.raises(UserError) as caught:
        load_space(path, overrides=[*fixed, *overrides])
    error = caught.value
    assert "\n" not in error.message
    assert "\n" not in (error.hint or "")
    assert error.message.startswith((str(path), "--set", "--config", "training.", "memory.")), error.message
    return error


@pytest.mark.parametrize(
    ("key", "form", "words"),
    [
        ("image.mask_ratio", {"uniform": [0.5]}, ["uniform"]),
        ("image.mask_ratio", {"uniform": [0.9, 0.5]}, ["uniform", "low"]),
        ("image.mask_ratio", {"uniform": [0.5, 0.5]}, ["uniform", "low"]),
        ("image.mask_ratio", {"uniform": [0.5, 0.99]}, ["image.mask_ratio", "0.95", "0.99"]),
        ("image.mask_ratio", {"uniform": [-0.1, 0.9]}, ["image.mask_ratio", "-0.1"]),
        ("image.mask_ratio", {"uniform": [0.4, 0.9], "step": 0.07}, ["step", "0.07", "divide"]),
        ("image.mask_ratio", {"uniform": [0.4, 0.9], "step": 0}, ["step"]),
        ("image.mask_ratio", {"log_uniform": [0.4, 0.9], "step": 0.1}, ["step"]),
        ("image.mask_ratio", {"log_uniform": [0.0, 0.9]}, ["log_uniform", "above 0"]),
        ("image.mask_ratio", {"uniform": [0.4, float("nan")]}, ["uniform", "finite"]),
        ("image.mask_ratio", {"int": [0, 1]}, ["int", "fraction"]),
        ("image.mask_ratio", {"choice": []}, ["choice"]),
        ("image.mask_ratio", {"choice": [0.5, 0.75, 0.5]}, ["choice", "0.5", "twice"]),
        ("image.mask_ratio", {"choice": [0.5, "half"]}, ["choice", "half"]),
        ("image.mask_ratio", {"choice": [[0.5]]}, ["choice", "plain"]),
        ("image.mask_ratio", {"fixed": 2.0}, ["fixed", "2.0"]),
        ("image.mask_ratio", {"uniform": [0.4, 0.9], "choice": [0.5]}, ["uniform and choice"]),
        ("image.mask_ratio", {}, ["none given"]),
        ("image.mask_ratio", [], ["empty list"]),
        ("image.mask_ratio", 0.5, ["image.mask_ratio"]),
        ("image.mask_ratio", {"uniform": [0.4, 0.9], "when": {}}, ["when", "empty"]),
        ("image.mask_ratio", {"uniform": [0.0, 0.9], "or_zero": True}, ["or_zero"]),
        ("image.mask_ratio", {"choice": [0.75], "or_zero": True}, ["or_zero"]),
        ("fusion.layers", {"uniform": [1, 4]}, ["uniform", "whole", "fusion.layers"]),
        ("fusion.layers", {"int": [1, 13]}, ["fusion.layers", "13"]),
        ("fusion.layers", {"int": [1.5, 4]}, ["fusion.layers.int"]),
        ("fusion.layers", {"int": [1, 4], "step": 0.5}, ["step", "whole"]),
        ("fusion.layers", {"choice": [1, 2.5]}, ["choice", "2.5"]),
        ("fusion.layers", {"choice": [1, True]}, ["choice", "True"]),
        ("memory.kind", {"uniform": [0, 1]}, ["memory.kind", "uniform"]),
        ("memory.kind", {"choice": ["shared", "share"]}, ["memory.kind", "share"]),
        ("memory.top_k", {"choice": [16, 32], "at_most": {"memory.slots": 0.5}}, ["not searched"]),
        ("memory.top_k", {"choice": [16, 32], "at_most": {"memory.slotz": 0.5}}, ["memory.slotz", "unknown"]),
    ],
)
def test_a_parameter_that_cannot_be_is_refused(tmp_path: Path, key: str, form: Any, words: list[str]) -> None:
    error = refusal(tmp_path, {key: form})
    for word in [f"parameters.{key}" if form != [] else key, *words]:
        assert word in error.message, error.message


@pytest.mark.parametrize(
    ("key", "nearest"),
    [("image.maskratio", "image.mask_ratio"), ("learning_rate", "training.learning_rate")],
)
def test_an_unknown_key_names_the_nearest(tmp_path: Path, key: str, nearest: str) -> None:
    error = refusal(tmp_path, {key: {"uniform": [0.1, 0.2]}})
    assert "unknown key" in error.message
    assert key in error.message
    assert nearest in (error.hint or "")


def test_a_section_is_no_key(tmp_path: Path) -> None:
    error = refusal(tmp_path, {"memory": {"int": [1, 2]}})
    assert "parameters.memory: a section" in error.message
    assert "memory.kind" in (error.hint or "")


@pytest.mark.parametrize("key", NOT_SEARCHED)
def test_a_key_that_is_no_hyper_parameter_is_refused_with_the_reason(tmp_path: Path, key: str) -> None:
    error = refusal(tmp_path, {key: {"choice": [1, 2]}})
    assert f"parameters.{key}: may not be searched" in error.message
    assert NOT_SEARCHED[key] in error.message


@pytest.mark.parametrize(
    ("rest", "words", "hint"),
    [
        ({"budgt": {"trials": 3}}, ["budgt", "unknown"], "budget"),
        ({"budget": {"trails": 3}}, ["budget.trails", "unknown"], "trials"),
        ({"budget": {"trials": None}}, ["budget", "at least one"], ""),
        ({"budget": {"trials": 0}}, ["budget.trials"], ""),
        ({"budget": {"gpu_hours": 0.0}}, ["budget.gpu_hours"], ""),
        ({"budget": {"trials": 2}}, ["budget.trials", "2", "rung"], "at least 3"),
        ({"fidelity": {"first_rung": 50, "steps": 50}}, ["fidelity.first_rung", "50"], "scheduler"),
        ({"fidelity": {"steps": 1}}, ["fidelity.steps", "too few for one rung"], ""),
        ({"fidelity": {"reduction": 1}}, ["fidelity.reduction"], ""),
        ({"searcher": {"name": "bayes"}}, ["searcher.name", "tpe"], ""),
        ({"scheduler": {"name": "asha"}}, ["scheduler.name", "halving"], ""),
        ({"seed": -1}, ["seed"], ""),
        ({"confirmation": {"seeds": 0}}, ["confirmation.seeds"], ""),
        ({"concurrency": "many"}, ["concurrency", "auto", "many"], ""),
        ({"gpus_per_trial": 1.5}, ["gpus_per_trial", "1.5"], ""),
        ({"budget": 3}, ["budget", "mapping"], ""),
        ({"objectives": {"metric": "val/probe/auroc"}}, ["objectives", "a list"], ""),
        ({"retries": -1}, ["retries"], ""),
        ({"objectives": []}, ["objectives"], ""),
        ({"objectives": [{"metric": "val/retrieval/mean_recal"}]}, ["mean_recal "], "mean_recall"),
        ({"objectives": [{"metric": "val/probe/auroc", "direction": "up"}]}, ["direction"], ""),
        ({"objectives": [{"metric": "val/probe/auroc"}] * 2}, ["objectives.1", "twice"], ""),
        ({"objectives": [{"metric": "val/loss/image_reconstruction"}]}, ["lower is better"], ""),
        (
            {"objectives": [{"metric": "val/retrieval/gallery_size"}]},
            ["objectives.0", "describes"],
            "representation_score",
        ),
        ({"constraints": [{"metric": "peak_memory", "at_most": 3.0}]}, ["peak_memory"], "peak_memory_bytes"),
        ({"constraints": [{"metric": "peak_memory_bytes"}]}, ["constraints.0", "exactly one"], ""),
        ({"searcher": {"name": "cmaes"}, "objectives": [{"metric": "val/probe/auroc"},
          {"metric": "val/retrieval/mean_recall"}]}, ["searcher.name", "cmaes"], "tpe"),
        ({"first": {"points": [{"fusion.layer": 1}]}}, ["first.points.0", "fusion.layer"], "fusion.layers"),
        ({"first": {"points": [{"fusion.layers": 3}]}}, ["first.points.0", "fusion.layers 3"], ""),
        ({"proxies": {"small": {"image.widht": 48}}}, ["proxies.small", "image.widht"], "image.width"),
        ({"proxies": {"small": {"image.size": 60}}}, ["proxies.small", "image.size 60"], ""),
        ({"proxies": {"small": {"image.size": "x"}}}, ["proxies.small.image.size"], ""),
        ({"proxies": {"small": {"fusion.layers": 1}}}, ["proxies.small.fusion.layers", "searched"], ""),
        ({"proxies": {"small": {"data.path": "x"}}}, ["proxies.small.data.path"], ""),
        ({"proxies": {"small": {}}}, ["proxies.small", "empty"], ""),
        ({"recipe": "nowhere.yaml"}, ["recipe", "nowhere.yaml"], "beside"),
        ({"recipe": None}, ["recipe", "missing"], "--config"),
    ],
)  # fmt: skip
def test_a_section_that_cannot_be_is_refused(
    tmp_path: Path, rest: dict[str, Any], words: list[str], hint: str
) -> None:
    error = refusal(tmp_path, LAYERS, **rest)
    for word in words:
        assert word in error.message, error.message
    assert hint in (error.hint or "")


@pytest.mark.parametrize(
    ("parameters", "words"),
    [
        # a value that the parent never has
        ({"memory.kind": {"choice": ["shared", "none"]},
          "memory.slots": {"choice": [40, 128], "when": {"memory.kind": "key_value"}}}, ["never 'key"]),
        # ... or that no field could have
        ({"memory.kind": KIND, "memory.slots": {"choice": [128], "when": {"memory.kind": "both"}}}, ["both"]),
        # a key that does not exist
        ({"memory.slots": {"choice": [128, 256], "when": {"memory.kin": "shared"}}}, ["kin: unknown"]),
        # the recipe has another value, and nothing searches it
        ({"memory.slots": {"choice": [40, 128], "when": {"memory.kind": "key_value"}}}, ["never applies"]),
        # no values at all
        ({"memory.kind": KIND, "memory.slots": {"choice": [128], "when": {"memory.kind": []}}}, ["empty"]),
        # a circle
        ({"memory.slots": {"choice": [64, 128], "when": {"memory.top_k": 16}},
          "memory.top_k": {"choice": [8, 16], "when": {"memory.slots": 128}}}, ["circle", "memory.top_k"]),
        ({"memory.slots": {"choice": [64, 128], "when": {"memory.slots": 64}}}, ["circle"]),
        # alternatives that apply together
        ({"memory.slots": [{"choice": [128]}, {"choice": [256]}]}, ["memory.slots", "1 and 2 both apply"]),
        ({"memory.kind": KIND, "memory.slots": [
            {"choice": [64, 128], "when": {"memory.kind": ["shared", "key_value"]}},
            {"choice": [40], "when": {"memory.kind": "key_value"}}]}, ["apply where memory.kind 'key"]),
        ({"memory.kind": KIND, "fusion.layers": LAYERS["fusion.layers"], "memory.slots": [
            {"choice": [64, 128], "when": {"memory.kind": "shared"}},
            {"choice": [256], "when": {"fusion.layers": 1}}]}, ["both apply"]),
        # met one by one, never together
        ({"memory.kind": KIND, "memory.slots": {"choice": [64, 128], "when": {"memory.kind": "shared"}},
          "memory.top_k": {"choice": [8, 16], "when": {"memory.slots": 64, "memory.kind": "none"}}},
         ["memory.top_k.when", "contradict"]),
        # a single value of a continuous range
        ({"image.mask_ratio": {"uniform": [0.5, 0.9]},
          "image.decoder_layers": {"int": [1, 2], "when": {"image.mask_ratio": 0.7}}}, ["continuous"]),
    ],
)  # fmt: skip
def test_conditions_that_cannot_be_met_are_refused(
    tmp_path: Path, parameters: dict[str, Any], words: list[str]
) -> None:
    error = refusal(tmp_path, parameters)
    for word in ["parameters", *words]:
        assert word in error.message, error.message


@pytest.mark.parametrize(
    ("parameters", "words"),
    [
        # a corner alone
        ({"training.batch_size": {"choice": [64, 100, 128]}}, ["training.batch_size 100", "lanes"]),
        ({"memory.top_k": {"choice": [16, 128]}}, ["memory.top_k 128", "memory.slots"]),
        ({"memory.slots": {"int": [8, 256]}}, ["memory.slots 8", "memory.top_k"]),
        ({"report.width": {"int": [33, 64]}}, ["report.width 33", "heads"]),
        # two keys, each valid beside the recipe's own
        ({"memory.slots": {"choice": [64, 128]}, "memory.top_k": {"choice": [16, 64]}},
         ["memory.slots 64 and memory.top_k 64", "half"]),
        ({"memory.kind": {"choice": ["shared", "key_value"]},
          "fusion.kind": {"choice": ["cross_attention", "mean_add"]}},
         ["memory.kind 'key_value' and fusion.kind 'mean_add'"]),
        # a limit that leaves nothing
        ({"memory.slots": {"choice": [8, 128]},
          "memory.top_k": {"choice": [8, 16], "at_most": {"memory.slots": 0.5}}},
         ["memory.slots 8", "at most 4"]),
    ],
)  # fmt: skip
def test_a_corner_that_is_no_experiment_is_refused(
    tmp_path: Path, parameters: dict[str, Any], words: list[str]
) -> None:
    error = refusal(tmp_path, parameters, "data.lanes=64")
    for word in ["parameters", *words]:
        assert word in error.message, error.message


@pytest.mark.parametrize(
    "form", [{"uniform": [0.3, 0.6]}, {"uniform": [0.4, 0.9], "step": 0.1}, {"choice": [0.5, 0.6]}]
)
def test_a_recipe_outside_its_own_space_is_refused_unless_the_default_is_left_out(
    tmp_path: Path, form: Any
) -> None:
    error = refusal(tmp_path, {"image.mask_ratio": form})
    assert "recipe's own image.mask_ratio 0.75 is outside" in error.message
    assert "first: {default: false}" in (error.hint or "")
    load_space(tmp_path / "space.yaml", overrides=["image.mask_ratio=0.75", "first.default=false"])


@pytest.mark.parametrize(
    ("metric", "parameters"),
    [
        ("loss/total", {"loss_weights.report_reconstruction": {"log_uniform": [0.1, 10.0]}}),
        ("val/loss/image_reconstruction", {"image.mask_ratio": {"uniform": [0.4, 0.9]}}),
        ("val/loss/report_reconstruction", {"report.mask_ratio": {"uniform": [0.2, 0.7]}}),
        ("val/loss/global_alignment", {"training.batch_size": {"choice": [64, 128]}}),
        ("loss/global_alignment", {"alignment.temperature": {"log_uniform": [0.03, 0.2]}}),
    ],
)
def test_an_objective_that_depends_on_what_is_searched_is_refused_with_another(
    tmp_path: Path, metric: str, parameters: dict[str, Any]
) -> None:
    error = refusal(tmp_path, parameters, objectives=[{"metric": metric, "direction": "minimise"}])
    assert f"{metric} cannot rank trials that differ in {next(iter(parameters))}" in error.message
    assert "val/representation_score" in (error.hint or "")


@pytest.mark.parametrize(
    ("parameters", "overrides"),
    [
        ({"loss_weights.report_reconstruction": {"log_uniform": [0.1, 10.0], "or_zero": True}}, []),
        ({"loss_weights.report_reconstruction": {"uniform": [0.0, 1.0]}}, []),
        (LAYERS, ["loss_weights.report_reconstruction=0"]),
        (LAYERS, ["report.mask_ratio=0"]),
    ],
)
def test_an_objective_that_some_trials_would_never_report_is_refused(
    tmp_path: Path, parameters: dict[str, Any], overrides: list[str]
) -> None:
    gain = "val/report_reconstruction/visual_gain"
    error = refusal(tmp_path, parameters, *overrides, objectives=[{"metric": gain}])
    assert f"{gain} is not reported where" in error.message


@pytest.mark.parametrize("parameters", [{}, {"fusion.layers": {"fixed": 1}}])
def test_a_space_without_a_searched_key_is_refused(tmp_path: Path, parameters: dict[str, Any]) -> None:
    assert "nothing is searched" in refusal(tmp_path, parameters).message


def test_fixed_values_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    error = refusal(tmp_path, {**LAYERS, "memory.top_k": {"fixed": 100}})
    assert "memory.top_k as fixed" in error.message


def test_an_override_says_that_it_is_one(tmp_path: Path) -> None:
    assert refusal(tmp_path, LAYERS, "budget.trails=3").message.startswith("--set: budget.trails")
    error = refusal(tmp_path, LAYERS, "bugdet.trials=3")
    assert error.message.startswith("--set: bugdet.trials")
    assert "budget" in (error.hint or "")


@pytest.mark.parametrize("text", ["[1, 2]", "parameters: {a: 1, a: 2}", "parameters: [", "parameters: 3", ""])
def test_a_file_that_is_no_space_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "space.yaml"
    path.write_text(text)
    with pytest.raises(UserError) as caught:
        load_space(path, config=RECIPE)
    assert str(path) in caught.value.message


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such space file"):
        load_space(tmp_path / "none.yaml")
    (tmp_path / "space.yaml").write_text(yaml.safe_dump({"parameters": LAYERS}))
    with pytest.raises(UserError, match="nowhere"):
        load_space(tmp_path / "space.yaml", config=tmp_path / "nowhere.yaml")
