"""A trained model on the test split, patient by patient: the one comparison that a search may make there.

Decisions: the protocol is validation's, on the split that no decision was taken on; the probe is fitted on
training pairs and scored on test patients. What comes back are patients' outcomes and not means, so that
two models can be compared on the same patients; it holds no identifier and no text. Weights come from
the run's newest whole checkpoint, which must have been trained on this dataset.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from mpma.data.dataset import Dataset
from mpma.errors import JobError, UserError
from mpma.metrics.patient_outcomes import PatientOutcomes
from mpma.metrics.retrieval import retrieval_ranks
from mpma.model.pretraining import build_model
from mpma.training import checkpoint as checkpoints
from mpma.training.run_directory import RunDirectory
from mpma.training.validation import GAIN_RATIOS, Validator
from mpma.training.validation_sets import ValidationDataset


def held_out_outcomes(
    run: RunDirectory,
    dataset: Dataset,
    *,
    device: torch.device,
    precision: str = "fp32",
    split: str = "test",
) -> PatientOutcomes:
    """What a run's newest checkpoint does on each patient of the split.

    Raises `UserError` where there is no checkpoint, the data are others, or the split has fewer than two
    patients; `JobError` where the embeddings are not finite.
    """
    config = run.stored_config()
    names = checkpoints.list_checkpoints(run.checkpoints)
    if not names:
        raise UserError(f"{run.name}: there is no checkpoint to evaluate")
    found = checkpoints.read_checkpoint(run.checkpoints.child(names[-1]), parts=(checkpoints.MODEL_FILE,))
    if found.state.data_fingerprint != dataset.fingerprint:
        raise UserError(
            f"{run.name}: trained on data {found.state.data_fingerprint}; "
            f"{dataset.path} is {dataset.fingerprint}"
        )
    model = build_model(config, **found.state.model, seed=config.training.seed)
    checkpoints.load_model_tensors(model, found.model, found.name)
    validator = Validator(
        dataset,
        config,
        dataset.tokenizer(),
        target_scale=int(found.state.model["target_scale"]),
        device=device,
        precision=precision,
        split=split,
    )
    return patient_outcomes(dataset, validator, model.to(device), split)


def patient_outcomes(
    dataset: ValidationDataset, validator: Validator, model: Any, split: str
) -> PatientOutcomes:
    """What a model does on each patient of the split that the validator was built for; one worker.

    Raises `JobError` where the embeddings are not finite.
    """
    measured, sets = validator.measure(model), validator.sets
    if not measured.finite:
        raise JobError(f"the model's embeddings of the {split} split are not finite")
    number_of: dict[str, int] = {}

    def numbered(rows: np.ndarray) -> np.ndarray:
        patients = dataset.read_rows(split, rows, ["patient_id"])["patient_id"].to_pylist()
        return np.array([number_of.setdefault(patient, len(number_of)) for patient in patients], np.int64)

    numbered(sets.gallery_rows)
    # Report hashes would tell equal reports apart from outside; their numbers do not.
    _, classes = np.unique(sets.gallery_class, return_inverse=True)
    class_of = torch.as_tensor(classes)
    one_way = retrieval_ranks(measured.image, measured.report, class_of, class_of)
    other_way = retrieval_ranks(measured.report, measured.image, class_of, class_of)
    scores, labels, probed = np.zeros((0, 0)), np.zeros((0, 0)), np.zeros(0, np.int64)
    if sets.probe_val is not None:
        result = validator.fit_probe(measured)
        labels = sets.probe_val.labels[:, list(result.columns)]
        scores, probed = result.scores, numbered(sets.probe_val.rows)
    gained, sums = np.zeros(0, np.int64), np.zeros((0, len(GAIN_RATIOS), 3))
    if measured.gain_sums is not None:
        gained = numbered(np.concatenate([block.rows for block in sets.gain_blocks]))
        sums = measured.gain_sums.numpy()
    return PatientOutcomes(
        patients=len(number_of),
        ranks=(one_way, other_way),
        classes=classes.astype(np.int64),
        probe_patient=probed,
        probe_scores=scores,
        probe_labels=labels,
        gain_patient=gained,
        gain_sums=sums,
    )
