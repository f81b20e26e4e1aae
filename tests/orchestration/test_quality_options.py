"""Every threshold can be typed, a mistake in one is one line, and no two ways contradict each other."""

from __future__ import annotations

import pytest

from mpma.data.quality import QualityConfig
from mpma.errors import UserError
from orchestration.quality_options import split_overrides, thresholds

OTHER = {
    "min_report_words": "7",
    "max_report_characters": "900",
    "require_description": "false",
    "min_side_pixels": "100",
    "max_pixels": "5000",
    "drift_effect": "0.5",
}


@pytest.mark.parametrize("key", list(QualityConfig.model_fields))
def test_every_threshold_is_reachable(key):
    found = QualityConfig(**thresholds([f"quality.{key}={OTHER[key]}"]))
    usual = QualityConfig()
    changed = {name for name in OTHER if getattr(found, name) != getattr(usual, name)}
    assert changed == {key}
    assert str(getattr(found, key)).lower() == OTHER[key]


def test_flags_are_short_for_keys():
    assert thresholds([], 3, 128) == {"min_report_words": 3, "min_side_pixels": 128}
    assert thresholds(["quality.max_pixels=5000"], 0) == {"max_pixels": 5000, "min_report_words": 0}
    assert thresholds([]) == {}


def test_thresholds_are_told_from_options_of_the_source():
    lines = ["columns.report=text", "quality.min_side_pixels=9", "filter=quality == 'good'", "quality=x"]
    assert split_overrides(lines) == (["quality.min_side_pixels=9"], [lines[0], *lines[2:]])


@pytest.mark.parametrize(
    ("lines", "flags", "message", "hint"),
    [
        (["quality.min_sid=9"], (), "quality.min_sid: an ingest has no such", "quality.min_side_pixels"),
        (["quality.min_words=9"], (), "quality.min_words: an ingest has no such", "quality.min_report_words"),
        (["quality.min_side_pixels=0"], (), "quality.min_side_pixels: .* greater than", None),
        (["quality.max_pixels=many"], (), "quality.max_pixels: .* integer", None),
        (["quality.drift_effect=nan"], (), "quality.drift_effect: .* finite", None),
        (["quality.min_report_words"], (), "key=value is expected", "quality."),
        (
            ["quality.min_report_words=3"],
            (3, None),
            "--min-words and --set quality.min_report_words",
            "leave",
        ),
        (["quality.min_side_pixels=9"], (None, 9), "--min-side and --set quality.min_side_pixels", "leave"),
    ],
)
def test_a_mistake_is_one_line_that_names_the_key(lines, flags, message, hint):
    with pytest.raises(UserError, match=message) as caught:
        thresholds(lines, *flags)
    assert "\n" not in caught.value.message
    if hint:
        assert hint in str(caught.value.hint)
