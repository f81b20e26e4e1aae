"""What Ray's processes and our drivers are told by environment variables, in one place.

Decisions: `NODE` belongs into every `ray start` of a cluster (the files of deploy/ and cluster.yaml hold
the same lines; a test compares them), `DRIVER` is set by our programs; a user's own values win. The stock
settings make the loss of a node an outage of more than a minute: a silent node counts as alive for some 50
s, and a group then waits a minute for the place of the worker that is gone. Shorter is not always better: a
node whose cores are all taken, or whose network stalls, must not be declared dead, since its raylet then
ends and its work is lost. With these a node is given up after 16 s of silence to every one of four
questions.
"""

from __future__ import annotations

from typing import Final

NODE: Final[dict[str, str]] = {
    # Ray turns its token on for a head that finds the file, and not for nodes that join and not for commands.
    "RAY_AUTH_MODE": "token",
    "RAY_USAGE_STATS_ENABLED": "0",
    # The head asks every node once a second, waits 3 s for an answer (10 s by default) and gives up after
    # four questions in a row (five, 3 s apart, by default).
    "RAY_health_check_period_ms": "1000",
    "RAY_health_check_timeout_ms": "3000",
    "RAY_health_check_failure_threshold": "4",
    # How long a node that cannot reach the head goes on by itself. The head has given it up long before.
    "RAY_gcs_rpc_server_reconnect_timeout_s": "40",
}
"""For `ray start`, on the head and on every other node."""

DRIVER: Final[dict[str, str]] = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_DATA_DISABLE_PROGRESS_BARS": "1",
    # How soon a worker's end is noticed. Each look asks every worker.
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "1",
    # Without it the dashboard's page of training runs has nothing to show.
    "RAY_TRAIN_ENABLE_STATE_TRACKING": "1",
    # How long a group waits for its place before it is planned anew, with what there is by then.
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "20",
    # How soon a node that is about to go is noticed.
    "RAY_TRAIN_PREEMPTION_POLL_INTERVAL_S": "2",
    # A waiting OpenMP thread that spins for long takes a core from Ray Data's tasks.
    "GOMP_SPINCOUNT": "30000",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
}
"""For a program that connects to Ray. Ray Train hands its own variables on to its workers."""
