"""Frozen features of a model on a dataset, extracted once and kept by (weights, data).

Decisions:
- What is kept are vectors per pair: mean patch token, aligned image vector, aligned report vector. Patch
  tokens are too large to keep for an archive; tasks that need them run the encoder.
- A part covers a fixed range of a split's rows, so parts can be made anywhere on the cluster and in any
  order, and a fit on one percent of the labels reads only the parts that it touches.
- The name of a part holds the hash of weights and tokeniser and the data's fingerprint: it can never be
  another model's. A torn or foreign part is made again.
- View and text are those of validation: centre view, whole report, eval mode.

Features tell something about patients: files have mode 0600 and hold no identifiers.
"""

from __future__ import annotations

from typing import Final, Literal

import numpy as np
import safetensors
import safetensors.torch
import torch
from numpy.typing import NDArray
from torch import Tensor

from mpma.data.storage import Storage
from mpma.downstream.labelled import LabelledData, Rows
from mpma.loading import LoadedModel

Kind = Literal["image", "report"]

FEATURES_VERSION: Final = 1
"""Raised with every change of what a feature is, so that parts made before are not taken for it."""

PART_ROWS: Final = 1024
"""Rows of one part."""


class FeatureStore:
    """Features of one model on one dataset; parts that are missing are made when asked for."""

    def __init__(
        self, model: LoadedModel, data: LabelledData, storage: Storage | None = None, batch_size: int = 64
    ) -> None:
        """`storage` None keeps parts in memory only."""
        self.model, self.data, self._batch = model, data, batch_size
        # Beside weights and data all that their bits depend on.
        how = f"{model.precision}-{model.device.type}-{batch_size}-{torch.get_num_threads()}"
        name = f"{model.weights_hash}-{data.fingerprint}-{how}-v{FEATURES_VERSION}"
        self._storage = None if storage is None else storage.child(name)
        self._memory: dict[str, dict[str, Tensor]] = {}

    def image_means(self, split: str, rows: Rows) -> NDArray[np.float32]:
        """Mean patch tokens [n, D]."""
        return self._gather("image", "mean", split, rows)

    def image_vectors(self, split: str, rows: Rows) -> NDArray[np.float32]:
        """Aligned image vectors [n, A], unit norm."""
        return self._gather("image", "aligned", split, rows)

    def report_vectors(self, split: str, rows: Rows) -> NDArray[np.float32]:
        """Aligned report vectors [n, A], unit norm."""
        return self._gather("report", "aligned", split, rows)

    @staticmethod
    def parts_of(rows: Rows) -> list[int]:
        """Numbers of the parts that hold these rows."""
        return [int(part) for part in np.unique(rows // PART_ROWS)]

    def ensure(self, kind: Kind, split: str, part: int) -> bool:
        """Make a part where it is not there yet; return whether it was made."""
        if self._read(self._name(kind, split, part)) is not None:
            return False
        self._make(kind, split, part)
        return True

    def _gather(self, kind: Kind, name: str, split: str, rows: Rows) -> NDArray[np.float32]:
        parts = self.parts_of(rows)
        tables = {part: self._part(kind, split, part)[name].numpy() for part in parts}
        width = next(iter(tables.values())).shape[1] if tables else 0
        found = np.empty((len(rows), width), dtype=np.float32)
        owner = rows // PART_ROWS
        for part, table in tables.items():
            here = owner == part
            found[here] = table[rows[here] - part * PART_ROWS]
        return found

    def _part(self, kind: Kind, split: str, part: int) -> dict[str, Tensor]:
        found = self._read(self._name(kind, split, part))
        return self._make(kind, split, part) if found is None else found

    def _name(self, kind: Kind, split: str, part: int) -> str:
        return f"{split}-{kind}-{part:06d}.safetensors"

    def _read(self, name: str) -> dict[str, Tensor] | None:
        if name in self._memory:
            return self._memory[name]
        if self._storage is None or not self._storage.exists(name):
            return None
        try:
            found: dict[str, Tensor] = safetensors.torch.load(self._storage.read(name))
        except (OSError, safetensors.SafetensorError):
            return None
        self._memory[name] = found
        return found

    def _make(self, kind: Kind, split: str, part: int) -> dict[str, Tensor]:
        last = min((part + 1) * PART_ROWS, self.data.rows(split))
        rows = np.arange(part * PART_ROWS, last)
        made: dict[str, list[Tensor]] = {}
        for start in range(0, len(rows), self._batch):
            for name, value in self._embed(kind, split, rows[start : start + self._batch]).items():
                made.setdefault(name, []).append(value.float().cpu())
        found = {name: torch.cat(values) for name, values in made.items()}
        name = self._name(kind, split, part)
        if self._storage is not None:
            self._storage.make_directory()
            self._storage.write(name, safetensors.torch.save(found))
        self._memory[name] = found
        return found

    def _embed(self, kind: Kind, split: str, rows: Rows) -> dict[str, Tensor]:
        loaded = self.model
        with (
            torch.no_grad(),
            torch.autocast(loaded.device.type, torch.bfloat16, enabled=loaded.precision == "bf16"),
        ):
            if kind == "image":
                embedding = loaded.model.embed_images(centre_views(loaded, self.data, split, rows))
                return {"mean": embedding.mean, "aligned": embedding.aligned}
            ids, attention, _ = loaded.tokens(self.data.texts(split, rows))
            return {"aligned": loaded.model.embed_reports(ids, attention)}


def centre_views(loaded: LoadedModel, data: LabelledData, split: str, rows: Rows) -> Tensor:
    """Centre views of stored pairs, uint8 [n,1,S,S] on the model's device."""
    zeros = np.zeros(len(rows), np.int64)
    pixels = loaded.cropper()(data.images(split, rows), zeros, rows, augment=False)
    return pixels.to(loaded.device)


def autocast(loaded: LoadedModel) -> torch.autocast:
    """The model's precision, for a forward pass."""
    return torch.autocast(loaded.device.type, torch.bfloat16, enabled=loaded.precision == "bf16")
