"""The test split, patient by patient: validation's own figures, the weights of the run, nobody's identity."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from held_out_samples import MemoryDataset, made_config, made_dataset, made_model, made_pair, made_tokenizer

from mpma.data.dataset import Dataset
from mpma.data.dataset_writing import write_dataset
from mpma.errors import JobError, UserError
from mpma.training import checkpoint as checkpoints
from mpma.training.held_out import held_out_outcomes, patient_outcomes
from mpma.training.run_directory import RunDirectory, config_hash
from mpma.training.validation import Validator

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def dataset() -> MemoryDataset:
    """Pairs whose val split is another; the test split has a patient with two pairs."""
    made = made_dataset(val=75)
    test = made.rows["val"][:60]
    test[1]["patient_id"] = test[0]["patient_id"]
    return MemoryDataset({"train": made.rows["train"], "val": made.rows["val"][60:], "test": test})


def judged(dataset: MemoryDataset, split: str, **validation: Any) -> Validator:
    return Validator(
        dataset,
        made_config(**validation),
        made_tokenizer(dataset),
        target_scale=1,
        device=CPU,
        split=split,
    )


def test_with_all_patients_the_figures_are_those_of_a_validation_of_that_split(
    dataset: MemoryDataset,
) -> None:
    model = made_model(made_config(), made_tokenizer(dataset))
    outcomes = patient_outcomes(dataset, judged(dataset, "test"), model, "test")
    validated = judged(dataset, "test").run(model, 0)
    figures = outcomes.figures()
    assert len(figures) == 11
    for name, value in figures.items():
        assert validated[f"val/{name}"] == pytest.approx(value, abs=1e-9), name
    other = judged(dataset, "val").run(model, 0)
    assert other["val/retrieval/gallery_size"] == 15
    assert other["val/representation_score"] != validated["val/representation_score"]


def test_the_val_split_is_not_read_for_the_test_split(dataset: MemoryDataset) -> None:
    model = made_model(made_config(), made_tokenizer(dataset))
    dataset.reads.clear()
    patient_outcomes(dataset, judged(dataset, "test"), model, "test")
    assert {split for split, _, _ in dataset.reads} == {"train", "test"}


def test_pairs_of_one_patient_share_a_number_and_the_gallery_is_counted_first(
    dataset: MemoryDataset,
) -> None:
    model = made_model(made_config(), made_tokenizer(dataset))
    validator = judged(dataset, "test")
    outcomes = patient_outcomes(dataset, validator, model, "test")
    gallery, sets = validator.sets.gallery_rows, validator.sets
    assert sets.probe_val is not None
    patients = [row["patient_id"] for row in dataset.rows["test"]]
    names = [patients[row] for row in gallery]
    assert len(gallery) == 50
    assert outcomes.patients == len(set(names) | {patients[row] for row in sets.probe_val.rows})
    # Two of the 60 pairs are one patient's, and a labelled pair in seven stands outside the gallery.
    assert len(set(names)) == 50 < outcomes.patients < 60
    for row, number in zip(sets.probe_val.rows, outcomes.probe_patient, strict=True):
        if patients[row] in names:
            assert names[number] == patients[row]
        else:
            assert number >= len(names)
    gained = np.concatenate([block.rows for block in sets.gain_blocks])
    assert [names[number] for number in outcomes.gain_patient] == [patients[row] for row in gained]
    assert outcomes.classes.max() < len(gallery)


def test_a_model_that_is_not_finite_is_refused(dataset: MemoryDataset) -> None:
    model = made_model(made_config(), made_tokenizer(dataset))
    with torch.no_grad():
        next(model.image_encoder.parameters()).fill_(torch.nan)
    with pytest.raises(JobError, match="embeddings of the test split are not finite"):
        patient_outcomes(dataset, judged(dataset, "test"), model, "test")


def test_a_test_split_of_one_patient_is_named() -> None:
    lonely = MemoryDataset({"train": [], "test": [made_pair(0, size=4)]})
    with pytest.raises(UserError, match="at least 2 patients in the test split; this dataset has 1"):
        judged(MemoryDataset(lonely.rows | {"val": [made_pair(i) for i in range(30)]}), "test")


def test_a_run_is_judged_by_its_newest_checkpoint_on_its_own_data(tmp_path: Path) -> None:
    made = made_dataset(train=40, val=30)
    rows = {"train": made.rows["train"], "val": made.rows["val"][:6], "test": made.rows["val"][6:]}
    write_dataset(tmp_path / "data", {split: iter(found) for split, found in rows.items()})
    dataset = Dataset.open(str(tmp_path / "data"))
    config, tokenizer = made_config(), dataset.tokenizer()
    run = RunDirectory.at(tmp_path / "runs", "one")
    run.begin_or_continue(config, dataset.fingerprint)
    with pytest.raises(UserError, match="one: there is no checkpoint to evaluate"):
        held_out_outcomes(run, dataset, device=CPU)
    facts = {
        "vocabulary_size": tokenizer.vocabulary_size,
        "pad_id": tokenizer.pad_id,
        "grey_mean": 0.5,
        "grey_std": 0.25,
        "target_scale": 1,
    }
    models = [made_model(config, tokenizer, seed) for seed in (1, 2)]
    for step, model in enumerate(models, start=1):
        state = checkpoints.CheckpointState(
            step, step * 4, 1, config_hash(config), dataset.fingerprint, model=facts
        )
        checkpoints.write_checkpoint(run.checkpoints, state, model.state_dict(), {}, keep=2)
    outcomes = held_out_outcomes(run, dataset, device=CPU)
    validator = Validator(dataset, config, tokenizer, target_scale=1, device=CPU, split="test")
    assert outcomes.figures() == patient_outcomes(dataset, validator, models[1], "test").figures()
    assert outcomes.figures() != patient_outcomes(dataset, validator, models[0], "test").figures()
    assert outcomes.patients == 24
    content = outcomes.to_bytes()
    assert b"patient" not in content.replace(b"patients.npy", b"").replace(b"_patient.npy", b"")

    write_dataset(tmp_path / "other", {split: iter(found[:-1]) for split, found in rows.items()})
    with pytest.raises(UserError, match=r"one: trained on data .* is "):
        held_out_outcomes(run, Dataset.open(str(tmp_path / "other")), device=CPU)
