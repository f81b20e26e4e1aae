from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from mpma.config import (
    MAY_CHANGE_ON_CONTINUE,
    ExperimentConfig,
    all_keys,
    changed_keys,
    json_schema,
    load_config,
    to_yaml,
    validate_tree,
)
from mpma.config_tree import load_tree
from mpma.downstream.config import EvaluationConfig
from mpma.errors import UserError
from mpma.strict import StrictConfig

RECIPES = Path(__file__).resolve().parents[1] / "recipes"


def test_defaults_make_a_valid_tree() -> None:
    assert load_config().config == ExperimentConfig()


@pytest.mark.parametrize("recipe", sorted(RECIPES.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_shipped_recipe_loads(recipe: Path) -> None:
    if recipe.stem.startswith("evaluate_"):
        load_tree(EvaluationConfig, recipe)
    else:
        load_config(recipe)


@pytest.mark.parametrize("recipe", sorted(RECIPES.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_shipped_recipe_opens_with_hardware_time_and_result(recipe: Path) -> None:
    head = []
    for line in recipe.read_text().splitlines():
        if not line.startswith("#"):
            break
        head.append(line.lower())
    text = "\n".join(head)
    for word in ("hardware", "time", "result"):
        assert word in text, f"{recipe.name} does not state its {word}"


def test_precedence_is_defaults_then_base_then_file_then_set(tmp_path: Path) -> None:
    (tmp_path / "base.yaml").write_text("training: {steps: 10, seed: 1, batch_size: 32}\n")
    (tmp_path / "top.yaml").write_text("base: base.yaml\ntraining: {steps: 20, seed: 2}\n")
    resolved = load_config(tmp_path / "top.yaml", ["training.steps=30"])
    training = resolved.config.training
    assert (training.steps, training.seed, training.batch_size) == (30, 2, 32)
    assert resolved.origins["training.steps"] == "--set"
    assert resolved.origins["training.seed"].endswith("top.yaml")
    assert resolved.origins["training.batch_size"].endswith("base.yaml")
    assert resolved.origins["training.weight_decay"] == "default"


def test_a_base_chain_that_comes_back_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("base: b.yaml\n")
    (tmp_path / "b.yaml").write_text("base: a.yaml\n")
    with pytest.raises(UserError, match="comes back"):
        load_config(tmp_path / "a.yaml")


@pytest.mark.parametrize(
    ("override", "nearest"),
    [
        ("training.batch_sze=3", "training.batch_size"),
        ("trainig.steps=3", "training.steps"),
        ("mask_ratio=0.5", "mask_ratio"),
        ("image.maskratio=0.5", "image.mask_ratio"),
    ],
)
def test_an_unknown_key_names_the_nearest_known_one(override: str, nearest: str) -> None:
    with pytest.raises(UserError, match="unknown key") as caught:
        load_config(None, [override])
    assert override.split("=")[0] in caught.value.message
    assert nearest in (caught.value.hint or "")


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("image.mask_ratio=0.99", "image.mask_ratio"),
        ("training.steps=0", "training.steps"),
        ("training.steps=many", "training.steps"),
        ("training.workers=3", "training.workers"),
        ("memory.top_k=2000", "memory.top_k"),
        ("image.size=225", "image.size"),
        ("report.width=100", "report.width"),
        ("image.width=100\nimage.heads=3", "image.width 100 is not a multiple of image.heads 3"),
        ("data.lanes=7", "data.lanes"),
        ("fusion={kind: mean_add}\nmemory={kind: key_value}", "memory.kind key_value"),
        ("training.learning_rate_per_256=.nan", "training.learning_rate_per_256"),
    ],
)
def test_a_value_out_of_range_names_its_key(override: str, words: str) -> None:
    with pytest.raises(UserError, match=words):
        load_config(None, override.split("\n"))


def test_a_duplicate_key_is_refused_with_its_line(tmp_path: Path) -> None:
    (tmp_path / "x.yaml").write_text("training:\n  steps: 1\n  steps: 2\n")
    with pytest.raises(UserError, match=r"line 3.*steps"):
        load_config(tmp_path / "x.yaml")


def test_yaml_that_asks_for_python_objects_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.yaml").write_text("training: !!python/object/apply:os.system ['true']\n")
    with pytest.raises(UserError, match="not valid YAML"):
        load_config(tmp_path / "x.yaml")


@pytest.mark.parametrize("text", ["1e-4", "1.0e-4", "0.0001", "1E-4"])
def test_scientific_notation_is_a_number(text: str) -> None:
    config = load_config(None, [f"training.learning_rate_per_256={text}"]).config
    assert config.training.learning_rate_per_256 == pytest.approx(1e-4)


def test_the_printed_tree_reads_back_as_itself() -> None:
    resolved = load_config(RECIPES / "small.yaml", ["data.path=some/where #1"])
    assert validate_tree(yaml.safe_load(to_yaml(resolved.config, resolved.origins))) == resolved.config


def test_changed_keys_are_dotted() -> None:
    other = load_config(None, ["image.mask_ratio=0.6", "training.steps=7"]).config
    assert changed_keys(ExperimentConfig(), other) == ["image.mask_ratio", "training.steps"]


def test_every_key_is_described() -> None:
    def missing(model: type[StrictConfig], prefix: str) -> list[str]:
        found = []
        for name, field in model.model_fields.items():
            if not field.description:
                found.append(prefix + name)
            if isinstance(field.annotation, type) and issubclass(field.annotation, StrictConfig):
                found += missing(field.annotation, f"{prefix}{name}.")
        return found

    assert missing(ExperimentConfig, "") == []


def test_keys_that_may_change_exist() -> None:
    # A range of workers stands in the place of a number, with keys of its own.
    inside = {"training.workers.min", "training.workers.max"}
    assert set(all_keys()) | inside >= MAY_CHANGE_ON_CONTINUE


def test_workers_are_a_number_or_a_range_that_fits_lanes_and_batch() -> None:
    config = load_config(None, ["training.workers={min: 1, max: 8}", "training.batch_size=48"]).config
    assert config.worker_counts == (1, 2, 4, 8), "48 pairs have 16 lanes"
    again = load_config(None, ["training.workers.min=2", "training.workers.max=4"]).config
    assert (again.training.fewest_workers, again.training.most_workers) == (2, 4)
    for value, said in (
        ("{min: 1, max: 3}", r"training\.workers\.max 3"),
        ("{min: 4, max: 2}", "more than"),
        ("{max: 2}", "a range such as"),
        ("many", "a range such as"),
        ("0", "1 to 4096"),
        ("{min: 0, max: 2}", r"training\.workers\.min: .*greater"),
    ):
        with pytest.raises(UserError, match=said):
            load_config(None, [f"training.workers={value}"])


def test_fewer_workers_hold_no_more_pairs_at_a_time_than_all_of_them() -> None:
    def held(world: int, *overrides: str) -> int | None:
        training = load_config(None, ["training.workers={min: 1, max: 4}", *overrides]).config.training
        return training.micro_batch_for(world)

    assert [held(world) for world in (4, 2, 1)] == [None, 64, 64]
    assert [held(world, "training.micro_batch_size=16") for world in (4, 2, 1)] == [16, 16, 16]
    assert load_config(None, ["training.workers=4"]).config.training.micro_batch_for(2) is None


def test_fp64_is_for_cpus() -> None:
    with pytest.raises(UserError, match="fp64 is for CPUs"):
        load_config(None, ["training.precision=fp64", "training.device=cuda"])


def test_the_schema_forbids_unknown_keys() -> None:
    assert json_schema()["additionalProperties"] is False


def test_the_documented_settings_of_an_evaluation_are_those_of_the_tree() -> None:
    from mpma.config_reference import BEGIN, EVALUATION, EVALUATION_SCHEMA, reference

    written = EVALUATION.read_text().split(BEGIN)[1]
    assert written == reference(EvaluationConfig), "run python -m mpma.config_reference"
    assert json.loads(EVALUATION_SCHEMA.read_text()) == EvaluationConfig.model_json_schema()


def test_the_documented_reference_and_schema_are_those_of_the_tree() -> None:
    from mpma.config_reference import BEGIN, REFERENCE, SCHEMA, reference

    assert REFERENCE.read_text().split(BEGIN)[1] == reference(), "run python -m mpma.config_reference"
    assert json.loads(SCHEMA.read_text()) == json_schema(), "run python -m mpma.config_reference"
