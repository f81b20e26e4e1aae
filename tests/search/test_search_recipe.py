"""The recipe that searches start from has what a search needs of it."""

from __future__ import annotations

from pathlib import Path

from mpma.config import ExperimentConfig, load_config

RECIPE = Path(__file__).resolve().parents[2] / "recipes" / "search.yaml"


def config() -> ExperimentConfig:
    """The recipe's tree."""
    return load_config(RECIPE).config


def test_the_search_recipe_starts_from_the_customary_masks_with_every_loss_on() -> None:
    tree = config()
    assert (tree.image.mask_ratio, tree.report.mask_ratio) == (0.75, 0.5)
    assert all(value == 1.0 for _, value in tree.loss_weights)


def test_two_runs_of_the_search_recipe_share_two_cores() -> None:
    tree = config()
    assert tree.training.threads_per_worker == 1
    assert tree.training.workers == 1


def test_the_search_recipe_is_validated_by_rungs_and_has_enough_held_out_patients() -> None:
    tree = config()
    assert tree.validation.every_steps > tree.training.steps
    assert tree.data.phantom.val_pairs >= tree.validation.gallery_size
    assert tree.data.phantom.test_pairs >= 1024
    assert tree.validation.probe_train_pairs <= 1000
