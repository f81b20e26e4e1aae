"""One live search, from pairs to winner, where the best value is known beforehand."""

from __future__ import annotations

from pathlib import Path

import pytest
from small_runs import Command
from small_searches import state_of

from benchmarks.planted import region
from orchestration.search.promote import best_first
from orchestration.search.space import load_space

SPACE = Path(__file__).resolve().parents[2] / "search_spaces" / "planted_codes_3.yaml"


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_live_search_finds_the_planted_report_ratio(tmp_path: Path) -> None:
    search = Command(
        tmp_path / "planted.log",
        *("orchestration.tune", "--space", str(SPACE), "--searches", str(tmp_path / "searches")),
        *("--name", "planted", "--no-dashboard"),
    )
    assert search.wait(580) == 0, search.output()
    state = state_of(tmp_path / "searches" / "planted")
    assert len(state.trials) == 12
    best = state.trials[best_first(load_space(SPACE).space, state)[0]]
    low, high = region(3)
    assert low <= best.params["report.mask_ratio"] <= high, best.params
