"""Searches under SIGKILL and Ctrl-C: real programs, real trials. Seeds are printed with a failure."""

from __future__ import annotations

import os
import random
import signal
import time
from pathlib import Path

import optuna
import psutil
import pytest
from small_runs import phantom_dataset
from small_searches import Search, course, events_of, state_of, write_space

from orchestration.search.promote import best_first
from orchestration.search.space import load_space

pytestmark = pytest.mark.slow

TRIALS = 20
KILLS = int(os.environ.get("MPMA_CHAOS_KILLS", "10"))
DRIVER_SHARE = 0.25
ACTOR = "SegmentTrainable"


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("searches")
    phantom_dataset(root / "phantom")
    return root


def _kill_an_actor(search: Search, rng: random.Random) -> bool:
    actors = search.actors(ACTOR)
    if not actors:
        return False
    try:
        rng.choice(actors).kill()
    except psutil.NoSuchProcess:
        return False
    return True


@pytest.mark.timeout(1500)
def test_a_search_under_kills_ends_with_every_trial_once_and_none_running(place: Path) -> None:
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    rng = random.Random(seed)
    space = write_space(place, "chaos.yaml", budget={"trials": TRIALS}, retries=1000)
    folder = place / "searches" / "chaos"
    kills = {"trial": 0, "driver": 0}
    search = Search(space, place / "phantom", place / "searches", "chaos")
    while True:
        # Some kills follow progress, others fall into the start of processes, which lasts longer.
        before = len(events_of(folder)) if folder.exists() else 0
        patience = time.monotonic() + rng.uniform(2.0, 12.0)
        search.until_or_end(
            lambda before=before, patience=patience: (
                time.monotonic() > patience or (folder.exists() and len(events_of(folder)) > before)
            ),
            240,
        )
        if search.process.poll() is not None:
            break
        if sum(kills.values()) >= KILLS:
            assert search.wait(600) == 0, search.output()
            break
        time.sleep(rng.uniform(0.0, 0.5))
        if rng.random() < DRIVER_SHARE:
            search.kill()
            kills["driver"] += 1
            search = Search(space, place / "phantom", place / "searches", "chaos")
        elif _kill_an_actor(search, rng):
            kills["trial"] += 1
    assert search.process.returncode == 0, search.output()
    assert sum(kills.values()) >= KILLS, kills
    assert kills["driver"] >= 1
    state = state_of(folder)
    suggested = [event["trial"] for event in events_of(folder) if event["event"] == "suggest"]
    assert suggested == list(range(TRIALS))
    assert len({str(trial.params) for trial in state.trials}) == TRIALS
    assert all(trial.state in ("complete", "pruned") for trial in state.trials), [
        (trial.number, trial.state, trial.reason) for trial in state.trials
    ]
    study = optuna.load_study(study_name=None, storage=f"sqlite:///{folder}/study.db")
    assert sorted(trial.number for trial in study.trials) == list(range(TRIALS))
    finished = (optuna.trial.TrialState.COMPLETE, optuna.trial.TrialState.PRUNED)
    assert all(trial.state in finished for trial in study.trials)


@pytest.mark.timeout(900)
def test_a_sequential_search_that_is_killed_has_the_trials_and_the_winner_of_an_unbroken_one(
    place: Path,
) -> None:
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    rng = random.Random(seed)
    space = write_space(place, "sequence.yaml", concurrency=1, retries=1000)
    whole = Search(space, place / "phantom", place / "searches", "unbroken")
    assert whole.wait(400) == 0, whole.output()
    folder = place / "searches" / "broken"
    events = len(events_of(place / "searches" / "unbroken"))
    for kill in sorted(rng.sample(range(2, events - 2), 2)):
        search = Search(space, place / "phantom", place / "searches", "broken")
        search.until(lambda kill=kill: folder.exists() and len(events_of(folder)) >= kill)
        _kill_an_actor(search, rng)
        time.sleep(rng.uniform(0.0, 2.0))
        search.kill()
    last = Search(space, place / "phantom", place / "searches", "broken")
    assert last.wait(400) == 0, last.output()
    one, other = state_of(place / "searches" / "unbroken"), state_of(folder)
    assert course(other) == course(one)
    loaded = load_space(space)
    assert best_first(loaded.space, other)[0] == best_first(loaded.space, one)[0]


@pytest.mark.timeout(400)
def test_ctrl_c_saves_every_trial_and_says_how_to_continue(place: Path) -> None:
    space = write_space(place, "stopped.yaml", budget={"trials": 4})
    folder = place / "searches" / "stopped"
    search = Search(space, place / "phantom", place / "searches", "stopped")
    search.until(lambda: folder.exists() and any(event["event"] == "report" for event in events_of(folder)))
    search.process.send_signal(signal.SIGINT)
    assert search.wait(60) == 0, search.output()
    assert "the same command with --name stopped continues" in search.output()
    assert "Traceback" not in search.output()
    assert not state_of(folder).ended
    again = Search(space, place / "phantom", place / "searches", "stopped")
    assert again.wait(240) == 0, again.output()
    assert len(state_of(folder).trials) == 4
    assert all(trial.final for trial in state_of(folder).trials)
    third = Search(space, place / "phantom", place / "searches", "stopped")
    assert third.wait(60) == 0
    assert "finished; nothing to do" in third.output()


@pytest.mark.timeout(600)
def test_trials_of_two_workers_train_through_ray_train_and_resume_when_promoted(place: Path) -> None:
    space = write_space(place, "groups.yaml", budget={"trials": 3})
    search = Search(
        *(space, place / "phantom", place / "searches", "groups"),
        *("--set", "training.workers=2"),
    )
    assert search.wait(500) == 0, search.output()
    state = state_of(place / "searches" / "groups")
    assert [trial.state for trial in state.trials].count("complete") == 1
    assert all(trial.final and trial.state != "failed" for trial in state.trials)
