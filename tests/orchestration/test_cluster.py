from __future__ import annotations

import pytest

from mpma.config import load_config
from mpma.errors import UserError
from orchestration.cluster import Layout, Resources, choose_precision, plan_layout


def _layout(resources: Resources, *overrides: str) -> Layout:
    return plan_layout(load_config(None, list(overrides)).config.training, resources)


def test_one_worker_on_this_machine_trains_in_process_with_all_cores() -> None:
    layout = _layout(Resources(2, 0, local=True))
    assert (layout.in_process, layout.device, layout.threads_per_worker) == (True, "cpu", 2)


def test_one_worker_on_a_cluster_goes_through_the_worker_group() -> None:
    assert not _layout(Resources(8, 0, local=False)).in_process


@pytest.mark.parametrize("workers", [2, 4])
def test_workers_on_this_machine_share_what_ray_data_leaves(workers: int) -> None:
    layout = _layout(Resources(2, 0, local=True), f"training.workers={workers}")
    assert layout.cpus_per_worker * workers + 1 <= 2


@pytest.mark.parametrize(
    ("resources", "workers"),
    [
        (Resources(2, 0, local=True), 8),
        (Resources(1, 0, local=True), 2),
        (Resources(2, 0, local=False), 2),
        (Resources(4, 0, local=False), 4),
    ],
)
def test_too_few_cpus_for_workers_and_ray_data_are_refused(resources: Resources, workers: int) -> None:
    with pytest.raises(UserError, match=rf"training\.workers {workers}.*Ray Data") as caught:
        _layout(resources, f"training.workers={workers}")
    assert caught.value.hint


def test_a_gpu_per_worker_is_used_where_there_is_one() -> None:
    resources = Resources(16, 4, local=True)
    assert _layout(resources, "training.workers=4").device == "cuda"
    assert _layout(resources, "training.workers=8").device == "cpu"
    with pytest.raises(UserError, match="8 GPUs"):
        _layout(resources, "training.workers=8", "training.device=cuda")


def test_every_automatic_choice_comes_with_its_reason() -> None:
    layout = _layout(Resources(2, 0, local=True))
    assert any(reason.startswith("device: cpu") for reason in layout.reasons)
    assert any(reason.startswith("threads: 2") for reason in layout.reasons)
    assert choose_precision(load_config().config.training, "cpu") == ("fp32", "precision: fp32 (cpu)")
