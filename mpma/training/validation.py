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
- The split is `val`; a comparison that is made once takes `test`, laid out and measured in the same way.
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
from mpma.metrics.probe import ProbeResult, linear_probe
from mpma.metrics.retrieval import above_chance, retrieval_metrics
from mpma.model.gather import alone
from mpma.training.reference_batches import CentreViews, ReferenceBatches, reference_collator
from mpma.training.validation_sets import GAIN_BLOCK, TEXT_COLUMNS, Rows, ValidationDataset, choose_sets

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


@dataclass(frozen=True)
class Measured:
    """What a model made of the chosen pairs; fp32 on the host, complete on every worker.

    N gallery pairs · n, m pairs of the probe's subsets · g pairs with visual gain · R report ratios.
    """

    image: Tensor
    """[N, A]: aligned vectors of the gallery's images."""
    report: Tensor
    """[N, A]: of its reports."""
    probe_train: Tensor | None
    """[n, D]: mean patch tokens; None without a probe."""
    probe_held_out: Tensor | None
    """[m, D]."""
    gain_sums: Tensor | None
    """float64 [g, R, 3]: nats under the own picture, nats under another's, hidden words; in the order of
    the blocks. None without a report branch or without partners."""

    @property
    def finite(self) -> bool:
        """Whether every embedding is."""
        embedded = (self.image, self.report, self.probe_train, self.probe_held_out)
        return all(bool(torch.isfinite(tensor).all()) for tensor in embedded if tensor is not None)


class Validator:
    """Validates a model on the same pairs in the same way whenever and wherever it is asked to.

    Built once per run on every worker. Building reads identifiers, report text and labels of the chosen
    row groups; images are read by the first `run`. Memory of a worker: `validation.cache_bytes` at
    most, and the embeddings of all chosen pairs.

    Raises `UserError` where the split has fewer than two patients.
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
        split: str = "val",
    ) -> None:
        self._dataset, self._config, self._tokenizer = dataset, config.validation, tokenizer
        self._split = split
        self._max_tokens = config.report.max_tokens
        self._device, self._rank, self._world, self._precision = device, rank, world_size, precision
        threads = config.data.decode_threads
        collator = reference_collator(config, tokenizer, target_scale)
        self._views = CentreViews(dataset, collator.cropper, threads, config.validation.cache_bytes)
        self._references = ReferenceBatches(dataset, collator, self._views, split)
        self.sets = choose_sets(dataset, config.validation, split)
        self._report_tokens: dict[int, tuple[Tensor, Tensor]] = {}
        self._gain: dict[int, _PreparedBlock] = {}

    def run(self, model: Any, step: int) -> dict[str, float]:
        """All figures by name; the same dictionary on every worker, whatever their number.

        `model` is the bare one. Every worker must call it. Raises `JobError` on every worker where the
        model's embeddings are not finite.
        """
        with measuring(model, self._device, self._precision):
            measured = self._measured(model)
            losses = self._losses(model)
        found: dict[str, float] | None = None
        if self._rank == 0 and measured.finite:
            found = self._retrieval(measured)
            if self.sets.probe_val is not None:
                found |= self._probe(measured)
            found |= _representation_score(found)
            if measured.gain_sums is not None:
                found["val/report_reconstruction/visual_gain"] = _visual_gain(measured.gain_sums)
            found |= losses
        return self._agreed(found, step)

    def measure(self, model: Any) -> Measured:
        """What the figures are made of, pair by pair. Every worker must call it."""
        with measuring(model, self._device, self._precision):
            return self._measured(model)

    def _measured(self, model: Any) -> Measured:
        sets = self.sets
        rows = sets.gallery_rows
        if sets.probe_val is not None:
            rows = np.union1d(rows, sets.probe_val.rows)
        aligned, mean = self._embed_images(model, self._split, rows)
        reports = self._embed_reports(model)
        probe_train = probe_held_out = None
        if sets.probe_train is not None and sets.probe_val is not None:
            _, probe_train = self._embed_images(model, "train", sets.probe_train.rows)
            probe_held_out = mean[torch.as_tensor(np.searchsorted(rows, sets.probe_val.rows))]
        return Measured(
            image=aligned[torch.as_tensor(np.searchsorted(rows, sets.gallery_rows))],
            report=reports,
            probe_train=probe_train,
            probe_held_out=probe_held_out,
            gain_sums=self._gain_sums(model) if getattr(model, "wants_report", True) else None,
        )

    # -- the figures, on rank 0 --------------------------------------------------------------------

    def _retrieval(self, measured: Measured) -> dict[str, float]:
        metrics = retrieval_metrics(measured.image, measured.report, self.sets.gallery_class)
        return {f"val/retrieval/{name}": value for name, value in metrics.items()}

    def _probe(self, measured: Measured) -> dict[str, float]:
        result = self.fit_probe(measured)
        return {
            "val/probe/auroc": result.auroc,
            "val/probe/labels": float(len(result.per_label)),
            "val/probe/pairs": float(result.scored_pairs),
            "val/probe/fitted_pairs": float(result.fitted_pairs),
            "val/probe/minimum_per_class": float(result.minimum),
        }

    def fit_probe(self, measured: Measured) -> ProbeResult:
        """The probe, fitted on training pairs and scored on held-out ones; only where the sets have one."""
        train, held_out = self.sets.probe_train, self.sets.probe_val
        assert train is not None
        assert held_out is not None
        assert measured.probe_train is not None
        assert measured.probe_held_out is not None
        return linear_probe(
            measured.probe_train.numpy(),
            train.labels,
            train.patients,
            measured.probe_held_out.numpy(),
            held_out.labels,
            list(self._dataset.label_names),
        )

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
                table = self._dataset.read_rows(self._split, part, TEXT_COLUMNS)
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

    def _gain_sums(self, model: Any) -> Tensor | None:
        """`Measured.gain_sums`."""
        blocks = self.sets.gain_blocks
        if not blocks:
            return None

        def measure(number: int) -> Tensor:
            block = self._prepared_block(number)
            pixels = self._views.get(self._split, block.rows).to(self._device)
            tokens = model.embed_images(pixels).tokens
            sums = []
            for batch in block.batches:
                own, words = model.report_nll(tokens, batch)
                other, _ = model.report_nll(tokens[block.partner], batch)
                sums += [own.double(), other.double(), words.double()]
            # Blocks are dealt to workers, so all are of one size.
            return nn.functional.pad(torch.stack(sums, dim=1), (0, 0, 0, GAIN_BLOCK - len(block.rows)))

        padded = self._dealt(len(blocks), measure, GAIN_BLOCK)[: len(blocks) * GAIN_BLOCK]
        whole = padded.view(len(blocks), GAIN_BLOCK, len(GAIN_RATIOS), 3)
        return torch.cat([sums[: len(block.rows)] for sums, block in zip(whole, blocks, strict=True)])

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


def _visual_gain(sums: Tensor) -> float:
    """Nats per hidden word that a pair's own image saves over another's, from `Measured.gain_sums`."""
    own, other, words = sums.sum(0).unbind(1)
    return float(((other - own) / words.clamp_min(1)).mean())


def _representation_score(found: dict[str, float]) -> dict[str, float]:
    parts = [above_chance(found["val/retrieval/mean_recall"], found["val/retrieval/chance_mean_recall"])]
    if "val/probe/auroc" in found:
        parts.append(2.0 * found["val/probe/auroc"] - 1.0)
    return {"val/representation_score": sum(parts) / len(parts)}
