"""Ray Train's loop beside the same loop in plain PyTorch, at MRM's sizes.

    python -m benchmarks.ray_loop [--way group|here] [--pairs 10] [--steps 1] [--quick] [--out FILE]

Both loops are alive at once, each in its own process, and take turns: a token goes to and fro through a
local socket, who has it does `--steps` optimiser steps, the other is blocked. So both meet the same machine,
and the figures are ratios of neighbouring turns: their geometric mean, with a 95 % t interval over the
logarithms.

- The Ray side is the program itself: `orchestration.pretraining.pretrain` with Ray, its dashboard, the
  stream, the training loop with its log, TensorBoard and gauges. `group`: one worker through Ray Train's
  worker group, the program following it from outside; `here`: one worker in the program's process, as it
  chooses for itself. A turn is a whole round of the loop: the log of the step before, the wait for a batch,
  the step. Figures of `here` end in `/here`.
- The plain side knows no Ray: torch's DataLoader (one process that reads row groups and runs the same
  collate, two batches ahead), forward, backward, clipping, fused AdamW with the same two groups, the loss
  read every ten steps. Same model, same sizes, same number of threads.

What else the Ray side keeps running (raylet, GCS, dashboard, agents, the program beside its worker) is awake
in both sides' turns and slows both. Its CPU time is measured; `with_others` is the ratio less that share, as
if the plain loop alone were spared it.

Model and batch: ViT-B/16, crops of 448 px encoded at 224, a quarter of the patches visible; text of 6 layers
of 384, 100 tokens; vocabulary 30,000; batch 8, fp32. Pairs are noise in JPEG of 512 px, made by this program.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from multiprocessing.connection import Client, Connection, Listener
from pathlib import Path
from typing import Any, Final
from unittest import mock

import psutil

from benchmarks import figures

FIGURES: Final = (
    "ray_loop/over_plain*",
    "ray_loop/data_wait_fraction*",
    "ray_loop/others_cpu_share*",
    "ray_loop/ray_pairs_per_second*",
    "ray_loop/plain_pairs_per_second*",
)
ARGUMENTS: Final = ("--steps", "3", "--warm-up", "4")
RAY_NICENESS: Final = 15
"""What Ray adds to its workers' niceness; the plain side gets the same, or others slow one side alone."""
SIZES: Final = (
    "image.target_scale=2",
    "report.max_tokens=100",
    # An archive does not fit the memory: every window of row groups is read anew.
    "data.cache_bytes=0",
    "training.batch_size=8",
    "training.precision=fp32",
    "training.device=cpu",
    # Before the first turn and after the last; of the smallest size.
    "validation={every_steps: 100000, gallery_size: 2, loss_pairs: 2, probe_train_pairs: 10}",
    "validation={visual_gain_pairs: 2, batch_size: 8}",
    "training.checkpoint_every_steps=100000",
    # The last steps of a run see the whole image, which the plain side does not.
    "alignment.unmasked_tail=0",
    "pictures.enabled=false",
)
QUICK: Final = (
    "image={width: 192, layers: 2, heads: 3, decoder_width: 64, decoder_layers: 1, decoder_heads: 2}",
    "report={layers: 1, width: 96, heads: 2}",
    "memory={slots: 64, top_k: 8, heads: 2}",
    "fusion.heads=2",
)


@dataclass(frozen=True)
class Schedule:
    """Who works when: warm-up steps of each side, then `turns` of `steps` each, the Ray side first."""

    place: str
    """Folder of the socket and of what both sides write down."""
    warm_up: int
    turns: int
    steps: int
    program: int
    """Process id of the program, whose descendants are all there is of Ray."""

    @property
    def total(self) -> int:
        """Steps of one side."""
        return self.warm_up + self.turns * self.steps

    @property
    def address(self) -> str:
        """Path of the socket."""
        return f"{self.place}/token"


@dataclass
class Record:
    """What one side notes of its turns."""

    seconds: list[float] = field(default_factory=list)
    waited: list[float] = field(default_factory=list)
    """Seconds of each turn in which the loop waited for a batch."""
    busy: list[float] = field(default_factory=list)
    """CPU seconds of each turn: all threads, and on the plain side the loader's process."""
    facts: dict[str, Any] = field(default_factory=dict)

    def write(self, path: Path) -> None:
        path.write_text(json.dumps(vars(self)))


def cpu_seconds(root: int, leave_out: tuple[int, ...] = ()) -> dict[str, float]:
    """CPU seconds so far of a process and its descendants by name, some of them with theirs left out."""
    found: dict[str, float] = {}
    try:
        process = psutil.Process(root)
        if root in leave_out:
            return {}
        times = process.cpu_times()
        words = process.cmdline()
        children = process.children()
    except psutil.NoSuchProcess:
        return {}
    name = next((Path(word).name for word in reversed(words) if word and not word.startswith("-")), "?")
    found[f"{(words[0] if words and words[0].startswith('ray') else name).split()[0]} {root}"] = (
        times.user + times.system
    )
    for child in children:
        found |= cpu_seconds(child.pid, leave_out)
    return found


def facts_of_process() -> dict[str, Any]:
    """What might differ between the sides."""
    import torch

    names = ("OMP_NUM_THREADS", "GOMP_SPINCOUNT", "MALLOC_ARENA_MAX", "LD_PRELOAD")
    return {
        "threads": torch.get_num_threads(),
        "niceness": os.nice(0),
        **{name: os.environ[name] for name in names if os.environ.get(name)},
    }


# The Ray side.


class RaySide:
    """Takes turns at the end of every step of the real loop."""

    def __init__(self, schedule: Schedule) -> None:
        self._schedule = schedule
        self._record = Record()
        self._connection: Connection | None = None
        self._plain = 0
        self.stream: Any = None

    def after_step(self, step: int) -> None:
        """Hand the token over where a turn ends, and wait until it comes back."""
        schedule = self._schedule
        if step < schedule.warm_up or (step - schedule.warm_up) % schedule.steps:
            return
        if self._connection is None:
            self._connection = Client(schedule.address, "AF_UNIX")
            self._plain = self._connection.recv()
            self._record.facts = facts_of_process()
        else:
            self._record.seconds.append(time.perf_counter() - self._began)
            self._record.waited.append(self.stream.wait_seconds - self._waited)
            self._record.busy.append(time.process_time() - self._busy)
        self._connection.send(step)
        self._connection.recv()
        if step == schedule.warm_up:
            self._others, self._first = self._others_seconds(), time.perf_counter()
        if step == schedule.total:
            spent = (time.perf_counter() - self._first) * (os.cpu_count() or 1)
            now = self._others_seconds()
            shares = {name: (now[name] - self._others.get(name, 0.0)) / spent for name in now}
            self._record.facts["others"] = shares
            self._record.write(Path(schedule.place, "ray.json"))
            self._connection.close()
        self._waited, self._busy = self.stream.wait_seconds, time.process_time()
        self._began = time.perf_counter()

    def _others_seconds(self) -> dict[str, float]:
        """CPU seconds, by process, of all that runs for the Ray side besides the loop's own process."""
        own = os.getpid()
        if own != self._schedule.program:
            return cpu_seconds(self._schedule.program, (self._plain, own))
        found = {}
        for child in psutil.Process().children():
            found |= cpu_seconds(child.pid, (self._plain,))
        return found


def take_turns(events: Any, schedule: Schedule) -> ExitStack:
    """Make the loop's events of this process end turns, and keep its stream in sight, until it is closed."""
    from orchestration.assembly import Parts

    side = RaySide(schedule)
    say, open_stream = events.progress, Parts.open_stream

    def progress(self: Any, step: int) -> None:
        say(self, step)
        side.after_step(step)

    def opened(self: Any, *arguments: Any) -> Any:
        side.stream = open_stream(self, *arguments)
        return side.stream

    changes = ExitStack()
    changes.enter_context(mock.patch.object(events, "progress", progress))
    changes.enter_context(mock.patch.object(Parts, "open_stream", opened))
    return changes


def group_loop(settings: dict[str, Any], schedule: Schedule) -> None:
    """The worker group's function, with turns."""
    from orchestration import worker

    with take_turns(worker.WorkerEvents, schedule):
        worker.train_loop(settings)


def run_ray_side(config: Any, schedule: Schedule, way: str) -> None:
    """The program, from its start to its last checkpoint."""
    import dataclasses

    from orchestration import cluster, pretraining

    plan_layout = cluster.plan_layout

    def in_group(*arguments: Any) -> cluster.Layout:
        return dataclasses.replace(plan_layout(*arguments), in_process=False, cpus_per_worker=1.0)

    request = pretraining.Request(config, way, f"{schedule.place}/runs", None, None, True, time.time())
    with ExitStack() as changes:
        if way == "group":
            # The program would train one worker in its own process.
            changes.enter_context(mock.patch.object(cluster, "plan_layout", in_group))
            loop = partial(group_loop, schedule=schedule)
            changes.enter_context(mock.patch.object(pretraining, "train_loop", loop))
        else:
            changes.enter_context(take_turns(pretraining._HereEvents, schedule))
        pretraining.pretrain(request)


# The plain side.


def plain_side(tree: dict[str, Any], schedule: Schedule, threads: int, niceness: int) -> None:
    """The loop as one writes it without Ray, in turns; a process of its own."""
    import torch

    from mpma.config import validate_tree
    from mpma.data.dataset import Dataset
    from mpma.training.schedule import learning_rate
    from orchestration.assembly import Parts

    os.nice(niceness)
    torch.set_num_threads(threads)
    config = validate_tree(tree)
    training = config.training
    assert config.data.path is not None
    parts = Parts(config, Dataset.open(config.data.path))
    model, _ = parts.build_model()
    # Watched by the Ray side where it writes a line; here there is nothing to write it to.
    model.watch_memory = False
    plain = model.no_weight_decay_names()
    named = [(name, value) for name, value in model.named_parameters() if value.requires_grad]
    optimizer = torch.optim.AdamW(
        [
            {"params": [value for name, value in named if name not in plain]},
            {"params": [value for name, value in named if name in plain], "weight_decay": 0.0},
        ],
        weight_decay=training.weight_decay,
        betas=(training.beta1, training.beta2),
        fused=True,
    )
    batches = iter(
        torch.utils.data.DataLoader(
            _rows(parts, config), batch_size=None, num_workers=1, multiprocessing_context="spawn"
        )
    )
    record, own = Record(), os.getpid()
    losses = []
    waited, step = 0.0, 0

    def work(steps: int) -> None:
        nonlocal waited, step
        for _ in range(steps):
            began = time.perf_counter()
            batch = next(batches)
            waited += time.perf_counter() - began
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(step, config)
            optimizer.zero_grad(set_to_none=True)
            loss = model(batch).total
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), training.gradient_clip)
            optimizer.step()
            step += 1
            if step % 10 == 0:
                losses.append(loss.item())

    with Listener(schedule.address, "AF_UNIX") as listener, listener.accept() as token:
        token.send(own)
        record.facts = facts_of_process()
        token.recv()
        work(schedule.warm_up)
        token.send(None)
        for _ in range(schedule.turns):
            token.recv()
            before, busy, began = waited, sum(cpu_seconds(own).values()), time.perf_counter()
            work(schedule.steps)
            record.seconds.append(time.perf_counter() - began)
            record.waited.append(waited - before)
            record.busy.append(sum(cpu_seconds(own).values()) - busy)
            token.send(None)
    record.facts["ray_imported"] = "ray" in sys.modules
    record.write(Path(schedule.place, "plain.json"))


def _rows(parts: Any, config: Any) -> Any:
    """Whole row groups in a shuffled order, collated in the loader's process."""
    from benchmarks.stream_pairs import CollatePairs, Split
    from benchmarks.stream_peers import WindowedRows
    from mpma.data.batches import Collator

    collator = Collator(
        parts.tokenizer, config.image, config.report, config.training.seed, parts.target_scale, 1
    )
    split = Split(parts.dataset.storage, list(parts.dataset.shards("train")))
    return WindowedRows(split, CollatePairs(collator), config.training.batch_size)


# The figures.


def interval(logarithms: list[float]) -> tuple[float, float]:
    """95 % t interval of the geometric mean of ratios, from their logarithms."""
    from scipy import stats

    mean, spread = statistics.fmean(logarithms), statistics.stdev(logarithms)
    half = stats.t.ppf(0.975, len(logarithms) - 1) * spread / math.sqrt(len(logarithms))
    return math.exp(mean - half), math.exp(mean + half)


def mean_ratio(name: str, ratios: list[float], settings: dict[str, Any]) -> figures.Figure:
    """The geometric mean, which is the same whichever side is on top."""
    logarithms = [math.log(ratio) for ratio in ratios]
    low, high = (round(bound, 4) for bound in interval(logarithms))
    found = figures.of(name, ratios, figures.RATIO, settings)
    mean = round(math.exp(statistics.fmean(logarithms)), 4)
    return figures.Figure(**{**vars(found), "value": mean, "interval": (low, high)})


def read_figures(schedule: Schedule, way: str, config: Any) -> Iterator[figures.Figure]:
    """Figures of what both sides wrote down."""
    ray, plain = (
        Record(**json.loads(Path(schedule.place, f"{side}.json").read_text())) for side in ("ray", "plain")
    )
    shares = ray.facts.pop("others")
    others = sum(shares.values())
    largest = sorted(shares.items(), key=lambda entry: -entry[1])[:8]
    variant = "" if way == "group" else f"/{way}"
    settings = {
        "batch": config.training.batch_size,
        "steps_per_turn": schedule.steps,
        "plain_data": "torch DataLoader, 1 process",
        "ray_side": ray.facts,
        "plain_side": plain.facts,
    }
    print("seconds of the turns, Ray's and plain:", file=sys.stderr)
    for ours, theirs in zip(ray.seconds, plain.seconds, strict=True):
        print(f"{ours:7.3f} {theirs:7.3f}", file=sys.stderr)
    ratios = [theirs / ours for ours, theirs in zip(ray.seconds, plain.seconds, strict=True)]
    yield mean_ratio(f"ray_loop/over_plain{variant}", ratios, settings)
    less = [ratio * (1 - others) for ratio in ratios]
    yield mean_ratio(f"ray_loop/over_plain_with_others{variant}", less, settings)
    by_cpu = [theirs / ours for ours, theirs in zip(ray.busy, plain.busy, strict=True)]
    yield mean_ratio(f"ray_loop/over_plain_by_cpu_time{variant}", by_cpu, settings)
    waits = [waited / seconds for waited, seconds in zip(ray.waited, ray.seconds, strict=True)]
    yield figures.of(f"ray_loop/data_wait_fraction{variant}", waits, figures.FRACTION, settings)
    named = {name.rpartition(" ")[0]: round(share, 4) for name, share in largest}
    yield figures.of(f"ray_loop/others_cpu_share{variant}", [others], figures.FRACTION, {"largest": named})
    for name, side in (("ray", ray), ("plain", plain)):
        rates = [config.training.batch_size * schedule.steps / seconds for seconds in side.seconds]
        yield figures.of(f"ray_loop/{name}_pairs_per_second{variant}", rates, "pairs/s", settings)


def measure(options: argparse.Namespace, way: str) -> list[figures.Figure]:
    """One way of running the Ray side, beside a plain side of its own."""
    import multiprocessing

    # Not at the top: they import torch, which must find the environment that `main` sets.
    from benchmarks.synthetic_pairs import write_pairs
    from mpma.config import load_config

    with tempfile.TemporaryDirectory(prefix="ray_loop-") as place:
        schedule = Schedule(place, options.warm_up, options.pairs, options.steps, os.getpid())
        data = write_pairs(Path(place, "data"), 128 if options.quick else 512)
        overrides = [
            *SIZES,
            *(QUICK if options.quick else ()),
            f"data.path={data}",
            f"training.steps={schedule.total}",
            f"training.threads_per_worker={options.threads}",
        ]
        config = load_config(None, overrides).config
        niceness = RAY_NICENESS if way == "group" else 0
        plain = multiprocessing.get_context("spawn").Process(
            target=plain_side, args=(config.model_dump(), schedule, options.threads, niceness)
        )
        plain.start()
        try:
            # Its imports and its model are made before the Ray side begins.
            while not Path(schedule.address).exists():
                assert plain.is_alive(), "the plain side ended before its first turn"
                time.sleep(0.2)
            run_ray_side(config, schedule, way)
            plain.join(timeout=60)
        finally:
            plain.kill()
        return list(read_figures(schedule, way, config))


def main() -> None:
    # Read when torch is imported, as the program sets it for itself.
    os.environ.setdefault("GOMP_SPINCOUNT", "30000")
    parser = figures.options(__doc__)
    parser.add_argument("--way", choices=("group", "here"), default=None, help="one of both alone")
    parser.add_argument("--pairs", type=int, default=10, help="turns of each side")
    parser.add_argument("--steps", type=int, default=1, help="steps of a turn")
    parser.add_argument("--warm-up", type=int, default=2, help="steps of each side before the first turn")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    options = parser.parse_args()
    # By the module's own name, so that workers import its functions instead of getting them by value.
    from benchmarks import ray_loop

    with figures.report("ray_loop", options) as tell:
        for way in (options.way,) if options.way else ("group", "here"):
            for figure in ray_loop.measure(options, way):
                tell(figure)


if __name__ == "__main__":
    main()
