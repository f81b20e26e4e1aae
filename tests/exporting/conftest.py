"""One small run and its export for all tests of this folder."""

from __future__ import annotations

from pathlib import Path

import pytest
from finished_runs import finished_run, pairs

import mpma
from mpma.data.dataset import Dataset
from mpma.data.storage import open_storage
from mpma.exporting.export import export_run
from mpma.loading import LoadedModel
from mpma.training.run_directory import RunDirectory


@pytest.fixture(scope="session")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return pairs(tmp_path_factory.mktemp("export") / "data")


@pytest.fixture(scope="session")
def run(dataset: Dataset, tmp_path_factory: pytest.TempPathFactory) -> RunDirectory:
    return finished_run(tmp_path_factory.mktemp("export-runs"), dataset)


@pytest.fixture(scope="session")
def model(run: RunDirectory) -> LoadedModel:
    return mpma.load(run.folder.root)


@pytest.fixture(scope="session")
def exported(run: RunDirectory, dataset: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("exports") / "small"
    export_run(run, open_storage(folder), dataset=dataset)
    return folder
