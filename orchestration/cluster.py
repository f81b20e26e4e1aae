"""Where a run works: the Ray it connects to, and how its workers share the machine.

Decisions: without an address a private local Ray is started, whose files and token only this user can
read and whose servers listen on loopback; the layout is a pure function of the resources, so that it
can be checked without a cluster, and every automatic choice comes with its reason; one logical CPU is
always left to Ray Data, since a run that gives it none waits for ever without an error.
"""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mpma.errors import UserError
from mpma.training.config import TrainingConfig
from orchestration import growth, offline, ray_environment
from orchestration.session_folder import session_folder

CONNECT_SECONDS = 10
"""How long a cluster's port may take to accept a connection."""
ANSWER_SECONDS = 90
"""How long a cluster may take to take this program in."""
SMALLEST_CPU_SHARE = 0.25
"""Least share of a CPU that a worker on the user's own machine is given."""

_GPU_DEVICES = ("/dev/nvidiactl", "/dev/nvidia0", "/dev/nvgpu", "/dev/nvhost-gpu", "/dev/dxg", "/dev/kfd")
"""What the drivers of GPUs that torch can use make: NVIDIA's, that of Tegra, that of WSL, AMD's."""


@dataclass(frozen=True)
class Resources:
    """What a cluster, or this machine, has."""

    cpus: float
    gpus: float
    local: bool
    """A private Ray on this machine, whose logical CPUs are ours to divide."""


@dataclass(frozen=True)
class Layout:
    """How the workers are placed."""

    workers: int
    """As many as there is room for now."""
    counts: tuple[int, ...]
    """Numbers of workers that the group may come to have, ascending."""
    device: str
    """`cpu` or `cuda`."""
    in_process: bool
    """One worker on this machine trains in the program's own process."""
    cpus_per_worker: float
    threads_per_worker: int
    reasons: tuple[str, ...]


def this_machine(cpus: int | None = None) -> Resources:
    """Resources of this machine, its logical CPUs overridden by `cpus`; no Ray is needed."""
    return Resources(float(cpus or os.cpu_count() or 1), float(_gpus()), True)


def _gpus() -> int:
    # Where no driver has made its device, torch need not be imported to be asked: that takes seconds.
    if not any(Path(device).exists() for device in _GPU_DEVICES):
        return 0
    import torch

    return torch.cuda.device_count()


def plan_layout(
    training: TrainingConfig, resources: Resources, counts: tuple[int, ...] | None = None
) -> Layout:
    """Place the workers. Raises `UserError` where they and Ray Data do not fit.

    `counts`: the numbers of workers that the run may train with (`ExperimentConfig.worker_counts`); None:
    those at the ends of `training.workers`. Of a range the most are taken that there is room for.
    """
    counts = counts or tuple(sorted({training.fewest_workers, training.most_workers}))
    for workers in reversed(counts[1:]):
        with contextlib.suppress(UserError):
            return _layout_of(training, resources, counts, workers)
    return _layout_of(training, resources, counts, counts[0])


def _layout_of(
    training: TrainingConfig, resources: Resources, counts: tuple[int, ...], workers: int
) -> Layout:
    reasons = []
    device = training.device
    if device == "auto":
        device = "cuda" if resources.gpus >= workers and training.precision != "fp64" else "cpu"
        reasons.append(
            f"device: {device} ({resources.gpus:g} GPUs for {workers} worker{'s' * (workers > 1)})"
        )
    elif device == "cuda" and resources.gpus < workers:
        raise UserError(
            f"training.device cuda: {workers} workers need {workers} GPUs and there are {resources.gpus:g}",
            "use fewer training.workers, or training.device=cpu",
        )
    in_process = resources.local and counts == (1,)
    spare = resources.cpus - 1
    if in_process:
        share = 0.0
        reasons.append("workers: 1, in this process (no worker group to start)")
    else:
        each = float(training.threads_per_worker or 1)
        share = min(1.0, spare / workers) if resources.local else each
        if (resources.local and share < SMALLEST_CPU_SHARE) or workers * share + 1 > resources.cpus:
            need = f"{workers * (1 if resources.local else each) + 1:g}"
            most = int(spare / (SMALLEST_CPU_SHARE if resources.local else each))
            raise UserError(
                f"training.workers {workers}: {workers} workers and one CPU for Ray Data need {need} CPUs, "
                f"and there {'is' if resources.cpus == 1 else 'are'} {resources.cpus:g}",
                f"use at most {most} workers here"
                if most >= 1
                else "use training.workers=1, or declare more CPUs with --cpus",
            )
        reasons.append(f"workers: {workers}, {share:g} CPU each, 1 left to Ray Data")
        if len(counts) > 1:
            others = ", ".join(str(count) for count in counts)
            reasons.append(
                f"workers: any of {others}, as many as there is room for (training.workers is a range)"
            )
    threads = training.threads_per_worker
    if threads is None:
        cores = resources.cpus if resources.local else share
        threads = max(
            1, int(cores) if in_process else int(cores // workers) if resources.local else int(share)
        )
        reasons.append(f"threads: {threads} per worker")
    return Layout(workers, counts, device, in_process, share, threads, tuple(reasons))


def choose_precision(training: TrainingConfig, device: str) -> tuple[str, str]:
    """(`fp32`, `bf16` or `fp64`, the reason)."""
    if training.precision != "auto":
        return training.precision, f"precision: {training.precision} (as configured)"
    if device == "cuda":
        import torch

        # On a head node without a GPU the workers' GPUs cannot be asked; all since 2020 have bf16.
        if not torch.cuda.is_available() or torch.cuda.is_bf16_supported():
            return "bf16", "precision: bf16 (the GPU has it)"
    return "fp32", f"precision: fp32 ({device})"


@dataclass(frozen=True)
class Connection:
    """A Ray that is connected."""

    resources: Resources
    dashboard_url: str | None
    logs: str
    """Where Ray keeps its own logs, for a message about a failure."""
    custom: Mapping[str, float] = field(default_factory=dict)
    """All resources by name, the nodes' custom ones among them."""


@contextmanager
def connected(
    address: str | None,
    cpus: int | None = None,
    dashboard: bool = True,
    meanwhile: Callable[[], None] | None = None,
    custom_resources: dict[str, float] | None = None,
    name: str | None = None,
) -> Iterator[Connection]:
    """A Ray for the duration of a block: the cluster at `address`, or a private one on this machine.

    `meanwhile` runs in a thread beside Ray's start, which mostly waits for other processes.
    `custom_resources` are declared where the Ray is a private one. `name` is what the dashboard calls this
    program among its jobs.

    Raises `UserError` where the address does not answer, or where a private Ray has no place for its files.
    """
    address = address or os.environ.get("RAY_ADDRESS") or None
    _prepare_environment(private=address is None)
    import ray
    from ray._common.utils import get_default_system_temp_dir

    already = ray.is_initialized()
    folder = None if already or address else session_folder(get_default_system_temp_dir())
    beside = threading.Thread(target=meanwhile or (lambda: None), daemon=True)
    beside.start()
    if not already:
        job = ray.job_config.JobConfig(metadata={} if name is None else {"job_name": name})
        try:
            if address is None:
                ray.init(
                    address="local",
                    num_cpus=cpus,
                    resources=custom_resources,
                    include_dashboard=dashboard,
                    dashboard_host="127.0.0.1",
                    log_to_driver=False,
                    logging_level=logging.ERROR,
                    _temp_dir=folder,
                    runtime_env=offline.worker_settings() or None,
                    job_config=job,
                )
            else:
                _refuse_client(address)
                _require_listener(address)
                with _bounded(address):
                    ray.init(
                        address=address,
                        log_to_driver=False,
                        logging_level=logging.ERROR,
                        runtime_env={**offline.worker_settings(), **_own_code()},
                        job_config=job,
                    )
        except UserError:
            raise
        except Exception as error:
            if address is not None:
                raise UserError(
                    f"Ray at {address} does not take this program in ({type(error).__name__})",
                    "is this user's token that of the cluster (~/.ray/auth_token, or the file in "
                    "RAY_AUTH_TOKEN_PATH), and is it a Ray of this version? see `ray status`",
                ) from None
            # Among others a bare Exception where Ray's own processes do not come up in time.
            raise UserError(
                f"Ray on this machine does not come up ({type(error).__name__})",
                "the machine may be too busy; end other programs and try again",
            ) from None
    _close_token_file()
    beside.join()
    try:
        node = all_resources(private=address is None)
        url = None
        if dashboard or address is not None:
            url = getattr(ray._private.worker.global_worker.node, "webui_url", None)
        session = ray._private.worker.global_worker.node.get_session_dir_path()
        if folder is not None and url:
            from orchestration.telemetry.grafana import provision_when_ready

            provision_when_ready(session)
        yield Connection(
            Resources(node.get("CPU", 0.0), node.get("GPU", 0.0), address is None),
            f"http://{url}" if url else None,
            f"{session}/logs",
            node,
        )
    finally:
        if not already:
            ray.shutdown()


def all_resources(private: bool) -> dict[str, float]:
    """All resources by name: what there is, or on a cluster that grows by itself what there can be."""
    import ray

    found = dict(ray.cluster_resources())
    if not private:
        for name, most in growth.possible(ray.get_runtime_context().gcs_address).items():
            found[name] = max(found.get(name, 0.0), most)
    return found


def _refuse_client(address: str) -> None:
    if address.startswith("ray://"):
        submit = (
            "ray job submit --address http://HEAD:8265 --working-dir . -- python -m orchestration.pretrain"
        )
        raise UserError(
            f"--address {address}: Ray's client protocol cannot carry a training run",
            f"run it on a machine of the cluster with --address HEAD:6379, or submit it: {submit} ...",
        )


def _require_listener(address: str) -> None:
    """Raises `UserError` where nothing listens; Ray itself would go on asking for half an hour."""
    host, colon, port = address.rpartition(":")
    if not colon or not port.isdigit():
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=CONNECT_SECONDS).close()
    except OSError as error:
        raise UserError(
            f"--address {address}: nothing answers there ({error.strerror or type(error).__name__})",
            "name the head, such as 10.0.0.5:6379 (not the dashboard); see `ray status`",
        ) from None


@contextmanager
def _bounded(address: str) -> Iterator[None]:
    """End this program with a line where the block, which cannot be interrupted, takes too long."""

    def give_up() -> None:
        print(
            f"error: Ray at {address} has not answered for {ANSWER_SECONDS} s\n"
            "hint: is this a Ray of the same version, and is it well? see `ray status`",
            file=sys.stderr,
            flush=True,
        )
        os._exit(2)

    timer = threading.Timer(ANSWER_SECONDS, give_up)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def _own_code() -> dict[str, Any]:
    """This project's code for the cluster's processes, so that they run what the driver runs."""
    here = Path(__file__).resolve().parents[1]
    return {"py_modules": [str(here / "mpma"), str(here / "orchestration")]}


def _prepare_environment(private: bool) -> None:
    """Settings that Ray reads when it is imported or started; a user's own values win."""
    # A cluster's commands do not look for the token by themselves, as a private Ray does.
    token = Path(os.environ.get("RAY_AUTH_TOKEN_PATH") or Path.home() / ".ray" / "auth_token")
    if not private and ("RAY_AUTH_TOKEN" in os.environ or token.is_file()):
        os.environ.setdefault("RAY_AUTH_MODE", "token")
    # Whatever its name says: 0 makes loopback the address of a Ray's only node, and all of its servers, those
    # of figures among them, which ask for no token, then listen on loopback alone.
    loopback = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"} if private else {}
    for name, value in {**loopback, **ray_environment.DRIVER}.items():
        os.environ.setdefault(name, value)


def _close_token_file() -> None:
    """Ray writes its token readable for all; it is a password."""
    token = Path.home() / ".ray" / "auth_token"
    if token.is_file() and token.stat().st_uid == os.getuid():
        token.chmod(0o600)
