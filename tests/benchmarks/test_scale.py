"""The simulation of a large cluster: what it checks on the way is checked, and it is quick at full size."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from benchmarks import figures
from benchmarks.scale import PAIRS, TRIALS, WORKERS, check_order, growth
from benchmarks.scale_order import an_order, seconds_per_position, walk_an_epoch
from mpma.data.sample_order import SampleOrder, StepRows


def test_growth_is_the_power_of_the_size() -> None:
    assert growth({10: 3.0, 100: 30.0, 1000: 300.0}) == pytest.approx(1.0)
    assert growth({10: 3.0, 100: 3.0}) == pytest.approx(0.0)
    logarithmic = {size: float(np.log(size)) for size in (50, 500, 5_000)}
    assert growth(logarithmic) < 0.2


def test_an_epoch_of_a_hundred_thousand_pairs_is_whole_for_every_number_of_workers() -> None:
    assert len(check_order(100_000, 128)) == 32


class _Repeating(SampleOrder):
    """Gives one pair in the place of another."""

    def rows(self, step: int, rank: int = 0, world: int = 1) -> StepRows:
        found = super().rows(step, rank, world)
        return found._replace(row=np.where(found.row == 777, 778, found.row))


def test_a_pair_given_twice_and_one_left_out_are_counted() -> None:
    order = an_order(20_000, 8)
    order.__class__ = _Repeating
    found = walk_an_epoch(order, 20_000)
    assert (found.missing, found.repeated) == (1, 1)


def test_a_position_costs_no_more_among_a_thousand_times_the_pairs() -> None:
    costs = [min(seconds_per_position(pairs, 64, 5_000) for _ in range(5)) for pairs in (10_000, PAIRS)]
    assert costs[1] < 10 * costs[0]  # linear would be a thousandfold; measured: less than once


def test_the_whole_simulation_runs_at_a_small_size_and_tells_its_figures(tmp_path: Path) -> None:
    out = tmp_path / "scale.jsonl"
    command = [sys.executable, "-m", "benchmarks.scale", "--quick", "--out", str(out)]
    subprocess.run(command, check=True, timeout=120, stdout=subprocess.DEVNULL)
    told = {figure.figure: figure for figure in figures.read(out)[0]}
    assert told["scale/journal/megabytes"].value is not None
    assert {name.rpartition("/")[2] for name in told if "growth" in name} == {
        "growth_with_pairs",
        "growth_with_trials",
        "growth_with_workers",
    }


@pytest.mark.slow
@pytest.mark.timeout(240)
def test_ten_million_pairs_512_workers_and_5000_trials_take_less_than_two_minutes_and_2_gb(
    tmp_path: Path,
) -> None:
    out = tmp_path / "scale.jsonl"
    command = [sys.executable, "-m", "benchmarks.scale", "--whole", "--out", str(out)]
    subprocess.run(command, check=True, timeout=200, stdout=subprocess.DEVNULL)
    told = {figure.figure: figure for figure in figures.read(out)[0]}
    assert told["scale/seconds"].settings == {"pairs": PAIRS, "workers": WORKERS, "trials": TRIALS}
    value = {name: figure.value or 0.0 for name, figure in told.items()}
    assert 1 < value["scale/seconds"] < 120
    assert value["scale/peak_memory"] * 2**30 < 2e9
    assert value["scale/decision/late_over_early"] < 3  # linear in the trials would be about twenty
    assert value["scale/journal/replay_seconds"] < 20
