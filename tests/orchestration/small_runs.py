"""A small dataset and a small model, and how to run and compare them; imported by several test modules."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import psutil
import safetensors.torch
import torch
import yaml

from mpma.data.dataset_writing import write_dataset
from mpma.data.images import read_grey
from mpma.data.sources.phantom import PhantomSource

RECIPE: dict[str, Any] = {
    "image": {
        "size": 64,
        "backbone": "vit_tiny_patch16_224",
        "width": 32,
        "layers": 1,
        "heads": 2,
        "decoder_width": 16,
        "decoder_layers": 1,
        "decoder_heads": 2,
    },
    "report": {"max_tokens": 64, "layers": 1, "width": 32, "heads": 2},
    "memory": {"slots": 32, "top_k": 8, "heads": 2, "dropout": 0.1},
    "fusion": {"layers": 1, "heads": 2},
    "alignment": {"width": 16, "group_size": 8, "unmasked_tail": 0.2},
    "training": {"steps": 12, "batch_size": 16, "checkpoint_every_steps": 4, "log_every_steps": 1},
    "validation": {
        "every_steps": 6,
        "gallery_size": 32,
        "probe_train_pairs": 64,
        "loss_pairs": 16,
        "visual_gain_pairs": 32,
    },
    "pictures": {"enabled": False},
}

TIMINGS = ("pairs_per_second", "data_wait_fraction")


def recipe(**training: Any) -> dict[str, Any]:
    """The small recipe with keys of its training section replaced."""
    return {**RECIPE, "training": {**RECIPE["training"], **training}}


def phantom_dataset(path: Path, train: int = 120, val: int = 40) -> Path:
    """A dataset of small phantom pairs, made in this process."""
    source = PhantomSource(train, val, 8, 64, 0)

    def rows(split: str) -> Iterator[dict[str, Any]]:
        for item in source.items():
            if item.split == split:
                image = source.load_image(item)
                height, width = read_grey(image).shape
                yield {
                    **{name: getattr(item, name) for name in ("pair_id", "patient_id", "study_id", "report")},
                    **{name: getattr(item, name) for name in ("findings", "impression", "view", "license")},
                    "image": image,
                    "width": width,
                    "height": height,
                    "labels": list(item.labels or ()),
                    "source": "phantom",
                }

    write_dataset(path, {split: rows(split) for split in ("train", "val", "test")}, pairs_per_shard=64)
    return path


class Command:
    """A program of this project in a process group of its own."""

    def __init__(
        self,
        log: Path,
        *arguments: str,
        environment: Mapping[str, str] | None = None,
        folder: Path | None = None,
    ) -> None:
        self.log = log
        command = [sys.executable, "-m", *arguments]
        with self.log.open("w") as stream:
            self.process = subprocess.Popen(
                command,
                env=environment,
                cwd=folder,
                stdout=stream,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def wait(self, seconds: float = 240) -> int:
        """Exit code at its end."""
        try:
            return self.process.wait(timeout=seconds)
        except subprocess.TimeoutExpired:
            self.kill()
            raise AssertionError(f"no end after {seconds} s:\n{self.output()}") from None

    def output(self) -> str:
        """What it printed."""
        return self.log.read_text()

    def until(self, condition: Callable[[], bool], seconds: float = 180) -> None:
        """Wait for a condition while the program runs."""
        end = time.monotonic() + seconds
        while not condition():
            if self.process.poll() is not None or time.monotonic() > end:
                self.kill()
                raise AssertionError(f"it did not come to that:\n{self.output()}")
            time.sleep(0.02)

    def until_or_end(self, condition: Callable[[], bool], seconds: float) -> None:
        """Wait for a condition, or for the program's end."""
        end = time.monotonic() + seconds
        while self.process.poll() is None and not condition():
            if time.monotonic() > end:
                self.kill()
                raise AssertionError(f"it did not come to that:\n{self.output()}")
            time.sleep(0.05)

    def kill(self) -> None:
        """SIGKILL to the driver, and to whatever Ray processes it leaves in its group."""
        family = []
        if self.process.poll() is None:
            family = psutil.Process(self.process.pid).children(recursive=True)
            os.kill(self.process.pid, signal.SIGKILL)
            self.process.wait()
        for member in family:
            try:
                member.kill()
            except psutil.NoSuchProcess:
                continue
        psutil.wait_procs(family, timeout=20)

    def actors(self, name: str) -> list[psutil.Process]:
        """The processes of its Ray actors of a class."""
        found = []
        try:
            family = psutil.Process(self.process.pid).children(recursive=True)
        except psutil.NoSuchProcess:
            return []
        for process in family:
            try:
                if name in " ".join(process.cmdline()):
                    found.append(process)
            except (psutil.NoSuchProcess, psutil.ZombieProcess):
                continue
        return found


class Program(Command):
    """`python -m orchestration.pretrain`."""

    def __init__(self, recipe_file: Path, data: Path, runs: Path, name: str, *arguments: str) -> None:
        super().__init__(
            runs.parent / f"{name}-{time.monotonic_ns()}.log",
            *("orchestration.pretrain", "--config", str(recipe_file), "--data", str(data)),
            *("--runs", str(runs), "--name", name, "--no-dashboard", *arguments),
        )

    def workers(self) -> list[psutil.Process]:
        """The processes of its Ray Train workers."""
        return self.actors("RayTrainWorker")


def write_recipe(path: Path, tree: dict[str, Any]) -> Path:
    """A recipe file."""
    path.write_text(yaml.safe_dump(tree))
    return path


def lines(run: Path) -> list[dict[str, Any]]:
    """metrics.jsonl without what depends on the clock; empty where there is none yet."""
    try:
        text = (run / "metrics.jsonl").read_text()
    except FileNotFoundError:
        return []
    whole = [line for line in text.splitlines(keepends=True) if line.endswith("\n")]
    return [{key: value for key, value in json.loads(line).items() if key not in TIMINGS} for line in whole]


def steps_done(run: Path) -> int:
    """Last step that metrics.jsonl tells of."""
    return max((line["step"] for line in lines(run) if "loss/total" in line), default=0)


def tensors(run: Path, step: int) -> dict[str, torch.Tensor]:
    """Weights and optimiser state of a checkpoint."""
    folder = run / "checkpoints" / f"step_{step:08d}"
    return {
        **safetensors.torch.load_file(folder / "model.safetensors"),
        **safetensors.torch.load_file(folder / "optimizer.safetensors"),
    }


def assert_same_run(one: Path, other: Path, step: int) -> None:
    """Every line of metrics and every tensor of the checkpoint of `step` are equal bit for bit."""
    assert lines(one) == lines(other)
    first, second = tensors(one, step), tensors(other, step)
    assert first.keys() == second.keys()
    for name, value in first.items():
        assert torch.equal(value, second[name]), name
