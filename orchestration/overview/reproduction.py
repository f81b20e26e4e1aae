"""How a run is made again: the commands, and whether this checkout and these data are the ones it was made
with."""

from __future__ import annotations

import shlex
from dataclasses import dataclass

from mpma.data.dataset import Dataset
from mpma.data.storage import Storage
from mpma.errors import UserError
from mpma.training.run_directory import CONFIG_FILE, PROVENANCE_FILE, provenance
from orchestration.overview.entries import stored_config, stored_json
from orchestration.overview.searches import part
from orchestration.search.journal import JOURNAL_FILE


@dataclass(frozen=True)
class Reproduction:
    """Commands, and what differs here from what they need."""

    commands: tuple[str, ...]
    train: tuple[str, ...]
    """The command that trains, as words."""
    differences: tuple[str, ...]


def reproduction(run: Storage, name: str, runs: str) -> Reproduction:
    """Of the run in a folder, into the run `name` below `runs`. Raises `UserError` where there is none."""
    if not run.exists(CONFIG_FILE):
        if run.exists(JOURNAL_FILE):
            raise UserError(
                f"{run.described()}: a search; no run there",
                f"name one of its trials, such as {run.described('trials/00000')}, or start its best.yaml: "
                f"python -m orchestration.pretrain --config {run.described('best.yaml')}",
            )
        raise UserError(f"{run.described()}: no run there", "name the folder of a run, such as runs/demo")
    config = stored_config(run)
    made = stored_json(run, PROVENANCE_FILE)
    if not made:
        raise UserError(
            f"{run.described(PROVENANCE_FILE)}: missing or damaged, so what made the run is unknown"
        )
    revision = str(made.get("git_revision") or "")
    train = ["python", "-m", "orchestration.pretrain", "--config", run.child(CONFIG_FILE).location]
    train += ["--runs", runs, "--name", name]
    commands = []
    if revision:
        commands.append(f"git checkout {revision.rstrip('+')}")
        commands.append("make setup")
    commands.append(shlex.join(train))
    here = provenance("")
    differences = []
    if revision.endswith("+"):
        differences.append("the run's source tree had uncommitted changes, which nobody has kept")
    if revision != here["git_revision"]:
        differences.append(f"code: {revision or 'unknown'} then, {here['git_revision'] or 'unknown'} here")
    for package, version in part(made, "packages").items():
        if here["packages"].get(package) != version:
            differences.append(f"{package}: {version} then, {here['packages'].get(package)} here")
    if made.get("python") != here["python"]:
        differences.append(f"python: {made.get('python')} then, {here['python']} here")
    hardware = part(made, "hardware")
    for piece in ("cpu", "gpus"):
        if hardware.get(piece) != here["hardware"][piece]:
            differences.append(f"{piece}: {hardware.get(piece)} then, {here['hardware'][piece]} here")
    if config.data.path is not None:
        try:
            fingerprint = Dataset.open(config.data.path).fingerprint
        except UserError as error:
            differences.append(f"data: {error.message}")
        else:
            if fingerprint != made.get("data_fingerprint"):
                differences.append(
                    f"data: {made.get('data_fingerprint')} then, {fingerprint} at data.path now"
                )
    return Reproduction(tuple(commands), tuple(train), tuple(differences))
