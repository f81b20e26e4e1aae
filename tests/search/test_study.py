"""study.db follows the journal's state, after kills and beside a stale or broken file too."""

from __future__ import annotations

import random
import shutil
import stat
from pathlib import Path
from typing import Any

import optuna
import pytest
from search_stand_ins import Story

from orchestration.search.space import SearchSpace
from orchestration.search.study import STUDY_NAME, StudyMirror


def space_of(**rest: Any) -> SearchSpace:
    return SearchSpace.model_validate(
        {
            "parameters": {
                "image.mask_ratio": {"uniform": [0.4, 0.6], "step": 0.05},
                "memory.kind": {"choice": ["shared", "none"]},
                "memory.slots": {"choice": [8, None, 64], "when": {"memory.kind": "shared"}},
                "loss_weights.global_alignment": {"log_uniform": [0.1, 10.0], "or_zero": True},
                "fusion.layers": {"fixed": 2},
            },
            "objectives": [{"metric": "score"}],
            **rest,
        }
    )


def params_of(number: int) -> dict[str, Any]:
    kind = ("shared", "none")[number % 2]
    slots = {"memory.slots": (8, None, 64)[number % 3]} if kind == "shared" else {}
    weight = 0.0 if number % 4 == 3 else 0.5
    return {
        "image.mask_ratio": 0.4 + 0.05 * (number % 5),
        "memory.kind": kind,
        **slots,
        "loss_weights.global_alignment": weight,
        "fusion.layers": 2,
    }


def rows(path: Path) -> list[optuna.trial.FrozenTrial]:
    return optuna.load_study(study_name=STUDY_NAME, storage=f"sqlite:///{path}").trials


def told_story() -> Story:
    """Complete, pruned, failed, waiting, open."""
    story = Story()
    for number in range(5):
        story.begin(params_of(number))
    for number in range(4):
        story.report(number, 0.1 * (number + 1))
    for step in (3, 9):
        story.promote(3, step)
        story.report(3, 0.5 + step / 100)
    story.prune(0)
    story.fail(1)
    return story


def test_rows_tell_what_happened(tmp_path: Path) -> None:
    story = told_story()
    mirror = StudyMirror(tmp_path / "study.db", space_of())
    mirror.update(story.state, {4})
    found = rows(tmp_path / "study.db")
    assert [row.state.name for row in found] == ["PRUNED", "FAIL", "WAITING", "COMPLETE", "RUNNING"]
    assert found[3].values == [0.59]
    assert found[3].intermediate_values == {1: 0.4, 3: 0.53, 9: 0.59}
    assert found[0].intermediate_values == {1: 0.1}
    assert found[0].user_attrs["reason"] == "hopeless"
    assert found[1].user_attrs["reason"] == "crashed"
    assert found[0].params == {
        "image.mask_ratio": 0.4,
        "memory.kind": "shared",
        "memory.slots": 8,
        "loss_weights.global_alignment > 0": True,
        "loss_weights.global_alignment": 0.5,
    }
    assert found[3].params == {
        "image.mask_ratio": pytest.approx(0.55),
        "memory.kind": "none",
        "loss_weights.global_alignment > 0": False,
    }
    assert found[4].params["memory.slots"] is None
    mirror.close(story.state)
    assert [row.state.name for row in rows(tmp_path / "study.db")][4] == "WAITING"


def test_the_file_is_its_owners_alone(tmp_path: Path) -> None:
    mirror = StudyMirror(tmp_path / "study.db", space_of())
    mirror.update(Story().state, set())
    assert stat.S_IMODE((tmp_path / "study.db").stat().st_mode) == 0o600


def test_a_stale_file_is_brought_up_to_date_in_place(tmp_path: Path) -> None:
    path, space = tmp_path / "study.db", space_of()
    story = Story()
    for number in range(3):
        story.begin(params_of(number))
    story.report(0, 0.1)
    StudyMirror(path, space).update(story.state, {1, 2})  # then killed: two rows are left RUNNING
    before = [row._trial_id for row in rows(path)]
    story.report(1, 0.3)
    story.promote(1, 9)
    story.report(1, 0.4)
    story.fail(2)
    story.begin(params_of(3))
    again = StudyMirror(path, space)
    again.update(story.state, {3})
    found = rows(path)
    assert [row.state.name for row in found] == ["WAITING", "COMPLETE", "FAIL", "RUNNING"]
    assert found[1].intermediate_values == {1: 0.3, 9: 0.4}
    assert [row._trial_id for row in found][:3] == before
    again.close(story.state)
    assert not any(row.state.name == "RUNNING" for row in rows(path))


def test_a_file_that_contradicts_the_journal_is_written_anew(tmp_path: Path) -> None:
    path, space = tmp_path / "study.db", space_of()
    ahead = told_story()
    StudyMirror(path, space).update(ahead.state, set())
    story = Story()
    for number in range(2):
        story.begin(params_of(number + 1))
    story.report(0, 0.7)
    StudyMirror(path, space).update(story.state, {1})
    found = rows(path)
    assert [row.state.name for row in found] == ["WAITING", "RUNNING"]
    assert found[0].params["memory.kind"] == "none"


def test_a_file_that_is_no_database_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "study.db"
    path.write_bytes(b"not a database at all" * 100)
    StudyMirror(path, space_of()).update(told_story().state, {4})
    assert len(rows(path)) == 5


def test_a_locked_file_costs_an_update_and_no_more(tmp_path: Path) -> None:
    import sqlite3

    path, story = tmp_path / "study.db", told_story()
    mirror = StudyMirror(path, space_of())
    mirror.update(story.state, {4})
    reader = sqlite3.connect(path)
    reader.execute("BEGIN EXCLUSIVE")
    story.report(4, 0.9)
    mirror.update(story.state, set())
    reader.rollback()
    reader.close()
    mirror.update(story.state, set())
    assert rows(path)[4].intermediate_values == {1: 0.9}


def test_the_recipes_own_values_are_shown_even_outside_the_ranges(tmp_path: Path) -> None:
    story = Story()
    story.begin({**params_of(0), "image.mask_ratio": 0.75, "memory.slots": 2048}, source="default")
    story.begin(params_of(2))
    StudyMirror(tmp_path / "study.db", space_of()).update(story.state)
    found = rows(tmp_path / "study.db")
    assert found[0].params["image.mask_ratio"] == 0.75
    assert found[0].params["memory.slots"] == 2048
    assert found[1].params["memory.slots"] == 64


def test_several_objectives_and_constraints_reach_the_study(tmp_path: Path) -> None:
    space = space_of(
        objectives=[{"metric": "score"}, {"metric": "loss", "direction": "minimise"}],
        constraints=[{"metric": "peak_memory_bytes", "at_most": 10.0}],
    )
    story = Story(first_target=9)
    story.report(story.begin(params_of(0)), 0.5, loss=2.0, peak_memory_bytes=12.0)
    story.report(story.begin(params_of(1)), 0.4, loss=2.5, peak_memory_bytes=7.0)
    StudyMirror(tmp_path / "study.db", space).update(story.state)
    study = optuna.load_study(study_name=STUDY_NAME, storage=f"sqlite:///{tmp_path / 'study.db'}")
    assert study.metric_names == ["score", "loss"]
    assert [trial.values for trial in study.trials] == [[0.5, 2.0], [0.4, 2.5]]
    assert [trial.number for trial in study.best_trials] == [1]


@pytest.mark.parametrize("seed", range(2))
def test_kills_at_any_moment_leave_a_file_that_comes_right(tmp_path: Path, seed: int) -> None:
    """Copies of the file as earlier updates left it stand for kills; each is continued to the end."""
    draw = random.Random(seed)
    path, space, story = tmp_path / "study.db", space_of(), Story()
    mirror, copies = StudyMirror(path, space), []
    for _ in range(25):
        running = [trial.number for trial in story.state.trials if trial.state == "open"]
        waiting = [trial.number for trial in story.state.trials if trial.state == "waiting"]
        choice = draw.random()
        if choice < 0.4 or not (running or waiting):
            story.begin(params_of(len(story.state.trials)))
        elif running and choice < 0.8:
            story.report(running[0], draw.random())
        elif running and choice < 0.85:
            story.fail(running[0])
        elif waiting and choice < 0.95:
            story.promote(waiting[0], 9 if 3 in story.state.trials[waiting[0]].reports else 3)
        elif waiting:
            story.prune(waiting[0])
        mirror.update(story.state)
        if draw.random() < 0.15:
            copies.append(shutil.copy(path, tmp_path / f"copy{len(copies)}.db"))
    mirror.close(story.state)
    expected = [(r.number, r.state, r.params, r.intermediate_values, r.values) for r in rows(path)]
    assert len(expected) == len(story.state.trials)
    for copy in map(Path, copies):
        StudyMirror(copy, space).close(story.state)
        assert [
            (r.number, r.state, r.params, r.intermediate_values, r.values) for r in rows(copy)
        ] == expected
