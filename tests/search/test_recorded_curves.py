"""The table of recorded curves is a whole grid, however far recording came."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from benchmarks.record_curves import GRIDS, METRICS, Grid, recorded_axes, summary, table, write

GRID = GRIDS["masking"]


def lines(count: int, grid: Grid = GRID) -> list[dict[str, Any]]:
    """The first runs of a recording; run n scores n / 100 at its end."""
    return [
        {
            "params": params,
            "seed": seed,
            "values": {name: [0.0] * (len(grid.rungs) - 1) + [number / 100] for name in METRICS},
            "seconds_per_step": 0.1,
        }
        for number, (params, seed) in zip(range(count), grid.runs(), strict=False)
    ]


def test_the_default_point_is_recorded_first_and_with_other_seeds_once() -> None:
    runs = list(GRID.runs())
    assert runs[0] == (GRID.default(), 0)
    assert sorted(seed for params, seed in runs if params == GRID.default()) == list(range(GRID.seeds))
    assert len({(tuple(params.values()), seed) for params, seed in runs}) == len(runs) == 40 + GRID.seeds - 1


def test_a_broken_recording_leaves_a_whole_smaller_grid() -> None:
    for count in range(1, len(list(GRID.runs())) + 1):
        found = table(GRID, lines(count), {})
        sizes = 1
        for values in found["axes"].values():
            sizes *= len(values)
        assert len(found["runs"]) == sizes
    whole = table(GRID, lines(44), {})["axes"]
    assert whole == {name: sorted(values) for name, values in GRID.axes.items()}


def test_one_missing_run_keeps_its_slice_out_of_the_table() -> None:
    points = {tuple(line["params"].values()) for line in lines(44) if line["seed"] == 0}
    slow = GRID.axes["training.learning_rate_per_256"]
    axes = recorded_axes(GRID, points - {(0.9, 0.15, slow[1])})
    assert axes["training.learning_rate_per_256"] == [slow[0]]
    assert len(axes["image.mask_ratio"]) == 5


def test_the_table_is_read_back_as_it_was_and_its_summary_names_the_best(tmp_path: Path) -> None:
    found = table(GRID, lines(44), {"recipe": "recipes/search.yaml"})
    write(tmp_path / "curves.json", found)
    assert json.loads((tmp_path / "curves.json").read_text()) == found
    assert "best  0.4300" in summary(found)
