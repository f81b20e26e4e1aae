"""One tiny dataset and two tiny models for all tests of this folder."""

from __future__ import annotations

import pytest
from task_samples import LoadedModel, Row, phantom_rows, tiny_model, written

from mpma.downstream.features import FeatureStore
from mpma.downstream.labelled import LabelledData


@pytest.fixture(scope="session")
def rows() -> dict[str, list[Row]]:
    """Synthetic pairs by split; a test that changes them copies them first."""
    return phantom_rows(96, 32, 64)


@pytest.fixture(scope="session")
def data(rows: dict[str, list[Row]], tmp_path_factory: pytest.TempPathFactory) -> LabelledData:
    return written(tmp_path_factory.mktemp("downstream") / "phantom", rows)


@pytest.fixture(scope="session")
def model(data: LabelledData) -> LoadedModel:
    return tiny_model(data.dataset.tokenizer(), seed=0, step=10)


@pytest.fixture(scope="session")
def other_model(data: LabelledData) -> LoadedModel:
    return tiny_model(data.dataset.tokenizer(), seed=1, step=10)


@pytest.fixture(scope="session")
def features(model: LoadedModel, data: LabelledData) -> FeatureStore:
    return FeatureStore(model, data)
