"""The model as a whole: every variant learns, switched-off branches do no work, cached steps are equal."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any

import pytest
import torch
from model_samples import (
    assert_same_gradients,
    gradients,
    small_batch,
    small_model,
)
from torch import Tensor, nn

from mpma.data.batches import padded_rows
from mpma.errors import UserError
from mpma.model.gradient_norms import trunk_gradient_norms
from mpma.model.outputs import TERMS
from mpma.model.pretraining import PretrainingModel
from mpma.training.feature_cache import accumulate_backward, unwrapped

VARIANTS = [
    {"memory": {"kind": memory}, "fusion": {"kind": fusion}, "alignment": {"local": local, **alignment}}
    for memory, fusion in itertools.product(("shared", "key_value", "none"), ("cross_attention", "mean_add"))
    if (memory, fusion) != ("key_value", "mean_add")
    for local, alignment in zip(
        ("words_to_patches", "within_pair", "none", "words_to_patches"),
        (
            {},
            {"text_view": "masked"},
            {"image_view": "full", "image_pooling": "class"},
            {"text_view": "masked", "image_view": "full"},
        ),
        strict=True,
    )
]


@pytest.mark.parametrize(
    "variant", VARIANTS, ids=lambda v: "-".join(str(x) for p in v.values() for x in p.values())
)
def test_every_variant_gives_every_trained_parameter_a_finite_gradient(variant: dict[str, Any]) -> None:
    model = small_model(**variant)
    losses = model(small_batch())
    losses.total.backward()
    wanted = set(TERMS) - ({"local_alignment"} if variant["alignment"]["local"] == "none" else set())
    assert losses.terms().keys() == wanted
    torch.testing.assert_close(losses.total, sum(losses.terms().values()))
    for name, gradient in gradients(model).items():
        assert gradient.isfinite().all(), name
    moved = [name for name, gradient in gradients(model).items() if gradient.abs().max() > 0]
    assert len(moved) == len(gradients(model)), sorted(gradients(model).keys() - set(moved))


def test_target_normalisation_and_target_scale_are_variants_too() -> None:
    batch = small_batch(target_scale=2)
    values = {
        kind: small_model(target_scale=2, image={"target_normalisation": kind})(
            batch
        ).image_reconstruction.item()
        for kind in ("patch", "none")
    }
    assert values["patch"] != values["none"]


def _calls(model: PretrainingModel, *names: str) -> dict[str, list[int]]:
    """Batch sizes that the named parts were called with."""
    calls: dict[str, list[int]] = {name: [] for name in names}
    for name in names:
        part = model.get_submodule(name)

        def note(module: nn.Module, args: tuple[Tensor, ...], name: str = name) -> None:
            calls[name].append(args[0].shape[0] if isinstance(args[0], Tensor) else -1)

        # Before the call: a block that is computed again in backward may stop before its end.
        part.register_forward_pre_hook(note)
    return calls


PARTS = (
    "image_encoder",
    "image_decoder",
    "report_encoder.bert.encoder.layer.0.output.dense",
    "report_encoder.head.transform",
    "fusion",
    "global_image",
    "local_report",
)


def _weights(**weights: float) -> dict[str, dict[str, float]]:
    return {"loss_weights": {name: weights.get(name, 0.0) for name in TERMS}}


@pytest.mark.parametrize(
    ("weights", "called"),
    [
        ({"image_reconstruction": 1.0}, {"image_encoder": 1, "image_decoder": 1}),
        (
            {"report_reconstruction": 1.0},
            {
                "image_encoder": 1,
                "report_encoder.bert.encoder.layer.0.output.dense": 1,
                "report_encoder.head.transform": 1,
                "fusion": 1,
            },
        ),
        (
            {"global_alignment": 1.0},
            {"image_encoder": 1, "report_encoder.bert.encoder.layer.0.output.dense": 1, "global_image": 1},
        ),
        (
            {"local_alignment": 1.0},
            {"image_encoder": 1, "report_encoder.bert.encoder.layer.0.output.dense": 1, "local_report": 1},
        ),
    ],
    ids=TERMS,
)
def test_a_weight_of_zero_skips_that_branch_and_freezes_what_only_it_reaches(
    weights: dict[str, float], called: dict[str, int]
) -> None:
    model, batch = small_model(**_weights(**weights)), small_batch()
    # A single half means a BERT batch of B, not 2B.
    calls = _calls(model, *PARTS)
    losses = model(batch)
    losses.total.backward()
    assert {name: len(sizes) for name, sizes in calls.items() if sizes} == called
    assert calls["report_encoder.bert.encoder.layer.0.output.dense"] in ([], [8])
    assert losses.terms().keys() == weights.keys()
    gradients(model)


def test_one_bert_call_serves_both_halves() -> None:
    model = small_model()
    calls = _calls(model, *PARTS)
    model(small_batch())
    assert {name: len(sizes) for name, sizes in calls.items()} == dict.fromkeys(PARTS, 1)
    assert calls["report_encoder.bert.encoder.layer.0.output.dense"] == [16]


def test_the_full_image_has_nothing_to_reconstruct_and_its_decoder_a_zero_gradient() -> None:
    model = small_model(alignment={"image_view": "full"})
    calls = _calls(model, "image_encoder", "image_decoder")
    losses = model(small_batch(visible=16))
    losses.total.backward()
    assert losses.image_reconstruction is None
    assert {name: len(sizes) for name, sizes in calls.items()} == {"image_encoder": 1, "image_decoder": 0}
    found = gradients(model)
    assert found["image_decoder.head.weight"].abs().max() == 0
    assert found["image_encoder.vit.blocks.0.mlp.fc1.weight"].abs().max() > 0


def test_a_batch_in_which_no_word_is_hidden_has_no_report_loss_and_a_finite_gradient() -> None:
    model, batch = small_model(), small_batch()
    none, no_targets = padded_rows(
        torch.empty(0, dtype=torch.int64), torch.empty(0, dtype=torch.int64), *batch.token_ids.shape
    )
    bare = replace(
        batch,
        masked_token_ids=batch.token_ids,
        masked_rows=none,
        masked_targets=no_targets,
        masked_count=0,
    )
    losses = model(bare)
    assert losses.report_reconstruction is not None
    assert losses.report_reconstruction.item() == 0
    losses.total.backward()
    assert all(torch.isfinite(gradient).all() for gradient in gradients(model).values())


def test_all_weights_at_zero_are_refused() -> None:
    with pytest.raises(UserError, match="loss_weights leave nothing to learn"):
        small_model(**_weights())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"fusion": {"heads": 5}}, "fusion.heads 5 does not divide report.width 24"),
        ({"memory": {"heads": 5}}, "memory.heads 5 does not divide report.width 24"),
        ({"memory": {"kind": "key_value"}, "fusion": {"kind": "mean_add"}}, "memory.kind key_value"),
        ({"image": {"backbone": "vit_nonsense"}}, "image.backbone 'vit_nonsense' is no model of timm"),
        ({"image": {"backbone": "resnet18"}}, "image.backbone 'resnet18' c"),
        ({"image": {"width": None, "heads": 5}}, "image.backbone 'vit_tiny_patch16_224' cannot be built"),
    ],
)
def test_sizes_that_do_not_fit_are_named_in_one_line(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as caught:
        small_model(**changes)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text_view", ["unmasked", "masked"])
@pytest.mark.parametrize("fusion", ["cross_attention", "mean_add"])
def test_no_pixel_reaches_an_aligned_text_embedding(text_view: str, fusion: str) -> None:
    model = small_model(alignment={"text_view": text_view}, fusion={"kind": fusion})
    seen: list[Tensor] = []

    def watch(module: nn.Module, args: object, output: Tensor) -> Tensor:
        seen.append(output.requires_grad_())
        return output

    model.pixels.register_forward_hook(watch)
    trunk = model._trunk(small_batch(), reconstruction=True, alignment=True)
    features = model._features(trunk, small_batch())
    assert trunk.fused_text is not None
    for aligned in (features.report, features.words, trunk.aligned_text):
        (gradient,) = torch.autograd.grad(
            aligned.square().sum() + aligned.sum(),
            seen,
            retain_graph=True,
            allow_unused=True,
            materialize_grads=True,
        )
        assert torch.equal(gradient, torch.zeros_like(gradient))
    for reached in (features.image, features.patches):
        (gradient,) = torch.autograd.grad(reached.sum(), seen, retain_graph=True)
        assert gradient.abs().max() > 0
    fused = model.fusion(trunk.prepared, trunk.fused_text, small_batch().attention)
    (gradient,) = torch.autograd.grad(fused.sum(), seen)
    assert gradient.abs().max() > 0


@pytest.mark.parametrize(
    "variant", [{}, {"fusion": {"kind": "mean_add"}, "alignment": {"local": "within_pair"}}]
)
def test_bf16_runs_finite_and_close_with_similarities_in_fp32(variant: dict[str, Any]) -> None:
    model, batch = small_model(**variant), small_batch()
    exact = model(batch)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        losses = model(batch)
        features = model.align_features(batch)
    losses.total.backward()
    for name, term in losses.terms().items():
        assert term.dtype == torch.float32
        assert (term - exact.terms()[name]).abs() < 0.1, name
    assert all(value.dtype == torch.float32 for value in features.differentiable().values())
    assert all(gradient.isfinite().all() for gradient in gradients(model).values())


MICRO_VARIANTS: list[dict[str, Any]] = [
    {},
    {"alignment": {"local": "within_pair", "image_view": "full"}, "memory": {"kind": "key_value"}},
    {"alignment": {"local": "none", "text_view": "masked"}, "fusion": {"kind": "mean_add"}},
    _weights(report_reconstruction=0.5, image_reconstruction=2.0),
    _weights(global_alignment=0.7, local_alignment=1.5),
]


@pytest.mark.parametrize("visible", [4, 16])
@pytest.mark.parametrize("variant", MICRO_VARIANTS)
def test_micro_batches_give_the_gradients_of_the_whole_batch(variant: dict[str, Any], visible: int) -> None:
    model, batch = small_model(**variant), small_batch(visible=visible)
    whole = accumulate_backward(model, batch)
    expected = gradients(model)
    for size in (1, 2, 4):
        model.zero_grad()
        losses = accumulate_backward(model, batch, micro_batch_size=size)
        assert_same_gradients(gradients(model), expected)
        assert losses.terms().keys() == whole.terms().keys()
        torch.testing.assert_close(losses.total, whole.total, atol=1e-5, rtol=1e-5)
        for name, term in losses.terms().items():
            torch.testing.assert_close(term, whole.terms()[name], atol=1e-5, rtol=1e-5)


def test_micro_batches_that_do_not_divide_the_batch_are_refused() -> None:
    with pytest.raises(ValueError, match="micro-batches of 3 do not divide 8 pairs"):
        accumulate_backward(small_model(), small_batch(), micro_batch_size=3)


def test_gradient_checkpointing_changes_no_gradient() -> None:
    model, batch = small_model(), small_batch()
    model(batch).total.backward()
    expected = gradients(model)
    model.zero_grad()
    model.set_gradient_checkpointing(True)
    calls = _calls(model, "image_encoder.vit.blocks.0", "report_encoder.bert.encoder.layer.0.output.dense")
    model(batch).total.backward()
    assert all(len(sizes) == 2 for sizes in calls.values()), "each block runs again in backward"
    assert_same_gradients(gradients(model), expected, tolerance=1e-6)


def test_the_model_is_traced_whole_by_the_compiler() -> None:
    model = small_model()
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    assert unwrapped(compiled) is model
    for seed in (0, 1):  # The second batch has another number of hidden tokens.
        batch = small_batch(seed=seed)
        model.zero_grad()
        expected = model(batch)
        expected.total.backward()
        whole = gradients(model)
        model.zero_grad()
        losses = compiled(batch)
        losses.total.backward()
        torch.testing.assert_close(losses.total, expected.total)
        assert_same_gradients(gradients(model), whole)


def test_weights_are_a_function_of_the_seed_and_the_callers_random_state_is_left_alone() -> None:
    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    first, again, other = small_model(seed=3), small_model(seed=3), small_model(seed=4)
    assert torch.equal(torch.random.get_rng_state(), before)
    for name, value in first.state_dict().items():
        assert torch.equal(value, again.state_dict()[name]), name
    assert not torch.equal(first.fusion.memory.slots, other.fusion.memory.slots)


def test_no_tensor_is_saved_twice() -> None:
    pointers = [value.data_ptr() for value in small_model().state_dict().values() if value.numel() > 1]
    assert len(pointers) == len(set(pointers))


def test_norms_biases_positions_memory_and_temperature_do_not_decay() -> None:
    for kind in ("shared", "key_value"):
        model = small_model(memory={"kind": kind})
        spared = model.no_weight_decay_names()
        decayed = {name for name, _ in model.named_parameters()} - spared
        assert "temperature.logarithm" in spared
        assert "report_encoder.bert.embeddings.position_embeddings.weight" in spared
        assert "image_encoder.vit.cls_token" in spared
        assert "image_decoder.mask_token" in spared
        memory = {
            "shared": {"fusion.memory.slots"},
            "key_value": {f"fusion.blocks.0.cross_attention.slots.{part}" for part in ("keys", "values")},
        }[kind]
        assert memory <= spared
        assert "report_encoder.bert.embeddings.word_embeddings.weight" in decayed
        assert all(model.get_parameter(name).ndim >= 2 for name in decayed)
        assert not [name for name in decayed if "norm" in name.lower() or name.endswith("bias")]


def test_each_terms_gradient_on_the_trunk_is_measured_weighted() -> None:
    batch = small_batch()
    model = small_model(loss_weights={"global_alignment": 2.0})
    norms = trunk_gradient_norms(model, model(batch))
    only = small_model(**_weights(global_alignment=2.0))
    only(batch).total.backward()
    parts = (only.image_encoder, only.report_encoder.bert)
    squares = [p.grad.square().sum() for part in parts for p in part.parameters() if p.grad is not None]
    torch.testing.assert_close(
        norms["global_alignment"], torch.stack(squares).sum().sqrt(), rtol=1e-5, atol=0
    )
    assert norms.keys() == set(TERMS)
    assert all(parameter.grad is None for parameter in model.parameters())


def test_embeddings_do_not_depend_on_the_company_they_are_computed_in() -> None:
    model, batch = small_model().eval(), small_batch()
    with torch.no_grad():
        images = model.embed_images(batch.pixels)
        reports = model.embed_reports(batch.token_ids, batch.attention)
        pairs = model.embed_pairs(batch.pixels, batch.token_ids, batch.attention, batch.word_index)
        alone = model.embed_images(batch.pixels[2:3])
        padded = nn.functional.pad(batch.token_ids[3:4], (0, 0))
        report = model.embed_reports(padded, batch.attention[3:4])
    torch.testing.assert_close(images.aligned[2:3], alone.aligned)
    torch.testing.assert_close(images.tokens.mean(1), images.mean)
    torch.testing.assert_close(reports[3:4], report)
    torch.testing.assert_close(images.aligned.norm(dim=1), torch.ones(8))
    torch.testing.assert_close(pairs[:, 24:], images.mean)
    assert pairs.shape == (8, 24 + 32)


def test_another_image_changes_the_likelihood_of_a_report() -> None:
    model, batch = small_model(), small_batch()
    for parameter in model.fusion.parameters():
        parameter.data *= 5
    with torch.no_grad():
        tokens = model.embed_images(batch.pixels).tokens
        own, words = model.report_nll(tokens, batch)
        other, same_words = model.report_nll(tokens.roll(1, dims=0), batch)
    assert torch.equal(words, same_words)
    assert ((own - other).abs() > 1e-4).all()
