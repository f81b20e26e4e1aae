"""The run directory: what a run is, where it stands, and whether it may be continued.

Decisions: the resolved configuration is written before anything else and never changes but for the
keys that may; a finished run says so and is left alone; a changed configuration or other data under
a used name is refused with the keys that differ; two programs never work on one run (a lock on local
disks). Provenance holds versions and hardware, no host, user or path.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import platform
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, Final

import yaml

from mpma.config import MAY_CHANGE_ON_CONTINUE, ExperimentConfig, changed_keys, to_yaml, validate_tree
from mpma.data.storage import Storage, open_storage
from mpma.errors import UserError

CONFIG_FILE = "config.yaml"
PROVENANCE_FILE = "provenance.json"
FINISHED_FILE = "finished.json"
STOP_FILE = "stop_requested"
SAVE_FILE = "save_requested"
TOKENIZER_FILE = "tokenizer.json"
LOCK_FILE = ".lock"
CHECKPOINTS = "checkpoints"
PICTURES = "pictures"
# The parser in C takes a tenth of the time, which a thousand runs make seconds; where YAML was built
# without it the one in Python reads the same.
_LOADER: Final = getattr(yaml, "CSafeLoader", yaml.SafeLoader)

_NAME = re.compile(r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$")
_PACKAGES = (
    "torch",
    "torchvision",
    "timm",
    "transformers",
    "tokenizers",
    "ray",
    "pyarrow",
    "numpy",
    "pillow",
)


def check_name(name: str) -> str:
    """A run's name is one path part. Raises `UserError`."""
    if not _NAME.match(name):
        raise UserError(
            f"--name {name}: letters, digits, dot, dash and underscore are expected, at most 100, "
            "beginning with a letter or digit"
        )
    return name


def config_hash(config: ExperimentConfig) -> str:
    """Hash of the keys that may not change when a run is continued."""
    fixed = config.model_dump()
    for dotted in MAY_CHANGE_ON_CONTINUE:
        section, key, *_ = dotted.split(".")
        fixed[section].pop(key, None)
    return hashlib.sha256(json.dumps(fixed, sort_keys=True).encode()).hexdigest()[:16]


def parsed_config(text: bytes) -> ExperimentConfig:
    """A run's config.yaml. Raises `UserError` where it is not YAML or no configuration of this version."""
    try:
        # Both loaders are the safe one, in C or in Python.
        return validate_tree(yaml.load(text, Loader=_LOADER))  # noqa: S506
    except (yaml.YAMLError, UnicodeDecodeError):
        raise UserError(f"{CONFIG_FILE} is not YAML") from None


@dataclass(frozen=True)
class RunDirectory:
    """`runs/<name>/` on any filesystem."""

    folder: Storage

    @classmethod
    def at(cls, root: str | Path, name: str) -> RunDirectory:
        """The directory of a run under `root` (a path or URI)."""
        return cls(open_storage(root).child(check_name(name)))

    @classmethod
    def opened(cls, place: str | None) -> RunDirectory:
        """An existing run by its folder (a path or URI), as `--run` names it. Raises `UserError`."""
        if place is None:
            raise UserError("--run is missing", "name the folder of a run, such as --run runs/demo")
        run = cls(open_storage(place.rstrip("/")))
        if not run.exists():
            raise UserError(f"{place}: no run there", "train one first: python -m orchestration.pretrain")
        return run

    @property
    def name(self) -> str:
        """The run's name."""
        return self.folder.name

    @property
    def checkpoints(self) -> Storage:
        """Storage of the checkpoints."""
        return self.folder.child(CHECKPOINTS)

    def exists(self) -> bool:
        """Whether a run was begun here."""
        return self.folder.exists(CONFIG_FILE)

    def finished_steps(self) -> int | None:
        """Steps of the run if it was finished, else None."""
        if not self.folder.exists(FINISHED_FILE):
            return None
        try:
            return int(json.loads(self.folder.read(FINISHED_FILE))["steps"])
        except (ValueError, KeyError, TypeError):
            return None

    def stored_config(self) -> ExperimentConfig:
        """The configuration the run was begun with. Raises `UserError` where it cannot be read."""
        place = self.folder.described(CONFIG_FILE)
        try:
            return parsed_config(self.folder.read(CONFIG_FILE))
        except FileNotFoundError:
            raise UserError(f"{place}: cannot be read", "start a new run with another --name") from None
        except UserError as error:
            raise UserError(f"{place}: {error.message}", "start a new run with another --name") from None

    def begin_or_continue(self, config: ExperimentConfig, fingerprint: str) -> bool:
        """Write or check what the run is; return whether it continues.

        Raises `UserError` with the differing keys, or where the data are not those it was begun with.
        """
        if not self.exists():
            if self.folder.exists(CHECKPOINTS):
                raise UserError(
                    f"{self.folder.described()}: holds checkpoints but no {CONFIG_FILE}; it is not continued",
                    "take another --name",
                )
            self.folder.make_directory()
            self.folder.write(PROVENANCE_FILE, json.dumps(provenance(fingerprint), indent=1).encode())
            # The configuration comes last: a directory without it was never begun.
            self.folder.write(CONFIG_FILE, to_yaml(config).encode())
            return False
        stored = self.stored_config()
        differing = [key for key in changed_keys(stored, config) if key not in MAY_CHANGE_ON_CONTINUE]
        if config.data.path is None and stored.data.path is not None:
            differing.append("data.path")
        if differing:
            shown = ", ".join(sorted(differing)[:8]) + (" and more" if len(differing) > 8 else "")
            raise UserError(
                f"{self.name}: this run was begun with another configuration; these keys differ: {shown}",
                "take another --name, or leave the keys as they were",
            )
        if config.training.steps < stored.training.steps:
            raise UserError(
                f"{self.name}: training.steps may only grow when a run continues: "
                f"{stored.training.steps} before, {config.training.steps} now"
            )
        before = self._stored_fingerprint()
        if before is not None and before != fingerprint:
            raise UserError(
                f"{self.name}: this run was begun on data {before}; "
                f"{config.data.path or 'the phantom'} is {fingerprint}",
                "start a new run with training.initial_checkpoint to train on other data",
            )
        if stored != config:
            self.folder.write(CONFIG_FILE, to_yaml(config).encode())
        return True

    def keep_tokenizer(self, content: bytes) -> None:
        """Keep the tokeniser beside the weights, which mean nothing without it; an equal one is left."""
        if not self.folder.exists(TOKENIZER_FILE) or self.folder.read(TOKENIZER_FILE) != content:
            self.folder.write(TOKENIZER_FILE, content)

    def _stored_fingerprint(self) -> str | None:
        try:
            value = json.loads(self.folder.read(PROVENANCE_FILE)).get("data_fingerprint")
        except (FileNotFoundError, ValueError):
            return None
        return value if isinstance(value, str) else None

    def mark_finished(self, steps: int, closing: Mapping[str, Any]) -> None:
        """Say that the run reached its end, with its closing figures."""
        self.folder.write(
            FINISHED_FILE, json.dumps({"steps": steps, "closing": dict(closing)}, indent=1).encode()
        )

    def request_stop(self) -> None:
        """Ask the workers to save and end at the next step they agree on."""
        self.folder.write(STOP_FILE, b"")

    def stop_requested(self) -> bool:
        """Whether a stop was asked for."""
        return self.folder.exists(STOP_FILE)

    def clear_stop(self) -> None:
        """Forget an earlier request."""
        self.folder.remove(STOP_FILE)

    def request_save(self) -> None:
        """Ask the workers for a checkpoint at the next step they agree on; they go on after it."""
        self.folder.write(SAVE_FILE, b"")

    def save_requested(self) -> bool:
        """Whether a checkpoint was asked for and is not there yet."""
        return self.folder.exists(SAVE_FILE)

    def clear_save(self) -> None:
        """The checkpoint that was asked for is there, or no longer wanted."""
        self.folder.remove(SAVE_FILE)

    def lock(self) -> object:
        """Hold the run for this process; keep the result alive. Raises `UserError` where it is held.

        The kernel lets go of the lock when the process ends, however it ends.
        """
        return lock_folder(self.folder, f"{self.name}: another program is working on this run")


def lock_folder(folder: Storage, held: str) -> Any:
    """Hold a local folder for this process; keep the result alive. Raises `UserError(held)`.

    None on an object store, which has no locks.
    """
    if not folder.is_local:
        return None
    folder.make_directory()
    stream = (Path(folder.root) / LOCK_FILE).open("a")
    try:
        fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        stream.close()
        raise UserError(held) from None
    return stream


@contextmanager
def hold(folder: Storage, held: str) -> Iterator[None]:
    """Hold a local folder for a block. Raises `UserError(held)` where another program holds it."""
    stream = lock_folder(folder, held)
    try:
        yield
    finally:
        if stream is not None:
            stream.close()


def provenance(fingerprint: str) -> dict[str, Any]:
    """What a figure depends on beside the configuration."""
    versions = {}
    for package in _PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            versions[package] = "absent"
    try:
        own = metadata.version("mpma")
    except metadata.PackageNotFoundError:
        own = "not installed"
    return {
        "mpma": own,
        "git_revision": _git_revision(),
        "python": sys.version.split()[0],
        "packages": versions,
        "hardware": {"cpu": _processor(), "cores": os.cpu_count(), "gpus": _gpus()},
        "data_fingerprint": fingerprint,
    }


def _git_revision() -> str | None:
    """Revision of the source tree, with `+` where it has uncommitted changes; None outside one."""
    here = Path(__file__).resolve().parents[2]
    try:
        revision = subprocess.run(
            ["git", "-C", str(here), "rev-parse", "HEAD"],
            capture_output=True,
            text=True,
            timeout=10,
            check=True,
        ).stdout.strip()
        changes = subprocess.run(
            ["git", "-C", str(here), "status", "--porcelain"],
            capture_output=True,
            text=True,
            timeout=10,
            check=True,
        ).stdout
    except (OSError, subprocess.SubprocessError):
        return None
    return revision + ("+" if changes else "")


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def _gpus() -> list[str]:
    import torch

    return [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
