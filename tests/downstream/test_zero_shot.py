"""Zero-shot classification: prompt files and their mistakes, and scores worked by hand."""

from __future__ import annotations

import itertools
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from task_samples import LoadedModel, Row, written

from mpma.data.phantom.findings import LABELS
from mpma.data.sources.phantom import PhantomSource
from mpma.downstream.config import EvaluationConfig
from mpma.downstream.contract import Job
from mpma.downstream.features import FeatureStore
from mpma.downstream.labelled import LabelledData
from mpma.downstream.prompting import plain_name, prompt_book, read_prompts
from mpma.downstream.zero_shot import ZeroShot, build, label_directions
from mpma.errors import UserError

# Names as their publishers write them.
NIH = """Atelectasis Cardiomegaly Effusion Infiltration Mass Nodule Pneumonia Pneumothorax Consolidation
Edema Emphysema Fibrosis Pleural_Thickening Hernia"""
CHEXPERT = """No Finding,Enlarged Cardiomediastinum,Cardiomegaly,Lung Opacity,Lung Lesion,Edema,Consolidation,
Pneumonia,Atelectasis,Pneumothorax,Pleural Effusion,Pleural Other,Fracture,Support Devices"""


def words_of(text: str) -> list[str]:
    return re.findall(r"[a-z]+", text.lower())


def prompts_in(tmp_path: Path, text: str) -> str:
    path = tmp_path / "prompts.yaml"
    path.write_text(text)
    return str(path)


def made_task(**own: Any) -> ZeroShot:
    return build(EvaluationConfig.model_validate({"zero_shot": own}))


def test_every_label_of_the_phantom_and_of_the_large_sets_has_prompts_of_its_own() -> None:
    phantom, chest = prompt_book(None, synthetic=True), prompt_book(None, synthetic=False)
    known = (
        *NIH.split(),
        *map(str.strip, CHEXPERT.split(",")),
        "Lung/hypoinflation",
        "Aorta, Thoracic/tortuous",
    )
    assert len(known) == 30
    assert all(chest.of(label).own and phantom.of(label).own for label in known)
    assert not chest.of("left_nodule").own
    for label in LABELS:
        prompts = phantom.of(label)
        assert prompts.own
        assert not {*prompts.positive} & {*prompts.negative}
        side = label.split("_")[0]
        if side in ("left", "right"):
            assert all(side in text.lower() for text in prompts.positive)


def test_the_phantom_s_prompts_use_words_of_its_reports_only() -> None:
    told = itertools.islice(PhantomSource(400, 0, 0, 64, 0).items(), 400)
    known = {word for item in told for word in words_of(f"{item.findings} {item.impression}")}
    book = prompt_book(None, synthetic=True)
    for label in LABELS:
        prompts = book.of(label)
        used = {word for text in (*prompts.positive, *prompts.negative) for word in words_of(text)}
        assert used <= known, label


def test_fields_are_filled_with_every_combination_of_their_values(tmp_path: Path) -> None:
    path = prompts_in(
        tmp_path,
        """
templates: {positive: ["{label} seen."], negative: ["no {label}."]}
words: {grade: [mild, severe], side: [left]}
labels:
  Some_Label:
    positive: ["{grade} {side} thing", "plain", "plain"]
    words: {side: [right, bilateral]}
  named: {words: {label: [one, two]}}
""",
    )
    book = prompt_book(path, synthetic=True)
    found = book.of("some label")
    assert found.positive == (
        "mild right thing",
        "mild bilateral thing",
        "severe right thing",
        "severe bilateral thing",
        "plain",
    )
    assert found.negative == ("no some label.",)
    assert book.of("NAMED").positive == ("one seen.", "two seen.")
    assert book.of("left_nodule").positive == ("left nodule seen.",)
    assert not book.of("left_nodule").own


def test_names_match_whatever_their_case_and_separators() -> None:
    assert plain_name("Pleural_Thickening") == plain_name(" pleural thickening") == "pleural thickening"
    assert plain_name("Aorta, Thoracic/tortuous") == "aorta thoracic tortuous"


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("labels: {a: {positiv: [x]}}", r"labels\.a\.positiv: unknown key"),
        ("prompts: {}", r"prompts: unknown key"),
        ("labels: {a: {positive: []}}", r"labels\.a\.positive: list should have at least 1 item"),
        ("labels: {a: {positive: 'x'}}", r"labels\.a\.positive: input should be a valid list"),
        ("labels: {a: {positive: ['']}}", r"labels\.a\.positive\.0: string should have at least 1 character"),
        ("labels: {a: {positive: ['{side} x']}}", r"labels\.a\.positive: the field \{side\} has no values"),
        (
            "templates: {positive: ['{labels}.']}\nlabels: {a: {}}",
            r"templates\.positive: the field \{labels\}",
        ),
        ("labels: {a: {positive: ['x {']}}", r"labels\.a\.positive: a brace that belongs to no field"),
        ("labels: {a_b: {}, A b: {}}", r"labels\.A b: the same label as labels\.a_b"),
        ("labels: {a: {}, a: {}}", r"line 1: not valid YAML \(the key 'a' stands twice\)"),
        ("- a", "a mapping of keys is expected"),
        (
            "words: {d: [a, b, c, d, e, f, g, h]}\nlabels: {a: {positive: ['{d}{e}{f}{g}']}}".replace(
                "words: {", "words: {e: &x [a, b, c, d, e, f, g, h], f: *x, g: *x, "
            ),
            r"labels\.a\.positive: more than 512 prompts",
        ),
    ],
)
def test_a_mistake_in_a_prompt_file_names_file_and_key(tmp_path: Path, text: str, told: str) -> None:
    path = prompts_in(tmp_path, text)
    with pytest.raises(UserError, match=rf"prompts\.yaml(: |, ){told}"):
        made_task(prompts=path)


def test_a_prompt_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"missing\.yaml: no such file"):
        read_prompts(tmp_path / "missing.yaml")


def test_a_score_is_the_cosine_to_the_positive_less_that_to_the_negative_prompts(
    data: LabelledData, model: LoadedModel, features: FeatureStore, tmp_path: Path
) -> None:
    path = prompts_in(
        tmp_path,
        'labels: {cardiomegaly: {positive: ["the heart is enlarged.", "big."], negative: ["normal."]}}',
    )
    task = made_task(prompts=path)
    prepared = task.prepare(data)
    fitted = task.fit(model, features, prepared, Job("zero_shot"))
    found = task.predict(model, features, prepared, Job("zero_shot"), fitted)
    column = data.label_names.index("cardiomegaly")
    texts = ["the heart is enlarged.", "big.", "normal."]
    one, two, three = (model.model.embed_reports(*model.tokens([text])[:2])[0] for text in texts)
    images = features.image_vectors("test", prepared.rows[:5])
    cosines = [(images @ vector.detach().numpy()) for vector in (one, two, three)]
    np.testing.assert_allclose(
        found["scores"][:5, column], (cosines[0] + cosines[1]) / 2 - cosines[2], rtol=1e-4, atol=1e-6
    )
    others = [name for name in prepared.judged_names if name != "cardiomegaly"]
    told = next(told for told in prepared.problems if told.startswith("labels without prompts of their own"))
    assert prepared.problems[told] == len(others)
    assert "cardiomegaly" not in told


def test_directions_do_not_depend_on_the_batches(data: LabelledData, model: LoadedModel) -> None:
    prompts = made_task().prepare(data).prompts
    one, two = (label_directions(model, prompts, size) for size in (4, 500))
    np.testing.assert_allclose(one, two, atol=1e-6)


def test_a_label_without_a_positive_in_val_is_decided_at_zero_and_named(
    rows: dict[str, list[Row]], model: LoadedModel, tmp_path: Path
) -> None:
    changed = {**rows, "val": [{**row, "labels": []} for row in rows["val"]]}
    data = written(tmp_path / "val", changed)
    task, store = made_task(), FeatureStore(model, data)
    prepared = task.prepare(data)
    fitted = task.fit(model, store, prepared, Job("zero_shot"))
    predictions = task.predict(model, store, prepared, Job("zero_shot"), fitted)
    assert np.array_equal(predictions["decisions"], predictions["scores"] >= 0)
    outcomes = task.score(prepared, predictions)
    told = next(told for told in outcomes.problems if "decided at 0" in told)
    assert outcomes.problems[told] == len(prepared.columns)
