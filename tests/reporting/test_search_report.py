"""The report of a search: what it says, what it must not say, and that it is one file on its own."""

from __future__ import annotations

import io
import json
import re
import stat
from html import unescape
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from search_samples import (
    AUROC,
    DEFAULT,
    FULL_STEPS,
    SCORE,
    Told,
    confirm,
    searched,
    several,
    space_of,
)

from orchestration.reporting.importance import importances
from orchestration.reporting.scale import Scale
from orchestration.reporting.search_facts import (
    comparable,
    confirmed,
    first_shown,
    recall_resolution,
    resolution,
    spent,
)
from orchestration.reporting.search_report import write_search_report
from orchestration.reporting.verdict import NOTHING_BETTER, verdict
from orchestration.reporting.wording import compact, duration, metric_name, number, signed
from orchestration.search.parameters import Parameter


def written(folder: Path, told: Told, **entries: Any) -> str:
    """The page without plotly.js."""
    write_search_report(folder, space_of(**entries), told.state, command="python -m orchestration.tune")
    page = (folder / "report.html").read_text()
    return re.sub(r"<script>.*?</script>", "", page, flags=re.S)


def figures(page: str) -> list[dict[str, Any]]:
    return [
        json.loads(one)
        for one in re.findall(r'<script type="application/json"[^>]*>(.*?)</script>', page, re.S)
    ]


def headline(page: str) -> str:
    found = re.search(r"<h1>(.*?)</h1>", page)
    assert found
    return found.group(1)


def test_a_winner_is_named_with_both_means_and_the_patients(tmp_path: Path) -> None:
    page = written(tmp_path, confirm(searched(), named=True))
    assert "is better than the recipe’s own values" in headline(page)
    assert "0.581 against 0.539 on 1,024 patients" in headline(page)
    assert "95 % interval over patients +0.021 to +0.064" in page


def test_a_winner_is_not_named_where_the_interval_contains_zero_whatever_the_journal_says() -> None:
    told = confirm(searched(), named=True)
    assert told.state.comparison is not None
    told.state.comparison |= {"interval": [-0.001, 0.08], "named": True}
    assert verdict(space_of(), told.state).sentence == NOTHING_BETTER


def test_nothing_better_is_said_plainly(tmp_path: Path) -> None:
    page = written(tmp_path, confirm(searched(), named=False))
    assert headline(page) == NOTHING_BETTER
    assert "were not shown to be better" in page


def test_lower_is_better_for_a_metric_to_be_minimised() -> None:
    told = confirm(searched(), named=True)
    assert told.state.comparison is not None
    told.state.comparison |= {"direction": "minimise"}
    assert verdict(space_of(), told.state).sentence == NOTHING_BETTER
    told.state.comparison |= {"difference": -0.04, "interval": [-0.06, -0.02]}
    assert "is better" in verdict(space_of(), told.state).sentence


def test_with_several_metrics_one_that_is_worse_prevents_a_winner() -> None:
    told = confirm(searched(), named=True)
    assert told.state.comparison is not None
    entry = {"metric": "test/probe/auroc", "difference": 0.02, "interval": [0.01, 0.03], "level": 0.975}
    told.state.comparison["objectives"] = [entry, entry | {"interval": [-0.03, -0.01]}]
    assert verdict(space_of(several()), told.state).sentence == NOTHING_BETTER
    told.state.comparison["objectives"] = [entry | {"interval": [-0.01, 0.03]}, entry]
    found = confirmed(space_of(several()), told.state)
    assert found is not None
    assert found.interval == (0.01, 0.03)
    assert found.level == 0.975


def test_a_comparison_that_was_never_made_names_nobody_and_is_no_error(tmp_path: Path) -> None:
    told = confirm(searched(), named=True)
    told.state.comparison = {"candidate": "trial-4", "named": False, "reason": "Every retraining failed."}
    page = written(tmp_path, told)
    assert headline(page) == "No comparison could be made, so no winner is named."
    assert "Every retraining failed." in page


def test_an_unfinished_search_says_what_is_open_and_confirms_nothing(tmp_path: Path) -> None:
    page = written(tmp_path, searched(finished=False))
    assert headline(page) == "The search is not finished."
    assert "not confirmed: trial" in page
    assert "26 waiting at a rung, 1 failed" in page
    assert "saved" not in page.split("<nav")[0]


def test_a_confirmation_under_way_counts_its_runs() -> None:
    answer = verdict(space_of(), confirm(searched(), named=True, compared=False).state)
    assert "7 of 9 retrainings done" in answer.lead
    assert not answer.finished


def test_a_search_of_failures_gives_their_reason(tmp_path: Path) -> None:
    told = Told()
    for trial in range(3):
        told.tell("suggest", trial=trial, params=DEFAULT, source="tpe")
        told.tell("fail", trial=trial, reason="out of memory", seconds=1.0)
    page = written(tmp_path, told)
    assert headline(page) == "No trial came to a value."
    assert "Most often: out of memory" in page


def test_a_search_that_has_not_begun_a_trial_has_a_page(tmp_path: Path) -> None:
    assert headline(written(tmp_path, Told())) == "The search has begun no trial yet."


def test_missing_and_infinite_metrics_leave_a_page_whose_figures_are_json(tmp_path: Path) -> None:
    told = searched(12)
    for number_of, value in enumerate([None, float("nan"), float("inf")]):
        told.state.trials[number_of].reports[15][SCORE] = value
    page = written(tmp_path, told)
    assert figures(page)
    assert "NaN" not in json.dumps(figures(page))
    assert "nan" not in re.sub(r"<[^>]+>", " ", page).lower().split()


def test_every_string_is_escaped(tmp_path: Path) -> None:
    told = confirm(searched(), named=False)
    attack = '</script><script>alert(1)</script><img src=x onerror="alert(2)">'
    told.state.trials[7].reason = attack
    told.state.trials[3].params["memory.kind"] = attack
    told.state.search_ended = attack
    assert told.state.comparison is not None
    told.state.comparison["reason"] = attack
    page = written(tmp_path, told)
    assert "<img src=x" not in page
    assert "alert(1)</script>" not in page
    assert any("&lt;img" in str(one) for one in figures(page))


def test_the_page_is_for_its_owner_only_and_appears_whole(tmp_path: Path) -> None:
    written(tmp_path / "search", Told())
    assert stat.S_IMODE((tmp_path / "search" / "report.html").stat().st_mode) == 0o600
    assert [one.name for one in (tmp_path / "search").iterdir()] == ["report.html"]


def test_the_page_loads_nothing(tmp_path: Path) -> None:
    page = written(tmp_path, confirm(searched(), named=True))
    assert "default-src 'none'" in unescape(page)
    assert not re.search(r"""(src|href)=["'](?!#|data:)""", page)


def test_figures_are_what_plotly_takes(tmp_path: Path) -> None:
    import plotly.graph_objects as go

    told = confirm(searched(), named=True)
    constraints = [{"metric": "peak_memory_bytes", "at_most": 2.0e9}]
    found = figures(written(tmp_path, told, objectives=several(), constraints=constraints))
    assert len(found) > 40
    for figure in found:
        # Colours by name are resolved in the browser; everything else plotly checks here.
        plain = json.loads(re.sub(r'"@[a-z0-9]+"', '"#123456"', json.dumps(figure)))
        go.Figure(plain["data"], plain["layout"])


def test_pictures_stand_side_by_side_where_the_runs_drew_them(tmp_path: Path) -> None:
    told = confirm(searched(), named=True)
    assert "Reconstructions" not in written(tmp_path, told)
    content = io.BytesIO()
    Image.new("L", (4, 4)).save(content, "PNG")
    for name in (told.state.candidates[0]["name"], "default"):
        place = tmp_path / "confirmation" / f"{name}-seed101" / "pictures"
        place.mkdir(parents=True)
        (place / "step_00000405.png").write_bytes(content.getvalue())
    page = written(tmp_path, told)
    assert page.count("data:image/png;base64,") == 2
    assert "as confidential as the data" not in page
    told.state.begun = {**(told.state.begun or {}), "config": {"data": {"path": "pairs"}}}
    assert "as confidential as the data" in written(tmp_path, told)


def test_trials_are_compared_at_equal_training_and_first_where_enough_got() -> None:
    by_step = comparable(space_of(), searched().state)
    assert {step: len(trials) for step, trials in by_step.items()} == {15: 26, 45: 9, 135: 4, 405: 2}
    assert first_shown(by_step) == 45
    for step, trials in by_step.items():
        values = [trial.reports[step][SCORE] or 0.0 for trial in trials]
        assert values == sorted(values, reverse=True)


def test_time_is_dealt_to_rungs_and_adds_up() -> None:
    told = searched()
    found = spent(space_of(), told.state)
    assert found.trials_by_rung == {15: 26, 45: 9, 135: 4, 405: 2}
    assert sum(found.by_rung.values()) == pytest.approx(told.state.device_seconds)
    assert found.by_rung[405] == pytest.approx(2 * 0.2 * 270)
    assert found.full_length == pytest.approx(27 * 0.2 * FULL_STEPS)
    assert found.retries == 1
    assert found.failures == [("embeddings are not finite at step 15", 1)]


def test_importance_finds_the_key_that_decides_and_asks_for_enough_trials() -> None:
    told = Told()
    ratios = [0.15 + 0.05 * (place % 13) for place in range(60)]
    for trial, ratio in enumerate(ratios):
        image = 0.4 + 0.05 * (trial * 7 % 11)
        params = DEFAULT | {"report.mask_ratio": round(ratio, 2), "image.mask_ratio": round(image, 2)}
        told.tell("suggest", trial=trial, params=params, source="random")
        told.train(trial, 15, {SCORE: -abs(ratio - 0.6), AUROC: 0.5})
    trials = told.state.trials
    found = importances(space_of(), trials, 15, 0)
    assert found is not None
    assert next(iter(found)) == "report.mask_ratio"
    assert found["report.mask_ratio"] > 0.6
    assert sum(found.values()) == pytest.approx(1.0)
    assert importances(space_of(), trials[:9], 15, 0) is None


def test_differences_within_the_resolution_are_called_none(tmp_path: Path) -> None:
    told = confirm(searched(), named=False)
    limit = resolution(space_of(), told.state)
    assert limit is not None
    first, second = comparable(space_of(), told.state)[FULL_STEPS]
    best = first.reports[FULL_STEPS][SCORE] or 0.0
    second.reports[FULL_STEPS][SCORE] = best - 0.9 * limit.difference
    assert ">like the best<" in written(tmp_path, told)
    second.reports[FULL_STEPS][SCORE] = best - 1.1 * limit.difference
    assert ">like the best<" not in written(tmp_path, told)


def test_the_resolution_of_recall_goes_through_the_simulated_sizes() -> None:
    assert recall_resolution(250) == pytest.approx(0.028)
    assert recall_resolution(1000) == pytest.approx(0.011)
    assert recall_resolution(2000) == pytest.approx(0.005)
    sizes = [50, 250, 600, 1000, 1500, 2000, 5000]
    assert sorted(map(recall_resolution, sizes), reverse=True) == list(map(recall_resolution, sizes))


def test_a_scale_places_ranges_logarithms_zero_and_choices() -> None:
    plain = Scale.of([Parameter(uniform=[0.4, 0.9])], [0.5])
    assert plain.place(0.4) == 0
    assert plain.place(0.65) == pytest.approx(0.5)
    log = Scale.of([Parameter(log_uniform=[0.01, 1.0], or_zero=True)], [])
    assert log.place(0.0) == 0
    assert log.place(0.1) == pytest.approx(0.12 + 0.88 / 2)
    slots = Scale.of([Parameter(choice=[64, 256]), Parameter(choice=[8, 64])], [32])
    assert slots.categories == (8, 32, 64, 256)
    assert slots.place(None) is None


def test_words_are_short_and_exact() -> None:
    shown = [number(value) for value in (None, 0, 0.5813, -0.0421, 0.00961, 12.34, 2.1e9)]
    assert shown == ["–", "0", "0.581", "−0.042", "0.0096", "12.3", "2.1e9"]
    assert [signed(0.042), signed(-0.042)] == ["+0.042", "−0.042"]
    assert [compact(value) for value in (1.5e-4, 0.15, 0.0, 512.0)] == ["1.5e-4", "0.15", "0", "512"]
    assert [duration(value) for value in (90, 1500, 9000)] == ["90 s", "25.0 min", "2.5 h"]
    assert metric_name("val/retrieval/mean_recall") == "mean recall"
