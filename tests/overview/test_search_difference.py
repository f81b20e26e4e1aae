"""Two searches beside each other, and what is said where two folders cannot be compared."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from overview_samples import KEY, SCORE, begin_run, begin_search, report

from mpma.data.storage import open_storage
from mpma.errors import UserError
from orchestration.overview.compare import compare
from orchestration.overview.difference import Difference, Row
from orchestration.overview.entries import entries_of
from orchestration.overview.search_difference import SearchDifference


def _compared(first: Path, second: Path) -> SearchDifference:
    found = compare(open_storage(first), open_storage(second))
    assert isinstance(found, SearchDifference)
    return found


def _by_name(rows: list[Row]) -> dict[str, Row]:
    return {row.what: row for row in rows}


def test_two_searches_that_are_equal_differ_in_nothing(tmp_path: Path) -> None:
    first = begin_search(tmp_path / "first")
    found = _compared(first, first)
    for topic in ("space", "recipe", "data", "code", "environment"):
        assert getattr(found, topic) == []
    assert found.best == [Row(SCORE, 0.5, 0.5)]
    assert [(row.what, row.first) for row in found.best_trials] == [("trial", 1)]


def test_space_recipe_budget_and_best_trial_stand_side_by_side(tmp_path: Path) -> None:
    first = begin_search(tmp_path / "first")
    second = begin_search(
        tmp_path / "second",
        (0.2, 0.3, 0.4, 0.6),
        training={"learning_rate_per_256": 0.001},
        end=False,
        parameters={KEY: {"uniform": [0.4, 0.95]}},
        searcher={"name": "random"},
    )
    found = _compared(first, second)
    space = _by_name(found.space)
    assert set(space) == {f"parameters {KEY}", "budget.trials", "searcher.name"}
    assert json.loads(space[f"parameters {KEY}"].second) == {"uniform": [0.4, 0.95]}
    assert (space["searcher.name"].first, space["searcher.name"].second) == ("tpe", "random")
    assert [(row.what, row.second) for row in found.recipe] == [("training.learning_rate_per_256", 0.001)]
    spent = _by_name(found.spent)
    told = {name: (row.first, row.second) for name, row in spent.items() if "wall" not in name}
    assert told == {
        "state": ("finished", "unfinished"),
        "trials": (4, 5),
        "complete trials": (3, 4),
        "pruned trials": (1, 1),
        "failed trials": (0, 0),
        "device seconds of trials": (8.0, 10.0),
        "device seconds of the confirmation": (0, 0),
        "winner confirmed": ("not compared", "not compared"),
    }
    assert found.best == [Row(SCORE, 0.5, 0.6)]
    trials = _by_name(found.best_trials)
    assert (trials["trial"].first, trials["trial"].second) == (1, 3)
    assert (trials[KEY].first, trials[KEY].second) == (0.5, pytest.approx(0.7))


@pytest.mark.parametrize(
    ("other", "words"),
    [
        ({"fingerprint": "sha256:cd"}, "other data"),
        ({"training": {"steps": 24}}, "trained 12 and 24 steps"),
        ({"scores": ()}, "no complete trial"),
        ({"objectives": [{"metric": "val/probe/auroc"}]}, "sought by one of them alone"),
        ({"constraints": [{"metric": "peak_memory_bytes", "at_most": 1.0}]}, "no complete trial that counts"),
    ],
)
def test_a_best_value_that_does_not_compare_says_why(
    tmp_path: Path, other: dict[str, Any], words: str
) -> None:
    found = _compared(begin_search(tmp_path / "first"), begin_search(tmp_path / "second", **other))
    assert words in _by_name(found.best)[SCORE].note


def test_the_best_of_a_search_keeps_its_constraints(tmp_path: Path) -> None:
    begin_search(tmp_path / "bounded", constraints=[{"metric": "peak_memory_bytes", "at_most": 1.5e9}])
    (entry,) = entries_of(open_storage(tmp_path))
    assert entry.best == {SCORE: (0.3, 0)}


def test_a_run_is_compared_with_a_trial_of_a_search_and_not_with_the_search(tmp_path: Path) -> None:
    run, search = begin_run(tmp_path / "runs", "a"), begin_search(tmp_path / "search")
    trial = search / "trials" / "00001"
    shutil.copytree(begin_run(tmp_path / "runs", "trial", learning_rate_per_256=0.001), trial)
    for pair in ((run, search), (search, run)):
        with pytest.raises(UserError, match="only two of a kind are compared") as caught:
            compare(*map(open_storage, pair))
        assert str(trial) in caught.value.hint
    found = compare(open_storage(run), open_storage(trial))
    assert isinstance(found, Difference)
    assert [row.what for row in found.config] == ["training.learning_rate_per_256"]


def _line_replaced(number: int, text: str) -> Callable[[Path], None]:
    def damage(search: Path) -> None:
        lines = (search / "journal.jsonl").read_text().splitlines()
        lines[number - 1] = text
        (search / "journal.jsonl").write_text("".join(line + "\n" for line in lines))

    return damage


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (_line_replaced(2, '{"event": "suggest", "time": null}'), "journal.jsonl, line 2: "),
        (_line_replaced(2, "{"), "journal.jsonl, line 2: it is not a journal event"),
        (_line_replaced(3, '{"event": "report", "time": 1, "trial": 7}'), "line 3: it does not follow"),
        (lambda search: (search / "journal.jsonl").write_text(""), "holds no `begin`"),
    ],
)
def test_a_damaged_journal_is_one_line_in_a_listing_and_in_a_comparison(
    tmp_path: Path, damage: Callable[[Path], None], words: str
) -> None:
    good, bad = begin_search(tmp_path / "good"), begin_search(tmp_path / "bad")
    damage(bad)
    with pytest.raises(UserError) as caught:
        compare(open_storage(good), open_storage(bad))
    assert words in caught.value.message
    states = {entry.name: (entry.state, entry.kind) for entry in entries_of(open_storage(tmp_path))}
    assert states == {"bad": ("damaged", "search"), "good": ("finished", "search")}


def test_what_cannot_be_compared_is_one_line_that_names_what_is_right(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    first = begin_search(tmp_path / "searches" / "first")
    begin_search(tmp_path / "searches" / "second")
    begin_run(tmp_path / "runs", "whole")
    (begin_run(tmp_path / "runs", "damaged") / "config.yaml").write_bytes(b"\x00\xff: [")
    (begin_run(tmp_path / "runs", "odd") / "provenance.json").write_text('{"packages": [], "hardware": 3}')
    compare(open_storage("runs/whole"), open_storage("runs/odd"))
    for pair, words in (
        (("searches/first", "searches/secnd"), "is searches/second meant?"),
        (("searches/first", "searches"), "name one of the folders in it, such as searches/first"),
        (("searches/first", "nowhere/at/all"), "name two runs or two searches"),
        (("searches/first", str(first / "journal.jsonl")), "cannot be read"),
        (("runs/whole", "searches/first"), "--diff runs/whole searches/first/trials/00001"),
        (("runs/whole", "runs/damaged"), "runs/damaged/config.yaml: config.yaml is not YAML"),
    ):
        with pytest.raises(UserError) as caught:
            compare(*map(open_storage, pair))
        said = f"{caught.value.message} {caught.value.hint}"
        assert words in said
        assert "\n" not in said


def test_the_program_compares_searches(tmp_path: Path) -> None:
    begin_search(tmp_path / "searches" / "first")
    begin_search(tmp_path / "searches" / "second", (0.1, 0.2), parameters={KEY: {"choice": [0.5, 0.6]}})
    code, said = report(tmp_path, "--diff", "searches/first", "searches/second")
    assert code == 0
    assert "[0.5, 0.6]" in said
    assert "-0.3" in said
    code, said = report(tmp_path, "--json", "--diff", "searches/first", "searches/second")
    assert code == 0
    assert json.loads(said)["best"][0]["second"] == 0.2
    code, said = report(tmp_path, "--reproduce", "searches/first")
    assert code == 2
    assert "searches/first/trials/00000" in said
    assert "Traceback" not in said
