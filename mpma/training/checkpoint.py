"""Checkpoints that can be trusted: parts first, a marker with their hashes last.

A checkpoint is a folder `step_00001200/` holding `model.safetensors`, `optimizer.safetensors` and
`state.json`. `state.json` is the marker: it is written last and names the SHA-256 of the parts, so
a folder without it, or whose parts do not match it, is not a checkpoint: it is refused by name and
the one before is used. There is no random state to keep: every random choice of a run is a function
of (seed, step, rank) and every choice for a pair of (seed, epoch, position). No pickle anywhere.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import safetensors
import safetensors.torch
from torch import Tensor

from mpma.data.storage import Storage
from mpma.errors import JobError, UserError

FORMAT_VERSION = 1
MODEL_FILE = "model.safetensors"
OPTIMIZER_FILE = "optimizer.safetensors"
MARKER_FILE = "state.json"
_NAME = re.compile(r"^step_(\d{8,})$")


@dataclass(frozen=True)
class CheckpointState:
    """What `state.json` says."""

    step: int
    """Optimiser steps done."""
    position: int
    """Next position of the sample order: step * global batch."""
    world_size: int
    config_hash: str
    data_fingerprint: str
    model: Mapping[str, Any] = field(default_factory=dict)
    """What must be known to build the model anew (vocabulary size, grey mean, target scale, ...)."""
    files: Mapping[str, str] = field(default_factory=dict)
    """SHA-256 of each part."""
    format_version: int = FORMAT_VERSION


@dataclass(frozen=True)
class Checkpoint:
    """A whole checkpoint as read."""

    name: str
    state: CheckpointState
    model: dict[str, Tensor]
    optimizer: dict[str, Tensor]


def checkpoint_name(step: int) -> str:
    """Storage name of the checkpoint of a step."""
    return f"step_{step:08d}"


def list_checkpoints(checkpoints: Storage) -> list[str]:
    """Names of checkpoint folders, oldest first, whole or not."""
    names = [name for name in checkpoints.names() if _NAME.match(name)]
    return sorted(names, key=lambda name: int(name.removeprefix("step_")))


def write_checkpoint(
    checkpoints: Storage,
    state: CheckpointState,
    model: Mapping[str, Tensor],
    optimizer: Mapping[str, Tensor],
    keep: int,
    before_marker: Callable[[], None] = lambda: None,
) -> str:
    """Write the checkpoint of `state.step`, then drop all but the newest `keep`; return its name.

    Tensors may lie on any device. `before_marker` is called when the parts are there and may raise: the
    folder then never becomes a checkpoint. Raises `JobError` where the disk is full.
    """
    name = checkpoint_name(state.step)
    folder = checkpoints.child(name)
    # A torn folder of the same step (a killed run) must lose its marker before its parts change.
    folder.remove(MARKER_FILE)
    folder.make_directory()
    files = {}
    for part, tensors in ((MODEL_FILE, model), (OPTIMIZER_FILE, optimizer)):
        # Tied or sliced tensors are stored as their own contiguous copies.
        data = safetensors.torch.save(
            {key: value.detach().cpu().contiguous() for key, value in tensors.items()}
        )
        files[part] = folder.write(part, data).sha256
    whole = CheckpointState(**{**asdict(state), "files": files})
    before_marker()
    folder.write(MARKER_FILE, json.dumps(asdict(whole), indent=1, sort_keys=True).encode())
    names = list_checkpoints(checkpoints)
    # Storages without a marker are leftovers of a kill: they must not count against those kept.
    kept = [other for other in names if checkpoints.child(other).exists(MARKER_FILE)][-keep:]
    for old in names:
        if old not in kept:
            checkpoints.child(old).remove(MARKER_FILE)
            checkpoints.remove(old)
    return name


def read_state(folder: Storage) -> CheckpointState:
    """The marker of a checkpoint folder. Raises `UserError` saying what is wrong with it."""
    try:
        raw = json.loads(folder.read(MARKER_FILE))
        state = CheckpointState(**raw)
    except FileNotFoundError:
        raise UserError(f"{folder.described()}: not a checkpoint: {MARKER_FILE} is missing") from None
    except (ValueError, TypeError):
        raise UserError(f"{folder.described()}: {MARKER_FILE} is damaged") from None
    if state.format_version != FORMAT_VERSION:
        raise UserError(
            f"{folder.described()}: checkpoint format {state.format_version}; "
            f"this version reads {FORMAT_VERSION}"
        )
    return state


def read_checkpoint(folder: Storage, parts: tuple[str, ...] = (MODEL_FILE, OPTIMIZER_FILE)) -> Checkpoint:
    """A checkpoint with its hashes checked. Raises `UserError` naming the part that is torn."""
    state = read_state(folder)
    tensors: dict[str, dict[str, Tensor]] = {MODEL_FILE: {}, OPTIMIZER_FILE: {}}
    for part in parts:
        try:
            data = folder.read(part)
        except FileNotFoundError:
            raise UserError(f"{folder.described()}: {part} is missing") from None
        if hashlib.sha256(data).hexdigest() != state.files.get(part):
            raise UserError(f"{folder.described()}: {part} does not match its hash in {MARKER_FILE}")
        tensors[part] = safetensors.torch.load(data)
    name = folder.name
    return Checkpoint(name, state, tensors[MODEL_FILE], tensors[OPTIMIZER_FILE])


def read_newest(checkpoints: Storage, warn: Callable[[str], None]) -> Checkpoint | None:
    """The newest whole checkpoint, or None where there is none yet.

    A torn one is named through `warn` and the one before is tried. Where all are torn, `JobError` is
    raised rather than training begun anew over what may still be mended.
    """
    names = list_checkpoints(checkpoints)
    committed = [name for name in names if checkpoints.child(name).exists(MARKER_FILE)]
    for name in reversed(names):
        if name not in committed:
            # Killed while writing: never was a checkpoint, so nothing is lost by passing over it.
            warn(f"checkpoint {name} was never finished and is not used")
            continue
        try:
            return read_checkpoint(checkpoints.child(name))
        except UserError as error:
            warn(f"checkpoint {name} is refused: {error.message}")
    if committed:
        raise JobError(
            f"{checkpoints.described()}: none of the {len(committed)} checkpoints is whole",
            "restore one from a backup, or start a new run with another --name",
        )
    return None


def load_model_tensors(model: Any, tensors: Mapping[str, Tensor], origin: str) -> None:
    """Load weights strictly. Raises `UserError` naming the first parameter that does not fit."""
    own = model.state_dict()
    missing = sorted(set(own) - set(tensors))
    unknown = sorted(set(tensors) - set(own))
    if missing or unknown:
        what = f"lacks {missing[0]}" if missing else f"has {unknown[0]}, which the model does not"
        raise UserError(f"{origin}: the weights do not fit this configuration: the checkpoint {what}")
    for name, value in own.items():
        if value.shape != tensors[name].shape:
            raise UserError(
                f"{origin}: the weights do not fit this configuration: {name} is "
                f"{tuple(tensors[name].shape)} there and {tuple(value.shape)} here"
            )
    model.load_state_dict(dict(tensors))
