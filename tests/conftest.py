"""Fixtures and options that every folder of tests shares."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

# Two cores serve the whole suite: one thread a process keeps timings and results steady.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("RAY_DATA_DISABLE_PROGRESS_BARS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--data-root",
        default=str(Path(__file__).resolve().parents[1] / ".." / "shared" / "data"),
        help="folder of real, openly licensed pairs; tests that need it are skipped where it is absent",
    )


@pytest.fixture(scope="session")
def data_root(request: pytest.FixtureRequest) -> Path:
    root = Path(request.config.getoption("--data-root")).resolve()
    if not root.is_dir():
        pytest.skip(f"no real data at {root}; name its folder with --data-root")
    return root
