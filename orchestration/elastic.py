"""How many workers a group has, as many as there is room for, and how often it may be started again.

Decisions
- Room is read from the cluster itself at every look (nodes that are alive and not about to go, and what is
  free on them). Ray Train's own elastic policy asks a coordinator whose view is up to 20 s old: after a
  lost node it would try the old number again and wait for a node that is gone.
- Only numbers that divide the lanes of the sample order are taken, so the global batch and its order never
  change.
- A group is made larger only after it has saved: growing costs no step. It is asked to by a file in the run
  directory, which it looks for at its log steps. A group that lost a worker goes on from its last
  checkpoint.
- After a loss a short while is given for processes to end and to free what they held, so that a group does
  not shrink below what the nodes that are left can carry, only to grow a moment later.
- Ray Train has no door for a policy of one's own: it is handed over where the trainer starts its controller.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ray._private.state import state
from ray.train import FailureConfig, ScalingConfig
from ray.train.torch import TorchTrainer
from ray.train.v2._internal.execution.failure_handling.default import DefaultFailurePolicy
from ray.train.v2._internal.execution.scaling_policy import NoopDecision, ScalingDecision
from ray.train.v2._internal.execution.scaling_policy.elastic import ElasticScalingPolicy
from ray.train.v2._internal.util import time_monotonic

from mpma.training.checkpoint import list_checkpoints
from mpma.training.run_directory import RunDirectory

Amounts = Mapping[str, float]


def fitting(counts: tuple[int, ...], room: int) -> int:
    """The largest of the ascending `counts` that `room` workers allow; 0 where none does.

    Example:
        >>> fitting((1, 2, 4), 3), fitting((2, 4), 1)
        (2, 0)
    """
    return max((count for count in counts if count <= room), default=0)


def room_for(nodes: Mapping[str, Amounts], worker: Amounts) -> int:
    """How many workers fit, each wholly on one of the nodes; `worker` is what one of them needs."""
    return sum(
        int(min(amounts.get(name, 0.0) / need + 1e-6 for name, need in worker.items() if need > 0))
        for amounts in nodes.values()
    )


class RoomAsItIs(ElasticScalingPolicy):
    """Ray Train's elastic policy with its view of the cluster, its numbers and its growing replaced."""

    def __init__(self, scaling_config: ScalingConfig, counts: tuple[int, ...], runs: str, name: str) -> None:
        super().__init__(scaling_config)
        self._counts = counts
        self._run = RunDirectory.at(runs, name)
        self._tried = False
        """Whether a start was decided on since a group last ran."""
        self._last_look = float("-inf")
        self._asked_to_save = False

    def make_decision_for_non_running_worker_group(self) -> ScalingDecision:
        """Start with as many as the nodes can carry; where that did not come about, with what is free on
        them."""
        self._maybe_send_resource_request()
        self._asked_to_save = False
        # At the first try the former group still holds its places, which it gives back when the new one
        # starts.
        nodes = state.available_resources_per_node() if self._tried else state.total_resources_per_node()
        count = fitting(self._counts, self._room(nodes))
        if not count:
            return NoopDecision()
        self._tried = True
        return self._get_resize_decision(count)

    def make_decision_for_running_worker_group(
        self, worker_group_state: Any, worker_group_status: Any
    ) -> ScalingDecision:
        """Grow when there is room for a larger number and the group has saved for it."""
        self._maybe_send_resource_request()
        self._tried = False
        now, has = time_monotonic(), worker_group_state.num_workers
        if not self._asked_to_save:
            since = max(worker_group_state.start_time, self._last_look)
            if now - since < self.scaling_config.elastic_resize_monitor_interval_s:
                return NoopDecision()
        self._last_look = now
        target = fitting(self._counts, has + self._room(state.available_resources_per_node()))
        if target <= has:
            if self._asked_to_save:
                self._run.clear_save()
                self._asked_to_save = False
            return NoopDecision()
        if not self._asked_to_save:
            self._run.request_save()
            self._asked_to_save = True
            return NoopDecision()
        if self._run.save_requested():
            return NoopDecision()
        self._asked_to_save = False
        return self._get_resize_decision(target)

    def _room(self, nodes: Mapping[str, Amounts]) -> int:
        # Dead nodes have left both lists; nodes that are about to go take no new work.
        leaving = state.get_draining_nodes()
        staying = {node: amounts for node, amounts in nodes.items() if node not in leaving}
        return min(room_for(staying, self.scaling_config._resources_per_worker_not_none), self._counts[-1])


class RestartsWithoutProgress(DefaultFailurePolicy):
    """Ray Train's count of failures, begun anew whenever the run has a newer checkpoint than at the one
    before: a long run may lose many workers, a run that dies at the same place again and again may not go
    on."""

    def __init__(self, failure_config: FailureConfig, runs: str, name: str) -> None:
        super().__init__(failure_config)
        self._checkpoints = RunDirectory.at(runs, name).checkpoints
        self._newest: str | None = None

    def make_decision(self, training_failed_error: Any) -> Any:
        """Whether the group is started again."""
        newest = next(reversed(list_checkpoints(self._checkpoints)), None)
        if newest != self._newest:
            self._newest, self._worker_group_failures = newest, 0
        return super().make_decision(training_failed_error)


class GroupTrainer(TorchTrainer):
    """A TorchTrainer with the policies of this module."""

    def __init__(
        self, *arguments: Any, counts: tuple[int, ...], runs: str, name: str, **settings: Any
    ) -> None:
        super().__init__(*arguments, **settings)
        failures = self.run_config.failure_config
        self._policies: dict[str, Any] = {"failure_policy": RestartsWithoutProgress(failures, runs, name)}
        if len(counts) > 1:
            self._policies["scaling_policy"] = RoomAsItIs(self.scaling_config, counts, runs, name)

    def _initialize_and_run_controller(self, **settings: Any) -> Any:
        return super()._initialize_and_run_controller(**{**settings, **self._policies})
