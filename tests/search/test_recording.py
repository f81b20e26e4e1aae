"""Recordings name whole grids, and their tables are read back as they were."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.record import RECORDINGS, RESULTS
from benchmarks.recording import Curves, Line, Recording, left, summary, write

MASKING = RECORDINGS["masking"]


def lines(recording: Recording, count: int) -> list[Line]:
    """The first runs of a recording; run n scores n / 100 at its end."""
    return [
        {
            "params": params,
            "seed": seed,
            "values": {
                name: [0.0] * (len(recording.rungs) - 1) + [number / 100] for name in recording.metrics
            },
            "seconds_per_step": 0.1,
        }
        for number, (params, seed) in zip(range(count), recording.runs(), strict=False)
    ]


def table(recording: Recording, count: int) -> dict[str, Any]:
    return {
        "keys": list(recording.axes),
        "steps": list(recording.rungs),
        "runs": lines(recording, count),
        "settings": {},
    }


@pytest.mark.parametrize("name", sorted(RECORDINGS))
def test_every_point_of_a_recording_is_a_configuration_and_comes_once(name: str) -> None:
    recording = RECORDINGS[name]
    runs = list(recording.runs())
    assert len({(tuple(params.values()), seed) for params, seed in runs}) == len(runs)
    points = int(np.prod([len(values) for values in recording.axes.values()]))
    assert len(runs) == points * recording.seeds + max(0, recording.default_seeds - recording.seeds)
    config = recording.config(*runs[-1])
    assert config.training.steps == recording.rungs[-1]
    assert all(rung % config.validation.every_steps == 0 for rung in recording.rungs)


def test_the_default_point_is_recorded_first_and_with_other_seeds_once() -> None:
    runs = list(MASKING.runs())
    assert runs[0] == (MASKING.default(), 0)
    seeds = [seed for params, seed in runs if params == MASKING.default()]
    assert seeds == list(range(MASKING.default_seeds))


def test_a_table_holds_the_seeds_that_have_the_whole_grid() -> None:
    recording = Recording(Path("recipes/search.yaml"), {"a": (1, 2, 3), "b": (4.0, 5.0)}, ("m",), (10, 30), 2)
    with pytest.raises(ValueError, match="5 of 6 points"):
        Curves.of(table(recording, 5), "m")
    assert Curves.of(table(recording, 11), "m").runs.shape == (6, 1, 2)
    curves = Curves.of(table(recording, 12), "m")
    assert curves.runs.shape == (6, 2, 2)
    assert curves.levels == {"a": [1, 2, 3], "b": [4.0, 5.0]}
    last = curves.points.index({"a": 3, "b": 5.0})
    np.testing.assert_allclose(curves.runs[last, :, -1], [0.05, 0.11])


def test_a_table_is_read_back_as_it_was_and_its_summary_names_the_best(tmp_path: Path) -> None:
    found = table(MASKING, len(list(MASKING.runs())))
    write(tmp_path / "curves.json", found)
    assert json.loads((tmp_path / "curves.json").read_text()) == found
    text = summary(found, MASKING.metrics[0])
    assert f"best: {(len(list(MASKING.runs())) - MASKING.default_seeds) / 100:.4f}" in text
    assert "standard deviation between seeds" in text


@pytest.mark.parametrize("name", ["masking", "codes"])
def test_the_tables_of_curves_are_whole(name: str) -> None:
    recording = RECORDINGS[name]
    curves = Curves.read(RESULTS / f"curves_{name}.json", recording.metrics[0])
    assert curves.levels == {key: sorted(values) for key, values in recording.axes.items()}
    assert curves.steps == recording.rungs
    assert np.isfinite(curves.runs).all()


def test_two_processes_share_a_recording_and_go_on_where_it_was_broken_off() -> None:
    every = list(MASKING.runs())
    one, other = (list(left(MASKING, [], part, 2)) for part in (1, 2))
    assert sorted(map(str, one + other)) == sorted(map(str, every))
    assert abs(len(one) - len(other)) <= 1
    assert list(left(MASKING, lines(MASKING, 7), 1, 1)) == every[7:]
