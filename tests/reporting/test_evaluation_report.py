"""The report of an evaluation: what it says, what it must not say or hold, and that every figure is there."""

from __future__ import annotations

import base64
import copy
import io
import json
import re
from collections.abc import Mapping, Sequence
from html import unescape
from typing import Any

import numpy as np
import pytest
from evaluation_samples import LABELS, REPORT, Sample, examples, sample, whole
from PIL import Image
from sklearn.metrics import roc_auc_score
from sklearn.metrics import roc_curve as library_curve

from mpma.downstream.contract import Example, Related
from orchestration.reporting.evaluation_facts import TaskResult, evaluation_of, verdict_of
from orchestration.reporting.evaluation_report import CONFIDENTIAL, evaluation_report
from orchestration.reporting.evaluation_wording import figure_name, listed, variant_name
from orchestration.reporting.example_pictures import attention_uri, grey_uri, outline, outlines_uri
from orchestration.reporting.roc import Curve, label_curves, mean_curve, roc_curve, thinned
from orchestration.reporting.wording import number, signed

ATTACK = '</script><script>alert(1)</script><img src=x onerror="alert(2)">'


def written(told: Sample, shown: Mapping[str, Sequence[Example]] | None = None, **changes: Any) -> str:
    """The page without plotly.js."""
    page = evaluation_report(told.summary | changes, told.of, shown or {}, "python -m orchestration.evaluate")
    return re.sub(r"<script>.*?</script>", "", page, flags=re.S)


def figures(page: str) -> list[dict[str, Any]]:
    return [
        json.loads(one)
        for one in re.findall(r'<script type="application/json"[^>]*>(.*?)</script>', page, re.S)
    ]


def words(page: str) -> str:
    """What a person reads."""
    body = re.sub(r"<(script|style).*?</\1>", "", page.rpartition("<body>")[2], flags=re.S)
    return unescape(re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", body)))


def section(page: str, name: str) -> str:
    found = re.search(rf'<section id="{name}">.*?</section>', page, re.S)
    assert found
    return found.group(0)


def headline(page: str) -> str:
    found = re.search(r"<h1>(.*?)</h1>", page)
    assert found
    return found.group(1)


def picture(uri: str) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2])))


# --- the answer --------------------------------------------------------------------------------------


def test_the_first_sentence_counts_the_tasks_and_the_next_names_the_others() -> None:
    page = written(whole())
    assert headline(page) == "The pre-trained model is better than the untrained one on 3 of 4 tasks."
    lead = words(page).split("patients of the test split")[0]
    assert "No difference was shown on zero-shot classification." in lead
    assert "Skipped: segmentation." in lead
    assert "Failed: report generation." in lead
    assert "Some jobs failed: visual question answering." in lead


def _with_differences(low: Sequence[float | None]) -> TaskResult:
    keys = [f"linear_probe/{part}%/auroc" for part in (1, 10, 100)]
    entries = {
        key: {"value": 0.0, "low": one, "high": None if one is None else one + 0.1}
        for key, one in zip(keys, low, strict=True)
    }
    told = {
        "headline": keys,
        "seeds": {key.removesuffix("/auroc"): [0] for key in keys},
        "pretrained": {key: {"value": 0.5} for key in keys},
        "differences": {"untrained": entries},
    }
    return TaskResult("classification", told, ["pretrained", "untrained"])


@pytest.mark.parametrize(
    ("low", "shown"),
    [
        ([0.01, 0.02, 0.03], "better"),
        ([0.01, 0.02, 0.0], "in part"),
        ([0.01, 0.02, None], "in part"),
        ([-0.01, 0.0, -0.05], "no difference"),
        ([0.01, 0.02, -0.2], "worse"),
        ([None, None, None], "unknown"),
    ],
)
def test_a_task_is_better_only_where_every_lead_figure_is(low: Sequence[float | None], shown: str) -> None:
    assert verdict_of(_with_differences(low)).shown == shown


def test_a_figure_behind_the_first_of_the_headline_decides_nothing() -> None:
    told = copy.deepcopy(whole().summary)
    worse = {"value": -0.2, "low": -0.3, "high": -0.1}
    told["retrieval"]["differences"]["untrained"]["rank_score"] = worse
    result = next(one for one in evaluation_of(told).results if one.task == "retrieval")
    assert verdict_of(result).shown == "better"
    told["retrieval"]["differences"]["untrained"]["mean_recall"] = worse
    assert verdict_of(result).shown == "worse"


def test_without_an_untrained_model_nothing_is_claimed() -> None:
    told = whole()
    page = written(told, models=[one for one in told.summary["models"] if one["name"] != "untrained"])
    assert headline(page) == "There is no comparison with an untrained model here."


def test_an_evaluation_of_failures_has_a_page_that_says_so() -> None:
    every = ["classification", "segmentation", "retrieval", "zero_shot", "report_generation", "vqa"]
    page = written(sample(failed=every))
    assert headline(page) == "No task came to a figure."
    assert words(page).count("the loss is not finite") >= len(every)


def test_a_single_task_is_named_in_the_sentence() -> None:
    told = whole()
    kept = {key: value for key, value in told.summary.items() if key != "retrieval" and key in _FRAME}
    page = written(Sample(kept | {"retrieval": told.summary["retrieval"]}, told.outcomes))
    assert headline(page) == "The pre-trained model is better than the untrained one on retrieval."
    assert 'href="#vqa"' not in page


_FRAME = {
    *("run", "name", "written", "complete", "synthetic", "seconds"),
    *("models", "data", "overlap", "settings", "provenance"),
}


# --- figures -----------------------------------------------------------------------------------------


def test_every_figure_of_every_model_stands_on_the_page_with_interval_chance_and_difference() -> None:
    told = whole()
    page = written(told)
    for task in ("classification", "retrieval", "zero_shot", "vqa"):
        shown = words(section(page, task))
        entries = told.summary[task]
        for model in ("pretrained", "untrained", "imagenet"):
            for name, one in entries[model].items():
                interval = f"{number(one['value'])} {number(one['low'])} to {number(one['high'])}"
                assert interval in shown, (task, model, name)
        for other in ("untrained", "imagenet"):
            for name, one in entries["differences"][other].items():
                interval = f"{signed(one['value'])} {signed(one['low'])} to {signed(one['high'])}"
                assert interval in shown, (task, other, name)
        assert all(number(value) in shown for value in entries["chance"].values())


def test_values_of_the_seeds_stand_below_a_figure() -> None:
    told = whole()
    seeds = told.summary["classification"]["pretrained"]["fine_tune/10%/auroc"]["by_seed"]
    assert len(seeds) == 2
    shown = " · ".join(number(value) for value in seeds)
    assert f"seeds {shown}" in words(section(written(told), "classification"))


def test_breakdowns_have_patients_and_figures_of_each_value() -> None:
    told = whole()
    shown = words(section(written(told), "vqa"))
    found = told.summary["vqa"]["breakdown"]["view"]
    assert list(found) == ["PA", "AP"]
    for value, entry in found.items():
        one = entry["figures"]["untrained"]["accuracy"]
        assert f"{value} {entry['patients']} accuracy" in shown
        assert f"{number(one['value'])} {number(one['low'])} to {number(one['high'])}" in shown


def test_label_efficiency_has_a_point_for_each_share_model_and_method() -> None:
    told = whole()
    found = [one for one in figures(written(told)) if _title(one) in ("linear probe", "fine-tuned")]
    assert len(found) == 2
    for one, method in zip(found, ("linear_probe", "fine_tune"), strict=True):
        for trace, model in zip(one["data"], ("pretrained", "untrained", "imagenet"), strict=True):
            entries = told.summary["classification"][model]
            expected = [entries[f"{method}/{part}/auroc"] for part in ("1%", "10%", "100%")]
            assert trace["y"] == pytest.approx([entry["value"] for entry in expected])
            upper = [entry["high"] - entry["value"] for entry in expected]
            assert trace["error_y"]["array"] == pytest.approx(upper)
    assert found[0]["layout"]["yaxis"]["range"] == found[1]["layout"]["yaxis"]["range"]


def _title(figure: Mapping[str, Any]) -> str:
    notes = figure["layout"].get("annotations") or [{"text": ""}]
    return re.sub("</?b>", "", notes[0]["text"])


def test_recall_is_drawn_both_ways_beside_chance() -> None:
    told = whole()
    found = [one for one in figures(written(told)) if _title(one) == "report to image"]
    assert len(found) == 1
    bars = [trace for trace in found[0]["data"] if trace["type"] == "bar"]
    names = [
        f"report_to_image/{name}" for name in ("recall_at_1", "recall_at_5", "recall_at_10", "precision_at_5")
    ]
    for trace, model in zip(bars, ("pretrained", "untrained", "imagenet"), strict=True):
        expected = [told.summary["retrieval"][model][name]["value"] for name in names]
        assert trace["y"] == pytest.approx(expected)
    chance = [trace["y"][0] for trace in found[0]["data"] if trace["type"] == "scatter"]
    assert chance == pytest.approx([told.summary["retrieval"]["chance"][name] for name in names])


def test_the_page_has_roc_curves_of_every_label_with_at_most_a_hundred_points() -> None:
    found = [one for one in figures(written(whole())) if _title(one) in ("mean over labels", *LABELS)]
    assert len(found) == 2 * (1 + len(LABELS))
    for figure in found:
        assert len(figure["data"]) == 4
        assert all(len(trace["x"]) <= 100 for trace in figure["data"])


def test_a_model_without_stored_outcomes_has_no_curve_and_is_no_error() -> None:
    told = whole()
    left = {key: one for key, one in told.outcomes.items() if key[0] != "untrained"}
    found = [one for one in figures(written(Sample(told.summary, left))) if _title(one) == LABELS[0]]
    assert [len(one["data"]) for one in found] == [3, 3]
    assert not [one for one in figures(written(Sample(told.summary, {}))) if _title(one) == LABELS[0]]


def test_figures_are_what_plotly_takes() -> None:
    import plotly.graph_objects as go

    found = figures(written(whole()))
    assert len(found) > 15
    for figure in found:
        # Colours by name are resolved in the browser; everything else plotly checks here.
        plain = json.loads(re.sub(r'"@[a-z0-9]+"', '"#123456"', json.dumps(figure)))
        go.Figure(plain["data"], plain["layout"])


def test_the_files_own_text_alone_makes_the_same_page() -> None:
    told = whole()
    assert written(Sample(json.loads(json.dumps(told.summary)), told.outcomes)) == written(told)


def test_a_figure_that_does_not_exist_is_a_dash() -> None:
    told = copy.deepcopy(whole().summary)
    nothing = {"value": None, "low": None, "high": None, "resamples": 0, "by_seed": [None, None]}
    for task, name in (
        ("vqa", "accuracy"),
        ("classification", "linear_probe/1%/auroc"),
        ("retrieval", "mean_recall"),
    ):
        for model in ("pretrained", "untrained"):
            told[task][model][name] = nothing
        told[task]["differences"]["untrained"][name] = nothing
        told[task]["chance"][name] = None
    told["zero_shot"]["pretrained"]["auroc"]["value"] = float("nan")
    page = written(Sample(told, whole().outcomes))
    # Settings may be null: what is told before them may not.
    told_before = words(page).lower().rpartition("settings and provenance")[0]
    assert not {"nan", "none", "null", "inf"} & set(re.sub(r"[^\w]+", " ", told_before).split())
    assert "NaN" not in json.dumps(figures(page))
    assert "mean recall – – 0.127" in words(section(page, "overview"))
    assert "Not compared with the untrained model: retrieval and visual question answering." in words(page)
    assert "Better in part on classification (5 of 6)." in words(page)
    assert "better than the untrained one in 5 of 6 ways; 1 could not be compared." in words(page)


# --- what went wrong ---------------------------------------------------------------------------------


def test_skipped_tasks_failures_and_problems_are_told_in_words() -> None:
    page = written(whole())
    assert "Skipped: no pair of test has a mask" in words(section(page, "segmentation"))
    assert "Failed: the loss is not finite" in words(section(page, "report_generation"))
    assert "segmentation-seed0" not in page
    shown = words(section(page, "vqa"))
    assert "imagenet vqa-seed0 failed no answer could be learned" in shown
    assert "1 labels without a positive in the test split, left out: hernia" in words(
        section(page, "classification")
    )
    assert "skipped: no pair of test has a mask" in words(section(page, "overview"))


@pytest.mark.parametrize(
    ("counts", "marked"),
    [
        ({"patients": 3, "allowed": True}, True),
        ({"images": 2, "allowed": True}, True),
        ({"fitting_patients": 9, "allowed": True}, False),
        ({"allowed": True}, False),
        ({"checked": False}, True),
    ],
)
def test_judged_patients_of_pre_training_mark_the_page(counts: dict[str, Any], marked: bool) -> None:
    told = whole()
    page = written(told, overlap=told.summary["overlap"] | counts)
    assert ("Marked:" in words(page)) == marked
    assert "No test patient was pre-trained on" in page


def test_made_up_patients_are_called_synthetic_at_the_top() -> None:
    told = whole()
    assert "SYNTHETIC" in written(told).split("<nav")[0]
    assert "SYNTHETIC" not in written(told, synthetic=False)


# --- what it holds -----------------------------------------------------------------------------------


def test_without_examples_there_is_no_picture_and_no_text_of_a_report() -> None:
    page = written(whole(), synthetic=False)
    assert "data:image" not in page
    assert "<img" not in page
    assert REPORT not in page
    assert CONFIDENTIAL not in page
    assert "no text of a report, no picture and no identifier" in page


def test_with_examples_the_first_line_says_what_the_page_holds_unless_patients_are_made_up() -> None:
    page = written(whole(), examples(), synthetic=False)
    assert words(page).lstrip().startswith(CONFIDENTIAL)
    assert "no text of a report, no picture" not in page
    assert CONFIDENTIAL not in written(whole(), examples())


def test_examples_show_pictures_texts_hits_and_answers() -> None:
    page = written(whole(), examples())
    found = section(page, "retrieval")
    # The query, two words' attention, and five images found.
    assert found.count("data:image/png;base64,") == 1 + 2 + 5
    assert found.count('<li class="hit">') == 2
    assert f"{REPORT} Finding 4." in found
    assert "data:image/png;base64," in section(page, "segmentation")
    generated = words(section(page, "report_generation"))
    assert f"true report {REPORT} generated report Heart size is large." in generated
    answers = words(section(page, "vqa"))
    assert "question Which side? true answer left given by the model: right Left" in answers
    assert "given by the model: wrong lateral" in answers


def test_every_string_is_escaped() -> None:
    told = sample(failed=("report_generation",), label=ATTACK)
    summary = copy.deepcopy(told.summary)
    summary["run"] = summary["data"]["split"] = summary["written"] = ATTACK
    summary["models"][0]["origin"] = summary["overlap"]["line"] = ATTACK
    summary["report_generation"]["reason"] = ATTACK
    summary["settings"][ATTACK] = summary["provenance"]["git_revision"] = ATTACK
    summary["vqa"]["problems"] = {ATTACK: 3}
    summary["vqa"]["failures"][0]["reason"] = ATTACK
    summary["vqa"]["breakdown"] = {ATTACK: {ATTACK: summary["vqa"]["breakdown"]["view"]["PA"]}}
    summary["models"][2]["name"] = ATTACK
    for task in ("classification", "retrieval", "zero_shot", "vqa", "segmentation"):
        summary[task][ATTACK] = summary[task].pop("imagenet")
    image = np.zeros((8, 8), np.uint8)
    shown = {
        "retrieval": [
            Example(
                ATTACK,
                image,
                {"report": ATTACK, ATTACK: ATTACK},
                {ATTACK: np.ones((2, 2), np.float32)},
                [Related(0.5, True, text=ATTACK)],
            )
        ]
    }
    page = written(Sample(summary, told.outcomes), shown)
    assert "<img src=x" not in page
    assert "alert(1)</script>" not in page
    assert page.count("&lt;img src=x") > 15
    # Plotly reads a few tags in its texts: these are escaped before.
    assert not [one for one in figures(page) if "<img" in json.dumps(one) or "<script" in json.dumps(one)]
    assert any("&lt;img" in json.dumps(one) for one in figures(page))


def test_the_page_loads_nothing() -> None:
    page = written(whole(), examples())
    assert "default-src 'none'" in unescape(page)
    assert not re.search(r"""(src|href)=["'](?!#|data:)""", page)


# --- curves and pictures -----------------------------------------------------------------------------


def test_roc_curves_are_those_of_the_library_with_ties() -> None:
    dice = np.random.default_rng(0)
    labels = dice.random(400) < 0.3
    scores = np.round(dice.normal(size=400) + labels, 1)
    found = roc_curve(scores, labels)
    assert found is not None
    false, true, _ = library_curve(labels, scores, drop_intermediate=False)
    np.testing.assert_allclose(found.false_positive_rate, false)
    np.testing.assert_allclose(found.true_positive_rate, true)
    assert roc_curve(scores, np.ones(400, bool)) is None


def test_a_thinned_curve_keeps_its_ends_and_its_area() -> None:
    dice = np.random.default_rng(1)
    labels = dice.random(5000) < 0.1
    scores = dice.normal(size=5000) + 1.5 * labels
    found = roc_curve(scores, labels)
    assert found is not None
    few = thinned(found)
    assert 50 < len(few.false_positive_rate) <= 100
    assert (few.false_positive_rate[0], few.true_positive_rate[-1]) == (0.0, 1.0)
    assert (np.diff(few.false_positive_rate) >= 0).all()
    assert _area(few) == pytest.approx(roc_auc_score(labels, scores), abs=0.005)


def test_the_mean_curve_has_the_mean_area_and_skips_labels_that_are_not_known() -> None:
    told = copy.deepcopy(whole().outcomes["pretrained", "zero_shot-seed0"])
    found = label_curves(told)
    assert list(found) == list(LABELS)
    mean = mean_curve(list(found.values()))
    assert mean is not None
    assert len(mean.false_positive_rate) == 100
    assert _area(mean) == pytest.approx(told.values()["auroc"], abs=0.01)
    told.arrays["labels"][0, 0] = np.nan
    assert list(label_curves(told)) == list(LABELS)
    assert mean_curve([]) is None


def _area(curve: Curve) -> float:
    return float(np.trapezoid(curve.true_positive_rate, curve.false_positive_rate))


def test_pictures_keep_grey_levels_and_are_made_small() -> None:
    grey = picture(grey_uri(np.arange(64, dtype=np.uint8).reshape(8, 8)))
    assert (grey.mode, grey.size) == ("L", (8, 8))
    assert np.asarray(grey)[7, 7] == 63
    assert picture(grey_uri(np.zeros((500, 250), np.uint8))).size == (128, 256)


def test_attention_is_red_where_it_is_strongest_and_nowhere_if_there_is_none() -> None:
    image = np.full((56, 56), 90, np.uint8)
    overlay = np.zeros((14, 14), np.float32)
    overlay[2:5, 9:12] = 0.01
    found = np.asarray(picture(attention_uri(image, overlay)).convert("RGB")).astype(int)
    assert found[14, 42, 0] - found[14, 42, 2] > 80
    assert found[50, 5].tolist() == [90, 90, 90]
    assert picture(attention_uri(image, np.zeros((14, 14), np.float32))).mode == "L"
    assert picture(attention_uri(image, np.full((14, 14), np.nan, np.float32))).mode == "L"


def test_an_outline_is_the_edge_of_a_mask_and_leaves_its_inside_to_be_seen() -> None:
    inside = np.zeros((6, 6), bool)
    inside[1:5, 1:5] = True
    expected = inside.copy()
    expected[2:4, 2:4] = False
    assert outline(inside).tolist() == expected.tolist()
    assert outline(np.ones((3, 3), bool)).sum() == 8
    uri = outlines_uri(np.full((12, 12), 50, np.uint8), {(255, 0, 0): inside.astype(np.float32)})
    found = np.asarray(picture(uri).convert("RGB"))
    assert found[2, 2].tolist() == [255, 0, 0]
    assert found[5, 5].tolist() == [50, 50, 50]


def test_names_of_the_project_become_words_and_those_of_the_user_stay() -> None:
    shown = [
        figure_name(name)
        for name in ("auroc", "auroc/Lung/Mass_x", "image_to_report/recall_at_10", "bleu_4", "mean_recall")
    ]
    assert shown == ["AUROC", "AUROC, Lung/Mass_x", "R@10, image to report", "BLEU-4", "mean recall"]
    assert [variant_name(one) for one in ("linear_probe/1%", "knn/100%", "")] == [
        "linear probe, 1 % of labels",
        "nearest neighbours, all labels",
        "",
    ]
    assert [listed(one) for one in (["a"], ["a", "b"], ["a", "b", "c"], [])] == [
        "a",
        "a and b",
        "a, b and c",
        "",
    ]
