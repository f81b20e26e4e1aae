"""A dataset of small phantom pairs and runs that look as training leaves them; for several folders of tests.

The weights are initial ones with noise on every parameter, so that nothing is zero or one by chance and a
tensor that is lost, exchanged or left at its start changes the outputs.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from mpma.config import ExperimentConfig, to_yaml, validate_tree
from mpma.data.dataset import Dataset
from mpma.data.dataset_writing import write_dataset
from mpma.data.images import read_grey
from mpma.data.sources.phantom import PhantomSource
from mpma.model.pretraining import build_model
from mpma.training import checkpoint
from mpma.training.run_directory import RunDirectory, config_hash, provenance

TREE: dict[str, Any] = {
    "image": {
        "size": 64,
        "backbone": "vit_tiny_patch16_224",
        "width": 32,
        "layers": 2,
        "heads": 2,
        "decoder_width": 16,
        "decoder_layers": 1,
        "decoder_heads": 2,
    },
    "report": {"max_tokens": 32, "layers": 2, "width": 24, "heads": 2},
    "memory": {"slots": 32, "top_k": 8, "heads": 2},
    "fusion": {"layers": 1, "heads": 2},
    "alignment": {"width": 16, "group_size": 8},
    "training": {"steps": 20, "batch_size": 16},
}

WITHOUT_REPORT = 5
"""Every pair whose number in its split is a multiple of this has no report."""


def pairs(path: Path, train: int = 40, val: int = 20, test: int = 10, seed: int = 0) -> Dataset:
    """A dataset in which some pairs have no report."""
    source = PhantomSource(train, val, test, 64, seed)

    def rows(split: str) -> Iterator[dict[str, Any]]:
        items = (item for item in source.items() if item.split == split)
        for number, item in enumerate(items):
            image = source.load_image(item)
            height, width = read_grey(image).shape
            text = {name: getattr(item, name) for name in ("report", "findings", "impression")}
            if number % WITHOUT_REPORT == 0:
                text = dict.fromkeys(text, "")
            yield {
                **{name: getattr(item, name) for name in ("pair_id", "patient_id", "study_id")},
                **text,
                "view": item.view,
                "license": "made for tests",
                "image": image,
                "width": width,
                "height": height,
                "labels": list(item.labels or ()),
                "source": "phantom",
            }

    write_dataset(path, {split: rows(split) for split in ("train", "val", "test")}, pairs_per_shard=64)
    return Dataset.open(path)


def config_of(dataset: Dataset, **changes: dict[str, Any]) -> ExperimentConfig:
    """The small configuration on a dataset, with keys of its sections replaced."""
    tree = {name: {**values, **changes.get(name, {})} for name, values in TREE.items()}
    tree |= {name: values for name, values in changes.items() if name not in tree}
    return validate_tree({**tree, "data": {"path": dataset.path, **changes.get("data", {})}})


def finished_run(
    root: Path,
    dataset: Dataset,
    name: str = "small",
    *,
    steps: tuple[int, ...] = (10, 20),
    target_scale: int = 1,
    seed: int = 0,
    **changes: dict[str, Any],
) -> RunDirectory:
    """A run with a checkpoint for each step, metrics and its tokeniser; ended at the last step."""
    config = config_of(dataset, **changes)
    run = RunDirectory.at(root, name)
    run.begin_or_continue(config, dataset.fingerprint)
    tokenizer = dataset.tokenizer()
    run.keep_tokenizer(tokenizer.to_bytes())
    facts: dict[str, Any] = {
        "vocabulary_size": tokenizer.vocabulary_size,
        "pad_id": tokenizer.pad_id,
        "grey_mean": dataset.grey_mean,
        "grey_std": dataset.grey_std,
        "target_scale": target_scale,
    }
    model = build_model(config, **facts, seed=seed)
    draw = torch.Generator().manual_seed(seed)
    for step in steps:
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.05 * torch.randn(parameter.shape, generator=draw))
        state = checkpoint.CheckpointState(
            step=step,
            position=step * config.training.batch_size,
            world_size=1,
            config_hash=config_hash(config),
            data_fingerprint=dataset.fingerprint,
            model=facts,
        )
        checkpoint.write_checkpoint(run.checkpoints, state, model.state_dict(), {}, keep=len(steps))
    lines = [{"step": 0, "val/probe/auroc": 0.51}]
    for step in steps:
        lines += [{"step": step, "loss/total": 3.0}, {"step": step, "val/probe/auroc": 0.6 + step / 1000}]
    run.folder.write("metrics.jsonl", "".join(json.dumps(line) + "\n" for line in lines).encode())
    run.folder.write("provenance.json", json.dumps(provenance(dataset.fingerprint)).encode())
    if steps[-1] == config.training.steps:
        run.mark_finished(steps[-1], {})
    return run


def rewritten(run: RunDirectory, config: ExperimentConfig) -> None:
    """Exchange a run's configuration, as no program would."""
    run.folder.write("config.yaml", to_yaml(config).encode())
