"""How trials share a machine or a cluster: a pure function, tried over a grid of both."""

from __future__ import annotations

import pytest

from mpma.errors import UserError
from mpma.training.config import TrainingConfig
from orchestration.cluster import Connection, Resources
from orchestration.search.engine import Place
from orchestration.search.place import TrialLayout, plan_trials
from orchestration.tuning import refuse_without_drivers


def laid_out(
    cpus: float,
    gpus: float = 0,
    *,
    local: bool = True,
    concurrency: int | None = None,
    share: float | None = None,
    **training: int,
) -> TrialLayout:
    batch = 64 * training.get("workers", 1)
    config = TrainingConfig(batch_size=batch, **training)  # type: ignore[arg-type]
    return plan_trials(config, Resources(cpus, gpus, local), concurrency, share)


def test_two_cores_hold_two_trials_of_one_thread_and_leave_a_cpu_to_ray_data() -> None:
    layout = laid_out(2)
    assert (layout.concurrency, layout.threads, layout.device) == (2, 1, "cpu")
    assert layout.cpus_per_worker * 2 + 1 <= 2


@pytest.mark.parametrize("cpus", [2, 3, 4, 8, 16])
@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("concurrency", [None, 1, 2, 7])
def test_what_is_laid_out_fits_the_machine_with_a_cpu_to_spare(
    cpus: int, workers: int, concurrency: int | None
) -> None:
    layout = laid_out(cpus, concurrency=concurrency, workers=workers)
    assert layout.concurrency >= 1
    assert layout.concurrency <= (concurrency or cpus)
    assert layout.concurrency * layout.workers * layout.cpus_per_worker + 1 <= cpus + 1e-9


def test_a_gpu_is_shared_by_fractions() -> None:
    assert laid_out(16, 2).concurrency == 2
    half = laid_out(16, 2, share=0.5)
    assert (half.concurrency, half.gpus, half.device) == (4, 0.5, "cuda")


def test_trials_of_several_workers_take_a_gpu_each() -> None:
    layout = laid_out(32, 8, local=False, workers=4)
    assert (layout.concurrency, layout.workers, layout.device) == (2, 4, "cuda")


@pytest.mark.parametrize(
    ("cpus", "gpus", "local", "training"),
    [(1, 0, True, {}), (1, 0, False, {}), (2, 0, False, {"workers": 2}), (1, 1, True, {})],
)
def test_a_cluster_too_small_for_one_trial_is_refused(
    cpus: float, gpus: float, local: bool, training: dict[str, int]
) -> None:
    with pytest.raises(UserError, match="too small for one trial"):
        laid_out(cpus, gpus, local=local, **training)


def test_concurrency_grows_with_the_cluster() -> None:
    place = Place("d", "f", "s", "cuda", "bf16", 1, 1, 1.0, 0.5, 2, None)
    assert [place.fit(cpus, gpus) for cpus, gpus in [(8, 1), (8, 2), (64, 8)]] == [2, 4, 16]
    assert place.fit(3, 8) == 2


def test_drivers_of_several_worker_trials_need_their_resource() -> None:
    layout = laid_out(4, workers=2)
    bare = Connection(Resources(4, 0, False), None, "logs", {"CPU": 4.0})
    with pytest.raises(UserError, match="trial_driver"):
        refuse_without_drivers(layout, bare)
    refuse_without_drivers(layout, Connection(Resources(4, 0, False), None, "logs", {"trial_driver": 1.0}))
    refuse_without_drivers(laid_out(4), bare)
