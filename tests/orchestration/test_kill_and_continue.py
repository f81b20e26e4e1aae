"""Kills at random steps, by SIGKILL, of real programs. The random steps are printed with a failure."""

from __future__ import annotations

import os
import random
import signal
from pathlib import Path

import pytest
from small_runs import (
    Program,
    assert_same_run,
    lines,
    phantom_dataset,
    recipe,
    steps_done,
    write_recipe,
)

pytestmark = pytest.mark.slow

STEPS = 40


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("kills")
    phantom_dataset(root / "phantom")
    for workers in (1, 2):
        write_recipe(
            root / f"{workers}.yaml",
            recipe(steps=STEPS, workers=workers, threads_per_worker=1, checkpoint_every_steps=7),
        )
    return root


def _program(place: Path, workers: int, name: str) -> Program:
    return Program(place / f"{workers}.yaml", place / "phantom", place / "runs", name)


@pytest.fixture(scope="module")
def unbroken(place: Path) -> dict[int, Path]:
    found = {}
    for workers in (1, 2):
        program = _program(place, workers, f"unbroken{workers}")
        assert program.wait() == 0, program.output()
        found[workers] = place / "runs" / f"unbroken{workers}"
    return found


@pytest.mark.parametrize("workers", [1, 2])
def test_a_driver_killed_at_a_random_step_continues_bit_for_bit(
    place: Path, unbroken: dict[int, Path], workers: int
) -> None:
    run = place / "runs" / f"driver{workers}"
    kills = sorted(random.sample(range(1, STEPS - 2), 2))
    for kill in kills:
        program = _program(place, workers, run.name)
        program.until(lambda kill=kill: steps_done(run) >= kill)
        program.kill()
    program = _program(place, workers, run.name)
    assert program.wait() == 0, f"kills at {kills}\n{program.output()}"
    assert_same_run(unbroken[workers], run, STEPS)


def test_a_worker_killed_at_a_random_step_is_restarted_and_continues_bit_for_bit(
    place: Path, unbroken: dict[int, Path]
) -> None:
    run = place / "runs" / "worker"
    kill = random.randrange(1, STEPS - 5)
    program = _program(place, 2, run.name)
    program.until(lambda: steps_done(run) >= kill)
    victims = program.workers()
    assert len(victims) == 2, program.output()
    os.kill(random.choice(victims).pid, signal.SIGKILL)
    assert program.wait(400) == 0, f"kill at {kill}\n{program.output()}"
    assert "continuing at step" in program.output()
    assert_same_run(unbroken[2], run, STEPS)


def test_a_worker_count_that_changes_goes_on_with_the_same_pairs(
    place: Path, unbroken: dict[int, Path]
) -> None:
    run = place / "runs" / "changing"
    program = _program(place, 1, run.name)
    program.until(lambda: steps_done(run) >= 15)
    program.kill()
    program = _program(place, 2, run.name)
    assert program.wait() == 0, program.output()
    for ours, theirs in zip(lines(run), lines(unbroken[1]), strict=True):
        for name in ours.keys() & theirs.keys():
            if name.startswith("loss/global") and ours["step"] <= 20:
                assert ours[name] == pytest.approx(theirs[name], rel=2e-2), (ours["step"], name)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("workers", [1, 2])
def test_a_stop_saves_ends_well_and_says_how_to_continue(
    place: Path, unbroken: dict[int, Path], number: int, workers: int
) -> None:
    run = place / "runs" / f"stopped{workers}-{number}"
    program = _program(place, workers, run.name)
    program.until(lambda: steps_done(run) >= 3)
    os.kill(program.process.pid, number)
    assert program.wait() == 0, program.output()
    assert f"--name {run.name} continues" in program.output()
    saved = sorted(path.name for path in (run / "checkpoints").iterdir())[-1]
    assert int(saved.removeprefix("step_")) == steps_done(run) < STEPS
    program = _program(place, workers, run.name)
    assert program.wait() == 0, program.output()
    assert_same_run(unbroken[workers], run, STEPS)
