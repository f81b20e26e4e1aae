"""What each of two workers does to train with a shared model; imported by name in the spawned processes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from model_samples import SMALL, small_batch, small_model
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from mpma.config import ExperimentConfig, validate_tree
from mpma.data.storage import open_storage
from mpma.training.checkpoint import CheckpointState, load_model_tensors, read_newest, write_checkpoint
from mpma.training.optimizer import build_optimizer, load_optimizer_tensors, optimizer_tensors
from mpma.training.parallel import model_tensors, unwrap, wrap
from mpma.training.step import training_step

WORKERS, PAIRS = 2, 8
CPU = torch.device("cpu")
Numbers = dict[str, Tensor]


@dataclass(frozen=True)
class Case:
    """Changes to the small configuration, visible patches of each step, micro-batch."""

    changes: dict[str, Any]
    visible: tuple[int, ...] = (4, 4, 4)
    micro_batch_size: int | None = None


CASES = {
    "plain": Case({}),
    "micro-batches": Case({}, micro_batch_size=2),
    "full image beside the masked one": Case(
        {"alignment": {"image_view": "full", "local": "within_pair"}, "memory": {"kind": "key_value"}}
    ),
    "last steps with nothing hidden": Case({}, visible=(4, 16, 16)),
    "image added to the words": Case({"fusion": {"kind": "mean_add"}, "alignment": {"text_view": "masked"}}),
}


def small_run(case: Case, parallel: str) -> ExperimentConfig:
    """The whole configuration of a case."""
    tree = {name: {**values, **case.changes.get(name, {})} for name, values in SMALL.items()}
    if tree["memory"].get("kind") == "key_value":
        tree["memory"].pop("top_k")
    training = {"workers": WORKERS, "batch_size": PAIRS, "micro_batch_size": case.micro_batch_size}
    return validate_tree({**tree, "training": {**training, "parallel": parallel}})


class Trained:
    """A small model as a worker of the loop has it."""

    def __init__(self, case: Case, parallel: str, rank: int) -> None:
        self.config, self.case, self.rank = small_run(case, parallel), case, rank
        self.model = small_model(**case.changes)
        self.step = 0

    def begin(self, checkpoints: Path | None = None) -> Trained:
        """Share the model, from the newest checkpoint where a folder is given."""
        found = None if checkpoints is None else read_newest(open_storage(checkpoints), _refuse)
        if found is not None:
            load_model_tensors(self.model, found.model, found.name)
            self.step = found.state.step
        self.module = wrap(self.model, self.config, CPU, WORKERS, "fp32")
        bare = self.bare = unwrap(self.module)
        self.optimizer = build_optimizer(
            bare.named_parameters(), bare.no_weight_decay_names(), self.config.training
        )
        if found is not None:
            load_optimizer_tensors(self.optimizer, bare.named_parameters(), found.optimizer)
        return self

    def take_step(self) -> Tensor:
        """One optimiser step -> [2]: this worker's total loss, the gradient's norm."""
        share = PAIRS // WORKERS
        batch = small_batch(PAIRS, visible=self.case.visible[self.step], seed=self.step)
        result = training_step(
            self.module,
            self.bare,
            self.optimizer,
            batch.slice(self.rank * share, (self.rank + 1) * share),
            self.config,
            step=self.step,
            rank=self.rank,
            device=CPU,
            precision="fp32",
        )
        self.step += 1
        return torch.stack([result.total, result.gradient_norm])

    def tensors(self) -> Numbers:
        """Whole weights and moments by name. Every worker must call it."""
        moments = optimizer_tensors(self.optimizer, self.bare.named_parameters())
        return {**model_tensors(self.bare), **moments}

    def save(self, checkpoints: Path) -> None:
        """As the loop saves. Every worker must call it."""
        weights = model_tensors(self.bare)
        moments = optimizer_tensors(self.optimizer, self.bare.named_parameters())
        if self.rank == 0:
            state = CheckpointState(self.step, self.step * PAIRS, WORKERS, "hash", "data")
            write_checkpoint(open_storage(checkpoints), state, weights, moments, keep=1)
        dist.barrier()


def trained(case: Case, parallel: str, rank: int) -> Numbers:
    """All steps of a case: losses and norms of each, then every weight and moment."""
    run = Trained(case, parallel, rank).begin()
    steps = torch.stack([run.take_step() for _ in case.visible])
    return {"steps": steps, **run.tensors()}


def continued(first: str, then: str, rank: int, folder: Path) -> Numbers:
    """Two steps one way, a checkpoint, a third step the other way."""
    checkpoints = folder / f"{first}-{then}"
    run = Trained(CASES["plain"], first, rank).begin()
    run.take_step()
    run.take_step()
    run.save(checkpoints)
    other = Trained(CASES["plain"], then, rank).begin(checkpoints)
    return {"steps": other.take_step()[None], **other.tensors()}


class CollectiveBytes(TorchDispatchMode):
    """Bytes that this worker hands to each kind of collective call."""

    def __init__(self) -> None:
        super().__init__()
        self.sent: dict[str, int] = {}

    def __torch_dispatch__(
        self, function: Any, types: Any, arguments: tuple[Any, ...] = (), named: dict[str, Any] | None = None
    ) -> Any:
        namespace, _, name = function.name().partition("::")
        if namespace == "c10d":
            given = arguments[1] if "allgather" in name or "reduce_scatter" in name else arguments[0]
            parts = given if isinstance(given, (list, tuple)) else [given]
            size = sum(part.numel() * part.element_size() for part in parts)
            self.sent[name] = self.sent.get(name, 0) + size
        return function(*arguments, **(named or {}))


def bytes_of_a_step(rank: int, group_size: int) -> dict[str, int]:
    """What a step of DDP sends besides its gradients, which the reducer's own hooks send."""
    run = Trained(Case({"alignment": {"group_size": group_size}}), "ddp", rank).begin()
    # In the second step the reducer agrees once on its buckets.
    run.take_step()
    run.take_step()
    with CollectiveBytes() as counted:
        run.take_step()
    return counted.sent


def _refuse(reason: str) -> None:
    raise AssertionError(reason)


def _on_one_thread(rank: int, folder: str, work: Callable[[int, Path], Any], name: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/{name}", rank=rank, world_size=WORKERS)
    try:
        torch.save(work(rank, Path(folder)), Path(folder) / f"{name}_{rank}.pt")
    finally:
        dist.destroy_process_group()


def _all_cases(rank: int, folder: Path) -> Any:
    return {
        "trained": {
            name: {parallel: trained(case, parallel, rank) for parallel in ("ddp", "fsdp2")}
            for name, case in CASES.items()
        },
        "continued": {
            f"{first} to {then}": continued(first, then, rank, folder)
            for first, then in (("ddp", "fsdp2"), ("fsdp2", "ddp"))
        },
        "bytes": {size: bytes_of_a_step(rank, size) for size in (4, 8)},
    }


def run_worker(rank: int, folder: str) -> None:
    """Join the group of two, compute every case, write what came out."""
    _on_one_thread(rank, folder, _all_cases, "all")
