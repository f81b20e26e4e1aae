"""Figures: their maths, their lines, and a file that is whole whenever a run is broken off."""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import figures
from benchmarks.figures import Figure

ROOT = Path(__file__).resolve().parents[2]


def test_a_figure_is_the_median_of_its_samples_with_their_spread() -> None:
    figure = figures.of("step/seconds/fp32", [3.0, 1.0, 2.5], "s", {"batch": 8})
    assert (figure.value, figure.lowest, figure.highest, figure.repeats) == (2.5, 1.0, 3.0, 3)


def test_a_ratio_is_the_median_over_turns_and_not_the_ratio_of_the_medians() -> None:
    # The machine was twice as slow in the second turn, for both.
    figure = figures.ratio("streams/over/peer", [10.0, 4.0, 9.0], [5.0, 2.0, 4.5])
    assert figure.value == 2.0
    assert figure.interval == (2.0, 2.0)


def test_the_interval_of_a_ratio_lies_within_its_turns_and_is_the_same_again() -> None:
    above, below = [1.0, 1.2, 1.1, 1.4, 0.9], [1.0] * 5
    first, again = (figures.ratio("ray_loop/over_plain", above, below) for _ in range(2))
    assert first.interval == again.interval
    assert first.interval is not None
    low, high = first.interval
    assert 0.9 <= low < first.value < high <= 1.4


def test_two_turns_give_no_interval() -> None:
    assert figures.ratio("step/over_peer", [1.0, 2.0], [1.0, 1.0]).interval is None


def test_turns_that_do_not_pair_are_refused() -> None:
    with pytest.raises(ValueError, match="shorter"):
        figures.ratio("step/over_peer", [1.0, 2.0], [1.0])


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_not_a_number_is_refused(value: float) -> None:
    with pytest.raises(ValueError, match="finite"):
        figures.of("step/seconds", [value], "s")


def test_a_value_is_missing_only_with_a_reason() -> None:
    with pytest.raises(AssertionError, match="reason"):
        Figure("gpu/share_of_floor", None, "ratio")
    assert figures.blank("gpu/share_of_floor", "ratio", "no GPU at hand").reason == "no GPU at hand"


def test_a_line_gives_back_its_figure() -> None:
    made = figures.ratio("ray_loop/over_plain", [1.0, 1.2, 1.1], [1.0, 1.0, 1.0], {"pairs": 10})
    assert figures.parse(made.line()) == made


@pytest.mark.parametrize("line", ["", "training...", '{"figure": "regret", "mean": 0.1}', "[1]", "3"])
def test_lines_of_another_shape_are_no_figures(line: str) -> None:
    assert figures.parse(line) is None


def _told(out: Path, *told: Figure, quick: bool = False) -> list[Figure]:
    with figures.report("step", argparse.Namespace(quick=quick, out=out)) as tell:
        for figure in told:
            tell(figure)
    return figures.read(out)[0]


def test_a_run_replaces_its_own_lines_and_keeps_those_of_others(tmp_path: Path) -> None:
    out = tmp_path / "step.jsonl"
    _told(out, figures.of("step/old", [1.0], "s"), figures.of("image_branch/seconds", [2.0], "s"))
    kept = _told(out, figures.of("step/new", [3.0], "s"))
    assert [figure.figure for figure in kept] == ["image_branch/seconds", "step/new"]


def test_a_blank_figure_leaves_what_another_machine_measured(tmp_path: Path) -> None:
    out = tmp_path / "gpu.jsonl"
    _told(out, figures.of("gpu/share_of_floor/eager", [0.5], "ratio"))
    nothing = figures.blank("gpu/share_of_floor/eager", "ratio", "no GPU at hand")
    assert [figure.value for figure in _told(out, nothing)] == [0.5]
    assert [figure.reason for figure in _told(tmp_path / "new.jsonl", nothing)] == ["no GPU at hand"]


def test_each_line_names_its_machine_and_a_quick_run_says_so(tmp_path: Path) -> None:
    (kept,) = _told(tmp_path / "step.jsonl", figures.of("step/seconds", [1.0], "s"), quick=True)
    assert kept.settings["quick"] is True
    assert {"cpu", "cores", "gpu", "torch", "load_before"} == set(kept.machine)


def test_a_figure_is_told_once(tmp_path: Path) -> None:
    twice = figures.of("step/seconds", [1.0], "s")
    with pytest.raises(AssertionError, match="told twice"):
        _told(tmp_path / "step.jsonl", twice, twice)


def test_a_run_that_is_killed_between_two_figures_leaves_the_file_as_it_was(tmp_path: Path) -> None:
    out = tmp_path / "step.jsonl"
    _told(out, figures.of("step/seconds", [1.0], "s"))
    before = out.read_bytes()
    code = (
        "import sys, time\n"
        "from benchmarks import figures\n"
        "arguments = figures.options('').parse_args()\n"
        "with figures.report('step', arguments) as tell:\n"
        "    tell(figures.of('step/seconds', [2.0], 's'))\n"
        "    time.sleep(60)\n"
    )
    command = [sys.executable, "-c", code, "--out", str(out)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT) as process:
        assert process.stdout is not None
        assert figures.parse(process.stdout.readline()) is not None
        process.send_signal(signal.SIGKILL)
    assert out.read_bytes() == before
    assert list(tmp_path.iterdir()) == [out]


def test_a_disk_that_fills_while_lines_are_written_leaves_the_file_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "step.jsonl"
    _told(out, figures.of("step/seconds", [1.0], "s"))
    before = out.read_bytes()

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        _told(out, figures.of("step/seconds", [2.0], "s"))
    assert out.read_bytes() == before
    assert list(tmp_path.iterdir()) == [out]
