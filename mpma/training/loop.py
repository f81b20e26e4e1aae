"""The training loop of one worker: the same code for one worker and for many, with or without Ray.

Decisions: everything that decides a number is a function of the step, so a run continued from a
checkpoint repeats the unbroken run bit for bit on CPU. At a step that is due for both, validation and
the lines of metrics.jsonl come before the checkpoint, whose marker therefore vouches for them. Losses
stay on the device between log lines; whether they are finite is asked of the device only there and
before a checkpoint, so no step waits for it and no damaged weights are ever saved. What the loop has
to say goes to `Events`; terminal, TensorBoard and Ray's metrics hang there.

The untrained model is validated right after the first step, on a copy from before it: what a step needs and
does not get (memory, a batch that fits) is then known in seconds, not after minutes of validation. Its line
still is the first of metrics.jsonl. Sharded weights are not copied; there validation comes first.
"""

from __future__ import annotations

import contextlib
import copy
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from mpma.config import ExperimentConfig
from mpma.data.batches import DIGEST_MODULUS, Batch, pair_digests
from mpma.errors import JobError
from mpma.model.widening import widened
from mpma.training import checkpoint as checkpoints
from mpma.training.allocator import give_back_freed_memory
from mpma.training.compile_cache import keep_compiled_code
from mpma.training.metrics_log import MetricsLog
from mpma.training.optimizer import (
    build_optimizer,
    load_optimizer_tensors,
    optimizer_tensors,
    set_learning_rate,
)
from mpma.training.ownership import Claim, SupersededError
from mpma.training.parallel import average_over_workers, model_tensors, unwrap, wrap
from mpma.training.run_directory import RunDirectory, config_hash
from mpma.training.schedule import learning_rate
from mpma.training.step import LOSS_NAMES, training_step

StepNumber = int


class Stream(Protocol):
    """Batches of one worker in the order of steps."""

    wait_seconds: float
    """Seconds that the loop has waited for batches so far."""

    def __iter__(self) -> Iterator[Batch]: ...
    def __next__(self) -> Batch: ...
    def close(self) -> None: ...


class Validator(Protocol):
    """Validation on held-out patients; called on every rank, equal result on each."""

    def run(self, model: Any, step: int) -> dict[str, float]: ...


class Events(Protocol):
    """Where the loop reports; rank 0 alone has listeners."""

    def note(self, text: str) -> None:
        """A line for the person: what was chosen and why, what was refused."""

    def line(self, values: dict[str, Any]) -> None:
        """A line of metrics.jsonl, as it was written."""

    def progress(self, step: int) -> None:
        """A step is done."""

    def saved(self, step: int, seconds: float) -> None:
        """A checkpoint was written whole, in so many seconds."""


class Silent:
    """Events of the ranks that do not speak."""

    def note(self, text: str) -> None:
        pass

    def line(self, values: dict[str, Any]) -> None:
        pass

    def progress(self, step: int) -> None:
        pass

    def saved(self, step: int, seconds: float) -> None:
        pass


@dataclass(frozen=True)
class Task:
    """What one worker needs to train."""

    config: ExperimentConfig
    run: RunDirectory
    data_fingerprint: str
    train_pairs: int
    device: torch.device
    rank: int
    world: int
    precision: str
    """`fp32`, `bf16` or `fp64`."""
    build_model: Callable[[], tuple[Any, dict[str, Any]]]
    """Makes the model and what must be known to build it anew; deterministic in the configuration."""
    build_validator: Callable[[], Validator]
    open_stream: Callable[[StepNumber], Stream]
    """Batches from a step on."""
    draw_pictures: Callable[[Any, int], None] | None = None
    """Writes the pictures of a step; None: none are wanted."""
    stop_asked: Callable[[], bool] = lambda: False
    """Whether this process was told to end (Ctrl-C, SIGTERM, time limit, a node that is about to go)."""
    one_of_a_group: bool = False
    """Whether this worker may be replaced while it still runs, and so must claim the run (ownership.py)."""
    until: int | None = None
    """Step at which this session validates, saves and ends, the run being longer; None: at its end. The
    schedules span the whole run, so the numbers are those of a run that was never interrupted."""
    validate_untrained: bool = True
    """Whether step 0 is validated: the baseline of a single run, the same for most trials of a search."""


@dataclass(frozen=True)
class Outcome:
    """How the loop ended."""

    step: int
    finished: bool
    """False: it was told to stop, or came to `Task.until`; it saved and ended early."""


class TrainingLoop:
    """One worker's run from its newest checkpoint to the end, or to where it is told to stop."""

    def __init__(self, task: Task, events: Events | None = None) -> None:
        self.task = task
        self.config = task.config
        self.events: Events = events or Silent()
        self.model, self.model_facts = task.build_model()
        if task.precision == "fp64":
            self.model.double()
        self.step = 0
        restored = self._restore_weights()
        self.untrained = self._copy_of_untrained()
        """The model before its first step, on the host, until it is validated."""
        self.module = wrap(self.model.to(task.device), self.config, task.device, task.world, task.precision)
        self.bare = unwrap(self.module)
        self.optimizer = build_optimizer(
            self.bare.named_parameters(), self.bare.no_weight_decay_names(), self.config.training
        )
        if restored is not None:
            load_optimizer_tensors(self.optimizer, self.bare.named_parameters(), restored.optimizer)
        self.stepper: torch.nn.Module = self.module
        if self.config.training.compile:
            # Imported here: the compiler takes a second to import, for those who do not use it too.
            from mpma.training.compiled import CompiledModel

            keep_compiled_code()
            self.stepper = CompiledModel(self.module)
        self.first_bad_step = torch.full((), -1, dtype=torch.int64, device=task.device)
        self.log: MetricsLog | None = None
        self.claim: Claim | None = None

    def run(self) -> Outcome:
        """Train. Raises `JobError` where a loss is not finite or the disk is full."""
        task, training = self.task, self.config.training
        validator = task.build_validator()
        if task.rank == 0:
            # A disk has a lock that keeps other programs out (RunDirectory.lock); an object store has none.
            if task.one_of_a_group or not task.run.folder.is_local:
                self.claim = Claim(task.run.folder)
            task.run.clear_save()
            self.log = MetricsLog(task.run.folder, self.step)
        try:
            with contextlib.closing(task.open_stream(self.step)) as stream:
                if self.step == 0 and task.validate_untrained and self.untrained is None:
                    self._validate(validator, self.bare, 0)
                outcome = self._steps(stream, validator)
            if outcome.finished and task.rank == 0:
                task.run.mark_finished(training.steps, {})
            return outcome
        except SupersededError:
            if self.log is not None:
                self.log.abandon()
            self.log = None
            raise
        finally:
            if self.log is not None:
                self.log.close()

    def _steps(self, stream: Stream, validator: Validator) -> Outcome:
        training, task = self.config.training, self.task
        interval = _Interval(stream, self.step)
        end = training.steps if task.until is None else min(training.steps, task.until)
        while self.step < end:
            batch = next(stream)
            set_learning_rate(self.optimizer, learning_rate(self.step, self.config))
            upcoming = self.step + 1
            last = upcoming == end
            log_due = last or upcoming % training.log_every_steps == 0
            # Watching the memory costs a few products, so it is watched where it is written down.
            self.bare.watch_memory = log_due
            every = training.gradient_norms_every_steps
            result = training_step(
                self.stepper,
                self.bare,
                self.optimizer,
                batch,
                self.config,
                step=self.step,
                rank=task.rank,
                device=task.device,
                precision=task.precision,
                measure_terms=log_due and every > 0 and upcoming % every == 0,
            )
            self.step += 1
            bad = ~torch.isfinite(result.total + result.gradient_norm)
            self.first_bad_step = torch.where((self.first_bad_step < 0) & bad, self.step, self.first_bad_step)
            self.events.progress(self.step)
            if self.untrained is not None:
                with interval.paused():
                    self._validate(validator, self.untrained.to(task.device), 0)
                self.untrained = None

            validation_due = last or self.step % self.config.validation.every_steps == 0
            checkpoint_due = last or self.step % training.checkpoint_every_steps == 0
            stop, save = self._agreed(log_due)
            if log_due or checkpoint_due or stop or save:
                self._check_finite()
            if log_due:
                self._write_line(batch, result, interval)
            if validation_due:
                with interval.paused():
                    self._validate(validator, self.bare, self.step)
            if checkpoint_due or stop or save:
                with interval.paused():
                    self._save()
            if validation_due or checkpoint_due:
                # Both take for a moment what no step needs, and a step's memory is kept (allocator.py).
                with interval.paused():
                    give_back_freed_memory()
            if stop and not last:
                return Outcome(self.step, finished=False)
        return Outcome(self.step, finished=self.step >= training.steps)

    # -- what happens now and then ---------------------------------------------------------------

    def _write_line(self, batch: Batch, result: Any, interval: _Interval) -> None:
        task, training = self.task, self.config.training
        names = [name for name in LOSS_NAMES if result.losses.get(name) is not None]
        raw = torch.stack([widened(result.total), *(widened(result.losses[name]) for name in names)]).detach()
        raw = average_over_workers(raw, task.world)
        extra = sorted(result.diagnostics)
        values = torch.stack(
            [widened(result.gradient_norm), *(widened(result.diagnostics[name].detach()) for name in extra)]
        )
        numbers = torch.cat([raw, values.to(raw.device)]).tolist()
        seconds, waited, steps = interval.take(self.step)
        line: dict[str, Any] = {
            "step": self.step,
            "epoch": round(self.step * training.batch_size / task.train_pairs, 4),
            "pairs_seen": self.step * training.batch_size,
            "loss/total": numbers[0],
            **{f"loss/{name}": value for name, value in zip(names, numbers[1:], strict=False)},
            "learning_rate": learning_rate(self.step - 1, self.config),
            "gradient_norm": numbers[len(raw)],
            **dict(zip(extra, numbers[len(raw) + 1 :], strict=True)),
            "image_mask_ratio": 1 - batch.visible / batch.patch_order.shape[1],
            "batch_digest": self._batch_digest(batch),
            "workers": task.world,
            "pairs_per_second": round(steps * training.batch_size / max(seconds, 1e-9), 2),
            "data_wait_fraction": round(waited / max(seconds, 1e-9), 4),
        }
        self._say(line)

    def _batch_digest(self, batch: Batch) -> int:
        """Sum over the global batch, which tells whether two runs read the same pairs at the same places."""
        total = pair_digests(batch).sum().to(self.task.device)
        if self.task.world > 1:
            torch.distributed.all_reduce(total)
        return int(total) % DIGEST_MODULUS

    def _validate(self, validator: Validator, model: Any, step: StepNumber) -> None:
        values = validator.run(model, step)
        self._say({"step": step, **values})
        if self.task.rank == 0 and self.task.draw_pictures is not None:
            self.task.draw_pictures(model, step)

    def _say(self, line: dict[str, Any]) -> None:
        if self.log is not None:
            self._require_claim()
            self.log.write(line)
            self.events.line(line)

    def _check_finite(self) -> None:
        first = self.first_bad_step
        if self.task.world > 1:
            first = first.clone()
            torch.distributed.all_reduce(first, op=torch.distributed.ReduceOp.MAX)
        if int(first) >= 0:
            names = checkpoints.list_checkpoints(self.task.run.checkpoints)
            good = names[-1] if names else "none was written yet"
            raise JobError(
                f"step {int(first)}: a loss or gradient is not finite; last good checkpoint: {good}",
                "a lower training.learning_rate_per_256 or a longer training.warmup_fraction usually helps",
            )

    def _agreed(self, asked_of_all: bool) -> tuple[bool, bool]:
        """(whether every worker stops now, whether a checkpoint was asked for). Several workers can only
        agree together, at log steps; the files by which a worker in another process is told are looked for
        then too."""
        task = self.task
        if not asked_of_all:
            return task.world == 1 and task.stop_asked(), False
        stop = task.stop_asked() or (task.rank == 0 and task.run.stop_requested())
        save = task.rank == 0 and task.run.save_requested()
        if task.world == 1:
            return stop, save
        flags = torch.tensor([int(stop), int(save)], device=task.device)
        torch.distributed.all_reduce(flags, op=torch.distributed.ReduceOp.MAX)
        stopped, saved = flags.tolist()
        return bool(stopped), bool(saved)

    # -- checkpoints -----------------------------------------------------------------------------

    def _save(self) -> None:
        task, training = self.task, self.config.training
        sharded = training.parallel == "fsdp2"
        if not sharded and task.rank != 0:
            return
        begun = time.perf_counter()
        weights = model_tensors(self.bare)
        moments = optimizer_tensors(self.optimizer, self.bare.named_parameters())
        if task.rank != 0:
            return
        assert self.log is not None
        self._require_claim()
        self.log.sync()
        checkpoints.write_checkpoint(
            task.run.checkpoints,
            checkpoints.CheckpointState(
                step=self.step,
                position=self.step * training.batch_size,
                world_size=task.world,
                config_hash=config_hash(self.config),
                data_fingerprint=task.data_fingerprint,
                model=self.model_facts,
            ),
            weights,
            moments,
            keep=training.keep_checkpoints,
            before_marker=self._require_claim,
        )
        task.run.clear_save()
        self.events.saved(self.step, time.perf_counter() - begun)

    def _require_claim(self) -> None:
        if self.claim is not None:
            self.claim.require()

    def _copy_of_untrained(self) -> Any:
        """The model as it stands, where its step 0 is to be validated and its weights lie whole."""
        wanted = self.step == 0 and self.task.validate_untrained
        return copy.deepcopy(self.model) if wanted and self.config.training.parallel == "ddp" else None

    def _restore_weights(self) -> checkpoints.Checkpoint | None:
        warn = self.events.note
        newest = checkpoints.read_newest(self.task.run.checkpoints, warn)
        if newest is not None:
            checkpoints.load_model_tensors(self.model, newest.model, newest.name)
            self.step = newest.state.step
            warn(f"continuing at step {self.step} from checkpoint {newest.name}")
            return newest
        start = self.config.training.initial_checkpoint
        if start is not None:
            from mpma.data.storage import open_storage

            given = checkpoints.read_checkpoint(open_storage(start), parts=(checkpoints.MODEL_FILE,))
            checkpoints.load_model_tensors(self.model, given.model, start)
            warn(f"starting from the weights of step {given.state.step} in training.initial_checkpoint")
        return None


class _Interval:
    """Wall time and waiting between two log lines, validation and checkpoints left out."""

    def __init__(self, stream: Stream, step: int) -> None:
        self._stream = stream
        self._step = step
        self._start = time.perf_counter()
        self._paused = 0.0
        self._waited = stream.wait_seconds

    def take(self, step: int) -> tuple[float, float, int]:
        """(seconds, seconds waited for data, steps) since the last call."""
        now = time.perf_counter()
        taken = now - self._start - self._paused, self._stream.wait_seconds - self._waited, step - self._step
        self._start, self._paused, self._waited, self._step = now, 0.0, self._stream.wait_seconds, step
        return taken

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Time spent inside is not counted."""
        start = time.perf_counter()
        yield
        self._paused += time.perf_counter() - start
