"""The course of a search: what is begun, promoted, pruned and failed, and that a kill changes nothing."""

from __future__ import annotations

from pathlib import Path

import pytest
import simulated_search as simulated
from hypothesis import given, settings
from hypothesis import strategies as st

from mpma.data.storage import open_storage
from mpma.errors import JobError, UserError
from orchestration.search.jobs import Job, Outcome
from orchestration.search.journal import JOURNAL_FILE, Journal, read_events
from orchestration.search.promote import best_first
from orchestration.search.records import SearchState


def course(state: SearchState) -> list[tuple[object, ...]]:
    """What must not depend on when the driver was killed."""
    return [
        (trial.number, tuple(sorted(trial.params.items())), trial.source, trial.state, tuple(trial.reports))
        for trial in state.trials
    ]


def test_a_search_begins_with_the_recipe_and_ends_with_every_trial_decided(tmp_path: Path) -> None:
    loaded = simulated.written_space(tmp_path)
    state = simulated.run_search(tmp_path / "s", loaded)
    assert state.trials[0].source == "default"
    assert state.trials[0].params == {"image.mask_ratio": 0.75, "report.mask_ratio": 0.5}
    assert len(state.trials) == 9
    assert all(trial.final for trial in state.trials)
    assert sum(trial.state == "complete" for trial in state.trials) >= 1
    assert {step for trial in state.trials for step in trial.reports} == {10, 30, 90}


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, SearchState, int]:
    folder = tmp_path_factory.mktemp("unbroken")
    loaded = simulated.written_space(folder)
    state = simulated.run_search(folder / "s", loaded)
    return folder, state, len(read_events(open_storage(folder / "s"))[1])


@settings(max_examples=12, deadline=None)
@given(kills=st.lists(st.integers(2, 40), min_size=1, max_size=3), torn=st.booleans())
def test_an_interrupted_sequential_search_gives_the_same_trials_and_the_same_winner(
    unbroken: tuple[Path, SearchState, int],
    tmp_path_factory: pytest.TempPathFactory,
    kills: list[int],
    torn: bool,
) -> None:
    _, whole, events = unbroken
    folder = tmp_path_factory.mktemp("broken")
    loaded = simulated.written_space(folder)
    for kill in sorted(kills):
        if kill >= events:
            continue
        with pytest.raises(simulated.KilledError):
            simulated.run_search(folder / "s", loaded, events=kill)
        if torn:
            with (folder / "s" / JOURNAL_FILE).open("ab") as stream:
                stream.write(b'{"event":"repo')
    state = simulated.run_search(folder / "s", loaded)
    assert course(state) == course(whole)
    assert best_first(loaded.space, state) == best_first(loaded.space, whole)


@pytest.mark.parametrize("at_a_time", [1, 4])
@pytest.mark.parametrize("scheduler", ["halving", "median", "none"])
def test_every_scheduler_comes_to_an_end_and_trains_something_in_full(
    tmp_path: Path, scheduler: str, at_a_time: int
) -> None:
    loaded = simulated.written_space(tmp_path, scheduler={"name": scheduler})
    state = simulated.run_search(tmp_path / "s", loaded, at_a_time=at_a_time)
    assert len(state.trials) == 9
    assert all(trial.final for trial in state.trials)
    complete = [trial for trial in state.trials if trial.state == "complete"]
    assert len(complete) == 9 if scheduler == "none" else complete


def test_a_failed_trial_is_recorded_with_its_reason_and_the_search_goes_on(tmp_path: Path) -> None:
    loaded = simulated.written_space(tmp_path)

    def outcome(params: dict[str, float], job: Job) -> Outcome:
        if job.key in ("2", "5"):
            return Outcome("failed", seconds=2.0, reason="step 7: a loss is not finite")
        return Outcome("reached", job.until, {simulated.SCORE: simulated.score(params, job.until)}, 1.0)

    state = simulated.run_search(tmp_path / "s", loaded, outcome=outcome)
    assert [trial.number for trial in state.trials if trial.state == "failed"] == [2, 5]
    assert state.trials[2].reason == "step 7: a loss is not finite"
    assert len(state.trials) == 9


def test_an_objective_that_is_not_a_number_fails_its_trial_alone(tmp_path: Path) -> None:
    loaded = simulated.written_space(tmp_path)

    def outcome(params: dict[str, float], job: Job) -> Outcome:
        value = None if job.key == "3" else simulated.score(params, job.until)
        return Outcome("reached", job.until, {simulated.SCORE: value}, 1.0)

    state = simulated.run_search(tmp_path / "s", loaded, outcome=outcome)
    assert state.trials[3].state == "failed"
    assert state.trials[3].reason == f"{simulated.SCORE} is not finite"


def test_an_objective_that_is_never_reported_ends_the_search_with_its_name(tmp_path: Path) -> None:
    loaded = simulated.written_space(tmp_path)
    with pytest.raises(JobError, match=simulated.SCORE):
        simulated.run_search(
            tmp_path / "s",
            loaded,
            outcome=lambda params, job: Outcome("reached", job.until, {"val/probe/auroc": 0.5}, 1.0),
        )


def test_a_search_whose_trials_all_fail_ends_with_the_reason(tmp_path: Path) -> None:
    loaded = simulated.written_space(tmp_path)
    begun: list[str] = []

    def outcome(params: dict[str, float], job: Job) -> Outcome:
        begun.append(job.key)
        return Outcome("failed", reason="out of memory")

    with pytest.raises(JobError, match=r"every trial so far failed.*out of memory"):
        simulated.run_search(tmp_path / "s", loaded, outcome=outcome)
    assert len(begun) == 5


def test_a_mistake_that_every_trial_would_meet_ends_the_search_at_the_first(tmp_path: Path) -> None:
    loaded = simulated.written_space(tmp_path)
    with pytest.raises(JobError, match="shard 3 is unreadable"):
        simulated.run_search(
            tmp_path / "s",
            loaded,
            outcome=lambda params, job: Outcome("failed", reason="shard 3 is unreadable", mendable=True),
        )


def test_device_hours_end_the_search_and_leave_no_trial_undecided(tmp_path: Path) -> None:
    loaded = simulated.written_space(tmp_path, budget={"trials": 50, "gpu_hours": 5 / 3600})
    state = simulated.run_search(tmp_path / "s", loaded)
    assert "device hours" in state.search_ended
    assert state.device_seconds == pytest.approx(5.0)
    assert all(trial.final for trial in state.trials)


def test_checkpoints_of_trials_without_a_future_are_deleted(tmp_path: Path) -> None:
    loaded = simulated.written_space(tmp_path)

    def outcome(params: dict[str, float], job: Job) -> Outcome:
        folder = Path(job.runs) / job.name / "checkpoints"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "weights").write_bytes(b"x" * 100)
        return Outcome("reached", job.until, {simulated.SCORE: simulated.score(params, job.until)}, 1.0)

    simulated.run_search(tmp_path / "s", loaded, outcome=outcome)
    assert not list((tmp_path / "s" / "trials").glob("*/checkpoints"))


def test_the_worst_waiting_trials_are_given_up_over_the_disk_budget(tmp_path: Path) -> None:
    loaded = simulated.written_space(tmp_path, disk_budget_bytes=250, budget={"trials": 30})
    most = 0

    def outcome(params: dict[str, float], job: Job) -> Outcome:
        nonlocal most
        folder = Path(job.runs) / job.name / "checkpoints"
        folder.mkdir(parents=True, exist_ok=True)
        held = len(list(Path(job.runs).glob("*/checkpoints/weights")))
        most = max(most, held)
        (folder / "weights").write_bytes(b"x" * 100)
        return Outcome("reached", job.until, {simulated.SCORE: simulated.score(params, job.until)}, 1.0)

    state = simulated.run_search(tmp_path / "s", loaded, outcome=outcome)
    assert most <= 3
    assert any("disk_budget_bytes" in trial.reason for trial in state.trials)


def test_a_journal_damaged_in_its_middle_is_named_with_its_line(tmp_path: Path) -> None:
    loaded = simulated.written_space(tmp_path)
    simulated.run_search(tmp_path / "s", loaded)
    path = tmp_path / "s" / JOURNAL_FILE
    lines = path.read_bytes().split(b"\n")
    lines[4] = lines[4][:10]
    path.write_bytes(b"\n".join(lines))
    with pytest.raises(UserError, match=r"journal.jsonl, line 5"):
        Journal(open_storage(tmp_path / "s"))


def test_a_missing_line_in_the_middle_is_named(tmp_path: Path) -> None:
    loaded = simulated.written_space(tmp_path)
    simulated.run_search(tmp_path / "s", loaded)
    path = tmp_path / "s" / JOURNAL_FILE
    lines = path.read_bytes().split(b"\n")
    del lines[1]
    path.write_bytes(b"\n".join(lines))
    with pytest.raises(UserError, match=r"line 2: it does not follow"):
        Journal(open_storage(tmp_path / "s"))


def test_the_journal_is_synced_before_a_trial_is_handed_out(tmp_path: Path) -> None:
    loaded = simulated.written_space(tmp_path)

    def outcome(params: dict[str, float], job: Job) -> Outcome:
        _, events = read_events(open_storage(tmp_path / "s"))
        known = {event["trial"]: event["params"] for event in events if event["event"] == "suggest"}
        assert known[int(job.key)] == params
        return Outcome("reached", job.until, {simulated.SCORE: simulated.score(params, job.until)}, 1.0)

    simulated.run_search(tmp_path / "s", loaded, outcome=outcome)
