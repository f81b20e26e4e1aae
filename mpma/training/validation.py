"""Validation that compares across runs: what the representations are good for, on held-out patients.

Decisions:
- What is compared is measured as it will be used: full unmasked image, whole report, centre view, eval
  mode, no augmentation. Losses at the reference masks are diagnostics, never objectives.
- Work is dealt to the workers in whole batches, so batches, and with them the figures, do not depend
  on the number of workers; metrics are computed on rank 0 and handed to all. Every worker makes the
  same number of forward passes (one that has less repeats its last and drops it), so that a model
  whose parameters are sharded can gather them.
- The losses are those of one worker with the whole fixed batch, on every worker at once: no
  collectives, hence the same for any number of them.
- Nothing that training depends on changes: modes are restored, no generator is advanced, no gradient
  is made. A run that validates more often trains the same.

docs/validation.md says what each figure means.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor, nn

from mpma.config import ExperimentConfig
from mpma.data.batches import Batch
from mpma.data.pairs import model_text
from mpma.data.tokenizer import ReportTokenizer
from mpma.errors import JobError
from mpma.metrics.probe import linear_probe
from mpma.metrics.retrieval import above_chance, retrieval_metrics
from mpma.model.gather import alone
from mpma.training.reference_batches import CentreViews, ReferenceBatches, reference_collator
from mpma.training.validation_sets import TEXT_COLUMNS, Rows, ValidationDataset, choose_sets

GAIN_RATIOS: Final = (0.3, 0.5, 0.7)
"""Report mask ratios over which visual gain is averaged."""


@contextmanager
def measuring(model: nn.Module, device: torch.device, precision: str = "fp32") -> Iterator[None]:
    """Eval mode without gradients, in the training precision; all of it undone at the end.

    Not inference mode: what a module caches inside would be unusable in training.
    """
    modes = {module: module.training for module in model.modules()}
    devices = [device] if device.type == "cuda" else []
    model.eval()
    try:
        with (
            torch.no_grad(),
            torch.random.fork_rng(devices=devices),
            torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"),
        ):
            yield
    finally:
        for module, mode in modes.items():
            module.training = mode


@dataclass(frozen=True)
class _PreparedBlock:
    """A block of visual gain: its masked batches without pixels, one per ratio."""

    rows: Rows
    partner: Tensor
    batches: list[Batch]


class Validator:
    """Validates a model on the same pairs in the same way whenever and wherever it is asked to.

    Built once per run on every worker. Building reads identifiers, report text and labels of the chosen
    row groups; images are read by the first `run`. Memory of a worker: `validation.cache_bytes` at
    most, and the embeddings of all chosen pairs.

    Raises `UserError` where the val split has fewer than two patients.
    """

    def __init__(
        self,
        dataset: ValidationDataset,
        config: ExperimentConfig,
        tokenizer: ReportTokenizer,
        *,
        target_scale: int,
        device: torch.device,
        rank: int = 0,
        world_size: int = 1,
        precision: str = "fp32",
    ) -> None:
        self._dataset, self._config, self._tokenizer = dataset, config.validation, tokenizer
        self._max_tokens = config.report.max_tokens
        self._device, self._rank, self._world, self._precision = device, rank, world_size, precision
        threads = config.data.decode_threads
        collator = reference_collator(config, tokenizer, target_scale)
        self._views = CentreViews(dataset, collator.cropper, threads, config.validation.cache_bytes)
        self._references = ReferenceBatches(dataset, collator, self._views)
        self.sets = choose_sets(dataset, config.validation)
        self._report_tokens: dict[int, tuple[Tensor, Tensor]] = {}
        self._gain: dict[int, _PreparedBlock] = {}

    def run(self, model: Any, step: int) -> dict[str, float]:
        """All figures by name; the same dictionary on every worker, whatever their number.

        `model` is the bare one. Every worker must call it. Raises `JobError` on every worker where the
        model's embeddings are not finite.
        """
        sets = self.sets
        probed = sets.probe_train is not None and sets.probe_val is not None
        val_rows = sets.gallery_rows
        if sets.probe_val is not None:
            val_rows = np.union1d(val_rows, sets.probe_val.rows)
        with measuring(model, self._device, self._precision):
            aligned, val_mean = self._embed_images(model, "val", val_rows)
            reports = self._embed_reports(model)
            train_mean = None
            if probed:
                assert sets.probe_train is not None
                _, train_mean = self._embed_images(model, "train", sets.probe_train.rows)
            gain = self._visual_gain(model) if getattr(model, "wants_report", True) else None
            losses = self._losses(model)
        found: dict[str, float] | None = None
        if self._rank == 0:
            embedded = [aligned, val_mean, reports, *([] if train_mean is None else [train_mean])]
            if all(bool(torch.isfinite(tensor).all()) for tensor in embedded):
                gallery = torch.as_tensor(np.searchsorted(val_rows, sets.gallery_rows))
                found = self._retrieval(aligned[gallery], reports)
                if train_mean is not None:
                    found |= self._probe(train_mean, val_mean, val_rows)
                found |= _representation_score(found)
                if gain is not None:
                    found["val/report_reconstruction/visual_gain"] = gain
                found |= losses
        return self._agreed(found, step)

    # -- the figures, on rank 0 --------------------------------------------------------------------

    def _retrieval(self, image: Tensor, report: Tensor) -> dict[str, float]:
        metrics = retrieval_metrics(image, report, self.sets.gallery_class)
        return {f"val/retrieval/{name}": value for name, value in metrics.items()}

    def _probe(self, train_mean: Tensor, val_mean: Tensor, val_rows: Rows) -> dict[str, float]:
        train, val = self.sets.probe_train, self.sets.probe_val
        assert train is not None
        assert val is not None
        result = linear_probe(
            train_mean.numpy(),
            train.labels,
            train.patients,
            val_mean.numpy()[np.searchsorted(val_rows, val.rows)],
            val.labels,
            list(self._dataset.label_names),
        )
        return {
            "val/probe/auroc": result.auroc,
            "val/probe/labels": float(len(result.per_label)),
            "val/probe/pairs": float(result.scored_pairs),
            "val/probe/fitted_pairs": float(result.fitted_pairs),
            "val/probe/minimum_per_class": float(result.minimum),
        }

    def _agreed(self, found: dict[str, float] | None, step: int) -> dict[str, float]:
        if self._world > 1:
            payload = [found]
            torch.distributed.broadcast_object_list(payload, src=0, device=self._device)
            found = payload[0]
        if found is None:
            raise JobError(
                f"validation at step {step}: the model's embeddings are not finite",
                "a lower training.learning_rate_per_256 or a longer training.warmup_fraction usually helps",
            )
        return found

    # -- the work, on all workers ------------------------------------------------------------------

    def _embed_images(self, model: Any, split: str, rows: Rows) -> tuple[Tensor, Tensor]:
        """Ascending rows -> aligned [n,A] and mean patch token [n,D], fp32 on the host."""
        width = 0

        def embed(part: Rows) -> Tensor:
            nonlocal width
            embedding = model.embed_images(self._views.get(split, part).to(self._device))
            width = embedding.aligned.shape[1]
            return torch.cat([embedding.aligned.float(), embedding.mean.float()], dim=1)

        size = self._config.batch_size
        parts = [rows[start : start + size] for start in range(0, len(rows), size)]
        both = self._dealt(len(parts), lambda number: embed(parts[number]), size)[: len(rows)]
        return both[:, :width], both[:, width:]

    def _embed_reports(self, model: Any) -> Tensor:
        """Aligned report vectors of the gallery [N,A], fp32 on the host."""
        rows, size = self.sets.gallery_rows, self._config.batch_size

        def embed(number: int) -> Tensor:
            if number not in self._report_tokens:
                part = rows[number * size : (number + 1) * size]
                table = self._dataset.read_rows("val", part, TEXT_COLUMNS)
                columns = (table[name].to_pylist() for name in TEXT_COLUMNS)
                texts = [model_text(*text) for text in zip(*columns, strict=True)]
                tokens = self._tokenizer.encode(texts, self._max_tokens)
                self._report_tokens[number] = (
                    torch.from_numpy(tokens.ids).to(self._device),
                    torch.from_numpy(tokens.attention).to(self._device),
                )
            embedded: Tensor = model.embed_reports(*self._report_tokens[number])
            return embedded.float()

        return self._dealt(-(-len(rows) // size), embed, size)[: len(rows)]

    def _visual_gain(self, model: Any) -> float | None:
        """Nats per hidden word that a pair's own image saves over another's; None without partners."""
        blocks = self.sets.gain_blocks
        if not blocks:
            return None

        def measure(number: int) -> Tensor:
            block = self._prepared_block(number)
            pixels = self._views.get("val", block.rows).to(self._device)
            tokens = model.embed_images(pixels).tokens
            sums = []
            for batch in block.batches:
                own, words = model.report_nll(tokens, batch)
                other, _ = model.report_nll(tokens[block.partner], batch)
                sums += [own.double().sum(), other.double().sum(), words.double().sum()]
            return torch.stack(sums)[None]

        totals = self._dealt(len(blocks), measure, 1)[: len(blocks)].sum(0).view(len(GAIN_RATIOS), 3)
        own, other, words = totals.unbind(1)
        return float(((other - own) / words.clamp_min(1)).mean())

    def _prepared_block(self, number: int) -> _PreparedBlock:
        if number not in self._gain:
            rows, partner = self.sets.gain_blocks[number]
            batches = self._references.masked(rows, 0.0, GAIN_RATIOS)
            bare = [replace(b, pixels=b.pixels.new_empty(len(b), 1, 0, 0)).to(self._device) for b in batches]
            self._gain[number] = _PreparedBlock(rows, torch.from_numpy(partner).to(self._device), bare)
        return self._gain[number]

    @cached_property
    def _loss_batch(self) -> Batch:
        config = self._config
        (batch,) = self._references.masked(
            self.sets.loss_rows, config.reference_image_mask_ratio, [config.reference_report_mask_ratio]
        )
        return batch.to(self._device)

    def _losses(self, model: Any) -> dict[str, float]:
        with alone():
            terms = model(self._loss_batch).terms()
        return {f"val/loss/{name}": float(value) for name, value in terms.items()}

    def _dealt(self, count: int, compute: Callable[[int], Tensor], most_rows: int) -> Tensor:
        """Results [r_i, K] of items 0..count-1 in order, computed in contiguous shares; on the host.

        All items but the last must give `most_rows` rows. Rows past the last item's are meaningless.
        """
        share = -(-count // self._world)
        numbers = [min(self._rank * share + place, count - 1) for place in range(share)]
        own = torch.cat([compute(number) for number in numbers])
        if self._world == 1:
            return own.cpu()
        padded = own.new_zeros(share * most_rows, own.shape[1])
        padded[: len(own)] = own
        gathered = own.new_empty(self._world * len(padded), own.shape[1])
        torch.distributed.all_gather_into_tensor(gathered, padded)
        return gathered.cpu()


def _representation_score(found: dict[str, float]) -> dict[str, float]:
    parts = [above_chance(found["val/retrieval/mean_recall"], found["val/retrieval/chance_mean_recall"])]
    if "val/probe/auroc" in found:
        parts.append(2.0 * found["val/probe/auroc"] - 1.0)
    return {"val/representation_score": sum(parts) / len(parts)}
