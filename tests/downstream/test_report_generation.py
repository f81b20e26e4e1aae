"""The report branch as a causal decoder, and what is judged of its reports."""

from __future__ import annotations

import copy
import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from task_samples import Row, tiny_model, written
from torch import Tensor

from mpma.data.batches import IGNORED_TARGET
from mpma.downstream.beam_search import beam_search
from mpma.downstream.config import EvaluationConfig
from mpma.downstream.contract import Job, NotPossible
from mpma.downstream.features import FeatureStore
from mpma.downstream.labelled import LabelledData
from mpma.downstream.report_decoder import Carried, ReportDecoder, next_token_targets
from mpma.downstream.report_generation import (
    JudgedReports,
    ReportGenerationTask,
    ReportWriter,
    as_written,
    build,
)
from mpma.loading import LoadedModel
from mpma.model.recompute import run_blocks

KINDS: dict[str, dict[str, dict[str, Any]]] = {
    "shared": {},
    "key_value": {"memory": {"kind": "key_value", "slots": 5}},
    "none": {"memory": {"kind": "none"}},
    "mean_add": {"fusion": {"kind": "mean_add"}},
    "mean_add without memory": {"fusion": {"kind": "mean_add"}, "memory": {"kind": "none"}},
}

JOB = Job("report_generation")


def made_task(**settings: Any) -> ReportGenerationTask:
    return build(EvaluationConfig.model_validate({"seeds": 1, "report_generation": settings}))


@pytest.fixture(params=list(KINDS))
def loaded(request: pytest.FixtureRequest, data: LabelledData) -> LoadedModel:
    changes = copy.deepcopy(KINDS[request.param])
    if changes.get("memory", {}).get("kind") in ("none", "key_value"):
        changes["memory"]["top_k"] = 1
    made = tiny_model(data.dataset.tokenizer(), **changes)
    # As initialised all weights are so small that the parts hardly move the logits.
    with torch.no_grad():
        for parameter in made.model.fusion.parameters():
            parameter.mul_(4.0)
    return made


def inputs(loaded: LoadedModel, reports: int = 3, length: int = 9) -> tuple[Tensor, Tensor]:
    """Patch tokens [B,P,D] and ids [B,T]."""
    draw = torch.Generator().manual_seed(1)
    patches = torch.randn(reports, 16, 32, generator=draw)
    ids = torch.randint(5, loaded.tokenizer.vocabulary_size, (reports, length), generator=draw)
    ids[:, 0] = loaded.tokenizer.class_id
    return patches, ids


def test_no_token_sees_what_comes_after_it(loaded: LoadedModel) -> None:
    decoder = ReportDecoder(loaded.model).eval()
    patches, ids = inputs(loaded)
    embedded: list[Tensor] = []

    def keep(module: Any, arguments: Any, output: Tensor) -> None:
        output.retain_grad()
        embedded.append(output)

    decoder.report_encoder.bert.embeddings.register_forward_hook(keep)
    states, _ = decoder.states(decoder.look(patches), ids, Carried())
    place = 4
    decoder.logits(states)[:, place].square().sum().backward()
    gradient = embedded[0].grad
    assert gradient is not None
    assert torch.equal(gradient[:, place + 1 :], torch.zeros_like(gradient[:, place + 1 :]))
    assert (gradient[:, : place + 1].abs().amax(dim=(0, 2)) > 0).all()


def test_each_self_attention_is_causal_by_itself(loaded: LoadedModel) -> None:
    decoder = ReportDecoder(loaded.model).eval()
    patches, ids = inputs(loaded)
    changed = ids.clone()
    changed[:, 5] = 5
    image = decoder.look(patches)
    with torch.no_grad():
        (_, one), (_, other) = (decoder.states(image, tokens, Carried()) for tokens in (ids, changed))
    assert len(one.entries) == 1 + len(decoder.fusion.blocks)
    for (keys, _), (changed_keys, _) in zip(one.entries, other.entries, strict=True):
        assert torch.equal(keys[:, :, :5], changed_keys[:, :, :5])
        assert not torch.equal(keys[:, :, 5], changed_keys[:, :, 5])


def test_the_decoder_is_the_pretrained_modules_under_a_causal_mask(loaded: LoadedModel) -> None:
    decoder = ReportDecoder(loaded.model).eval()
    patches, ids = inputs(loaded)
    model = loaded.model
    mask = torch.ones(ids.shape[1], ids.shape[1]).tril().bool()[None, None]
    with torch.no_grad():
        states, _ = decoder.states(decoder.look(patches), ids, Carried())
        prepared = model.fusion.prepare(patches)
        tokens = model.report_encoder.embed(ids)
        tokens = tokens if prepared.shift is None else tokens + prepared.shift
        tokens = run_blocks(model.report_encoder.bert.encoder.layer, tokens, mask, recompute=False)
        context = prepared.patches
        if model.fusion.memory is not None:
            assert prepared.memory is not None
            tokens = model.fusion.memory(tokens, prepared.memory)
            context = model.fusion.memory(context, prepared.memory)
        context = torch.cat([context.mean(dim=1, keepdim=True), context], dim=1)
        for block in model.fusion.blocks:
            tokens = block(tokens, context, mask)
        tokens = model.fusion.norm(tokens)
    torch.testing.assert_close(states, tokens, atol=1e-5, rtol=1e-5)


def test_one_token_after_another_gives_what_the_whole_report_gives(loaded: LoadedModel) -> None:
    decoder = ReportDecoder(loaded.model).eval()
    patches, ids = inputs(loaded)
    with torch.no_grad():
        image = decoder.look(patches)
        whole, _ = decoder.states(image, ids, Carried())
        carried, single = Carried(), []
        for place in range(ids.shape[1]):
            states, carried = decoder.states(image, ids[:, place : place + 1], carried)
            single.append(states)
    torch.testing.assert_close(torch.cat(single, dim=1), whole, atol=1e-5, rtol=1e-5)


def test_a_search_that_carries_keys_on_finds_what_one_that_starts_over_finds(loaded: LoadedModel) -> None:
    decoder = ReportDecoder(loaded.model).eval()
    with torch.no_grad():
        decoder.report_encoder.head.bias[loaded.tokenizer.end_id] += 1.0
    patches, _ = inputs(loaded, reports=6)
    patches = patches * 3
    tokenizer = loaded.tokenizer
    forbidden = [tokenizer.pad_id, tokenizer.class_id, tokenizer.mask_id, tokenizer.unknown_id]

    def starting_over(prefix_RT: Tensor, example_R: Tensor, parent_R: Tensor) -> Tensor:
        states, _ = decoder.states(decoder.look(patches[example_R]), prefix_RT, Carried())
        logits = decoder.logits(states[:, -1])
        logits[:, forbidden] = -torch.inf
        return logits.log_softmax(dim=-1)

    with torch.no_grad():
        steps = (decoder.stepper(decoder.look(patches), tokenizer), starting_over)
    ours, theirs = (
        beam_search(step, 6, beams=4, start_id=tokenizer.class_id, end_id=tokenizer.end_id, max_tokens=10)
        for step in steps
    )
    assert [one.tokens for one in ours] == [one.tokens for one in theirs]
    assert [one.score for one in ours] == pytest.approx([one.score for one in theirs], abs=1e-5)
    assert not any(token in forbidden for one in ours for token in one.tokens)


def test_image_and_memory_reach_the_logits(loaded: LoadedModel) -> None:
    decoder = ReportDecoder(loaded.model).train()
    patches, ids = inputs(loaded)
    patches.requires_grad_(True)
    decoder.loss(decoder.look(patches), ids[:, :-1], ids[:, 1:]).backward()
    assert patches.grad is not None
    assert (patches.grad.abs().amax(dim=2) > 0).all()
    unreached = {
        name
        for name, parameter in decoder.named_parameters()
        if parameter.grad is None or not bool((parameter.grad != 0).any())
    }
    # Softmax is blind to what all keys share.
    assert all(name.endswith(("key.bias", "keys.bias")) for name in unreached), unreached
    assert any("memory" in name or "slots" in name for name, _ in decoder.named_parameters()) == (
        loaded.config.memory.kind != "none"
    )


def test_a_frozen_part_of_pretraining_is_trained_here(data: LabelledData) -> None:
    loaded = tiny_model(data.dataset.tokenizer(), loss_weights={"report_reconstruction": 0.0})
    assert not any(parameter.requires_grad for parameter in loaded.model.fusion.parameters())
    assert all(parameter.requires_grad for parameter in ReportDecoder(loaded.model).parameters())


def test_targets_are_the_next_tokens_and_a_cut_report_has_no_end() -> None:
    ids = torch.tensor([[2, 7, 8, 3, 0], [2, 7, 8, 9, 3]])
    attention = ids > 0
    given, targets = next_token_targets(ids, attention, torch.tensor([False, True]))
    assert given.tolist() == [[2, 7, 8, 3], [2, 7, 8, 9]]
    hole = IGNORED_TARGET
    assert targets.tolist() == [[7, 8, 3, hole], [7, 8, 9, hole]]


def test_texts_are_compared_as_a_decoder_writes_them(data: LabelledData) -> None:
    assert as_written("Größe: 4.5 cm,\n NÓDULO") == "große : 4 . 5 cm , nodulo"
    tokenizer = data.dataset.tokenizer()
    texts = data.texts("test")
    ids = tokenizer.encode(texts, 512).ids
    assert [as_written(tokenizer.decode(row)) for row in ids] == [as_written(text) for text in texts]


def test_eight_pairs_are_learned_by_heart(rows: dict[str, list[Row]], tmp_path: Path) -> None:
    few = {"train": rows["train"][:8], "val": [], "test": rows["train"][:8]}
    data = written(tmp_path / "few", few)
    model = tiny_model(data.dataset.tokenizer(), report={"width": 48, "heads": 4, "max_tokens": 128})
    settings = {"steps": 90, "batch_size": 8, "learning_rate": 1e-2, "augment": False}
    task = made_task(fit=settings)
    prepared = task.prepare(data)
    features = FeatureStore(model, data)
    fitted = task.fit(model, features, prepared, JOB)
    predictions = task.predict(model, features, prepared, JOB, fitted)
    values = task.score(prepared, predictions).values()
    assert len(set(predictions["reports"])) == 8
    assert predictions["problems"] == {}
    assert values["bleu_4"] > 0.97
    assert values["clinical_f1"] > 0.97
    # The same writer before other images: what it learned is in the images.
    swapped = dataclasses.replace(prepared, rows=prepared.rows[::-1].copy())
    others = task.predict(model, features, swapped, JOB, fitted)
    assert others["reports"] == predictions["reports"][::-1]


def test_a_frozen_encoder_stays_as_it_is_and_is_asked_once_for_an_image(
    data: LabelledData, model: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = {"steps": 8, "batch_size": 8, "encoder_learning_rate_factor": 0.0}
    few = {"training_rows": np.arange(20, dtype=np.int64)}
    features = FeatureStore(model, data)
    asked: list[int] = []
    patches = ReportWriter.patches
    monkeypatch.setattr(
        ReportWriter, "patches", lambda self, pixels: (asked.append(len(pixels)), patches(self, pixels))[1]
    )
    for augment, images in ((False, 20), (True, 64)):
        task = made_task(fit={**settings, "augment": augment})
        asked.clear()
        fitted = task.fit(model, features, dataclasses.replace(task.prepare(data), **few), JOB)
        assert sum(asked) == images
        for name, value in model.model.image_encoder.state_dict().items():
            assert torch.equal(value, fitted.image_encoder.state_dict()[name]), name
        learned = fitted.decoder.report_encoder.head.bias
        assert (learned - model.model.report_encoder.head.bias).abs().max() > 1e-3


def test_the_encoder_learns_at_its_own_rate_otherwise(data: LabelledData, model: LoadedModel) -> None:
    task = made_task(fit={"steps": 2, "batch_size": 8, "encoder_learning_rate_factor": 0.5})
    fitted = task.fit(model, FeatureStore(model, data), task.prepare(data), JOB)
    kernel = "vit.patch_embed.proj.weight"
    learned = fitted.image_encoder.state_dict()[kernel]
    assert not torch.equal(learned, model.model.image_encoder.state_dict()[kernel])


def test_patients_without_a_report_are_left_out_and_counted(
    rows: dict[str, list[Row]], tmp_path: Path
) -> None:
    changed = copy.deepcopy(rows)
    for split, silent in (("test", (0, 5)), ("train", (3,))):
        for row in silent:
            changed[split][row] |= {"report": " . ", "findings": "", "impression": ""}
    data = written(tmp_path / "silent", changed)
    prepared = made_task().prepare(data)
    assert set(prepared.rows.tolist()) == set(range(64)) - {0, 5}
    assert set(prepared.training_rows.tolist()) == set(range(96)) - {3}
    assert prepared.problems == {
        "pairs without a report, not judged": 2,
        "training pairs without a report, left out": 1,
    }


def test_data_without_reports_are_not_possible(rows: dict[str, list[Row]], tmp_path: Path) -> None:
    changed = copy.deepcopy(rows)
    for row in changed["test"]:
        row |= {"report": "", "findings": "", "impression": ""}
    with pytest.raises(NotPossible, match=r"the test split of .* has no reports"):
        made_task().prepare(written(tmp_path / "none", changed))


def test_one_pair_of_each_patient_is_judged_whatever_the_order_of_storage(
    rows: dict[str, list[Row]], tmp_path: Path
) -> None:
    changed = copy.deepcopy(rows)
    for number, row in enumerate(changed["test"]):
        row["patient_id"] = f"patient {number // 4}"
    turned = {**changed, "test": changed["test"][::-1]}
    found = []
    for name, content in (("one", changed), ("other", turned)):
        data = written(tmp_path / name, content)
        prepared = made_task(test_patients=10).prepare(data)
        assert prepared.rows.tolist() == sorted(prepared.rows.tolist())
        assert len(set(prepared.patients.tolist())) == len(prepared.rows) == 10
        found.append(set(data.table("test", ["pair_id"], prepared.rows)["pair_id"].to_pylist()))
    assert found[0] == found[1]


def test_the_true_labels_are_judged_where_the_labeller_names_them(
    data: LabelledData, rows: dict[str, list[Row]]
) -> None:
    task = made_task()
    prepared = task.prepare(data)
    assert prepared.labels is not None
    assert "label_f1" in task.score(prepared, task.perfect(prepared)).figures
    names = task.score(prepared, task.perfect(prepared)).names["labels"]
    for place, row in enumerate(prepared.rows.tolist()):
        told = {name for name, value in zip(names, prepared.labels[place], strict=True) if value == 1}
        assert told == set(rows["test"][row]["labels"])
    chest = made_task(labeller="chest")
    assert chest.prepare(data).labels is None


def test_the_constant_report_is_the_nearest_to_all(rows: dict[str, list[Row]], tmp_path: Path) -> None:
    changed = copy.deepcopy(rows)
    texts = ["the heart is large", "the heart is small", "no effusion seen", "the heart is large today"]
    for number, row in enumerate(changed["train"]):
        row |= {"report": texts[number % 4], "findings": "", "impression": ""}
    prepared = made_task().prepare(written(tmp_path / "texts", changed))
    assert prepared.constant == "the heart is large"


def test_more_tokens_than_positions_are_not_possible(data: LabelledData, model: LoadedModel) -> None:
    task = made_task(max_tokens=49)
    with pytest.raises(NotPossible, match="max_tokens 49: seed 0 has 48 positions"):
        task.fit(model, FeatureStore(model, data), task.prepare(data), JOB)


def test_reports_that_are_cut_are_counted(data: LabelledData, model: LoadedModel) -> None:
    task = made_task(max_tokens=8, test_patients=5, fit={"steps": 1, "batch_size": 4})
    prepared: JudgedReports = task.prepare(data)
    features = FeatureStore(model, data)
    predictions = task.predict(model, features, prepared, JOB, task.fit(model, features, prepared, JOB))
    told = task.score(prepared, predictions).problems
    assert told["true reports longer than the 8 tokens that the model may write"] == 5
    assert all(len(text.split()) <= 7 for text in predictions["reports"])


def test_a_writer_of_no_finite_numbers_is_told(data: LabelledData, model: LoadedModel) -> None:
    task = made_task(test_patients=4, fit={"steps": 1, "batch_size": 4})
    prepared = task.prepare(data)
    features = FeatureStore(model, data)
    fitted = task.fit(model, features, prepared, JOB)
    with torch.no_grad():
        fitted.decoder.report_encoder.head.bias.fill_(torch.nan)
    with pytest.raises(NotPossible, match="not finite"):
        task.predict(model, features, prepared, JOB, fitted)
