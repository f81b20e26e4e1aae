"""The dataset that a run was trained on, found again.

Decision: the fingerprint decides and not the place, so a dataset that was replaced meanwhile is not taken,
and a phantom made by an earlier version of the generator is still found.
"""

from __future__ import annotations

import os

from mpma.data.dataset import Dataset
from mpma.data.storage import open_storage
from mpma.errors import UserError
from mpma.training.run_directory import RunDirectory
from orchestration.phantom_data import DEFAULT_ROOT


def find_own_data(run: RunDirectory, fingerprint: str) -> Dataset | None:
    """The run's dataset where its configuration says, or among the phantoms kept here; None elsewhere."""
    path = run.stored_config().data.path
    places = [path] if path is not None else _phantoms()
    for place in places:
        try:
            dataset = Dataset.open(place)
        except UserError:
            continue
        if dataset.fingerprint == fingerprint:
            return dataset
    return None


def _phantoms() -> list[str]:
    names = open_storage(DEFAULT_ROOT).names()
    return [os.path.join(DEFAULT_ROOT, name) for name in names if name.startswith("phantom-")]
