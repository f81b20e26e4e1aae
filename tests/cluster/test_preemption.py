"""A node that is told to go within a deadline: the run saves, leaves it in time and loses no step."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest
import yaml
from network_hosts import GCS_PORT, Host, Network, cluster_of_hosts, end_group, wait_until
from runs_on_hosts import Progress, numbers, pretrain_command, resizing_recipe, unbroken
from small_runs import phantom_dataset

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

STEPS = 20_000
"""More than are ever made: both runs are stopped when enough has happened."""
DEADLINE_SECONDS = 60
"""What a cloud gives, roughly: AWS two minutes, Google Cloud half of one."""


def _node_id(network: Network, head: Host, host: Host) -> str:
    """Ray's name for the node on a host."""
    program = (
        "import ray; from ray._raylet import GcsClient, GcsClientOptions\n"
        "from ray._private.state import GlobalState\n"
        "state = GlobalState()\n"
        f"state._initialize_global_state(GcsClientOptions.create('{head.address}:{GCS_PORT}', None,\n"
        "    allow_cluster_id_nil=True, fetch_cluster_id_if_nil=False))\n"
        "import json\n"
        "print(json.dumps({n['NodeManagerAddress']: n['NodeID'] for n in state.node_table()}))"
    )
    done = subprocess.run(
        head.command([sys.executable, "-c", program]),
        env=network.environment(),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return str(json.loads(done.stdout.splitlines()[-1])[host.address])


def _give_notice(network: Network, head: Host, node: str) -> None:
    """What a cloud's agent does on the machine that is to be taken away."""
    command = [str(Path(sys.executable).with_name("ray")), "drain-node"]
    command += [f"--address={head.address}:{GCS_PORT}", f"--node-id={node}"]
    command += ["--reason=DRAIN_NODE_REASON_PREEMPTION", "--reason-message=spot"]
    command += [f"--deadline-remaining-seconds={DEADLINE_SECONDS}"]
    done = subprocess.run(
        head.command(command), env=network.environment(), capture_output=True, text=True, timeout=30
    )
    assert done.returncode == 0, done.stderr[-2000:]


def test_a_node_that_is_given_notice_is_left_before_its_deadline_and_no_step_is_made_twice(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data, runs, recipe_file = phantom_dataset(tmp_path / "data"), tmp_path / "runs", tmp_path / "recipe.yaml"
    settings = resizing_recipe(STEPS)
    # So rare that a group which did not save for the notice would have to make every step again.
    settings["training"]["checkpoint_every_steps"] = STEPS
    recipe_file.write_text(yaml.safe_dump(settings))
    # Sockets lie below it, and their paths may not be long.
    folder = Path(tempfile.mkdtemp(prefix="h", dir="/tmp"))
    said, driver = tmp_path / "driver.log", None
    run = runs / "moved"
    log = said.open("wb")
    try:
        with cluster_of_hosts(2, cpus=3, folder=folder) as (network, supervisor, head, (_, second)):
            node = _node_id(network, head, second)
            progress = Progress(run / "metrics.jsonl")
            address = f"{head.address}:{GCS_PORT}"
            driver = subprocess.Popen(
                head.command(pretrain_command(recipe_file, data, runs, "moved", "--address", address)),
                env=network.environment(),
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

            def made(workers: int, steps: int) -> bool:
                assert driver is not None
                assert driver.poll() is None, said.read_text()[-3000:]
                return progress.workers == workers and progress.step >= steps

            with progress.watched():
                wait_until(lambda: made(2, 15), 60, "two workers do not make 15 steps")
                # Where the node ends after its notice, it is not started again: the machine is gone.
                supervisor.forget(second)
                noticed = time.monotonic()
                _give_notice(network, head, node)
                wait_until(lambda: made(1, 0), 40, "one worker does not go on")
                left = time.monotonic() - noticed
                saved = sorted((run / "checkpoints").iterdir())
                wait_until(lambda: not second.training_workers(), 10, "a worker stays on the node")
                # The machine goes; nobody works there any more, so nothing may come of it.
                network.cable(second, "down")
                second.kill_everything()
                begun = progress.step
                wait_until(lambda: made(1, begun + 15), 40, "the run does not survive the machine's end")
                pause = progress.longest_pause(noticed)
                driver.send_signal(signal.SIGINT)
                assert driver.wait(timeout=60) == 0, said.read_text()[-3000:]
    finally:
        if driver is not None:
            end_group(driver)
        log.close()
        shutil.rmtree(folder, ignore_errors=True)

    found = numbers(run)
    assert list(found) == list(range(1, len(found) + 1))
    # The only checkpoint there was is the one that the notice asked for, at the last step of two workers:
    # what one worker made begins with the step after it, so none was made twice.
    last_of_two = max(step for step, line in found.items() if line["workers"] == 2)
    assert [path.name for path in saved] == [f"step_{last_of_two:08d}"]
    assert all(line["workers"] == (2 if step <= last_of_two else 1) for step, line in found.items())
    assert f"continuing at step {last_of_two} " in said.read_text()
    expected = unbroken(recipe_file, data, runs, tmp_path / "unbroken.log", len(found))
    worst = 0.0
    for step, line in found.items():
        assert line["batch_digest"] == expected[step]["batch_digest"], step
        worst = max(worst, *(abs(expected[step][n] - v) for n, v in line.items() if n.startswith("loss/")))
    with capsys.disabled():
        print(f"\nfirst step elsewhere {left:.1f} s after the notice; longest pause {pause:.1f} s")
        print(f"largest difference of a loss over {len(found)} steps: {worst:.1e}")
    assert worst < 1e-8
    assert left < 30
