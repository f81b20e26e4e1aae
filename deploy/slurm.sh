#!/usr/bin/env bash
# A Ray cluster inside a SLURM allocation, and one program on it: docs/cluster/slurm.md.
#
#   sbatch deploy/slurm.sh orchestration.pretrain --config recipes/vit_b16.yaml --data /shared/datasets/NAME \
#       --runs /shared/runs --name first --set training.workers=8
#
# Not run on a SLURM; a test runs it with a stand-in for srun and scontrol (tests/cluster/test_slurm.py).
# ---- What you must change: partition, account and time are your site's -----------------------------------
#SBATCH --job-name=mpma
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=4
#SBATCH --cpus-per-task=32
#SBATCH --time=24:00:00
# ----------------------------------------------------------------------------------------------------------
# Two minutes before the time is over the program is told to save; with --requeue the job then goes on where it stood.
#SBATCH --signal=B:TERM@120
#SBATCH --open-mode=append
set -euo pipefail

if [ $# -eq 0 ]; then
    echo "error: no program is named; for example: sbatch deploy/slurm.sh orchestration.pretrain --config ..." >&2
    exit 2
fi
project=${MPMA_PROJECT:-${SLURM_SUBMIT_DIR:-$PWD}}
python=$project/.venv/bin/python
if [ ! -x "$python" ]; then
    echo "error: $python is missing; run \`make install\` in the checkout, or set MPMA_PROJECT to it" >&2
    exit 2
fi
cd "$project"
ray=$project/.venv/bin/ray

# The token is this job's own: whoever has it runs programs as you. Every node reads it from the shared home.
umask 077
private=$(mktemp -d "${MPMA_SHARED:-$HOME}/.mpma-${SLURM_JOB_ID}-XXXXXX")
export RAY_AUTH_MODE=token RAY_AUTH_TOKEN_PATH=$private/token
"$python" -c 'import secrets; print(secrets.token_hex(32), end="")' > "$RAY_AUTH_TOKEN_PATH"

# What the variables are for: orchestration/ray_environment.py. Each job has ports of its own, since jobs may share
# a node, and a folder of its own on each node's disk.
export RAY_USAGE_STATS_ENABLED=0 RAY_health_check_period_ms=1000 RAY_health_check_timeout_ms=3000
export RAY_health_check_failure_threshold=4 RAY_gcs_rpc_server_reconnect_timeout_s=40
# A node that is told to end would wait half a minute for work to leave it; here the program has ended first.
export RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S=0
port=$((20000 + SLURM_JOB_ID % 1000 * 10))
folder=/tmp/ray-$SLURM_JOB_ID
cpus=${SLURM_CPUS_PER_TASK:-$(nproc)}
gpus=${SLURM_GPUS_ON_NODE:-0}

mapfile -t nodes < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
one=(srun --nodes=1 --ntasks=1 --overlap)
address_of() { # node
    "${one[@]}" --nodelist="$1" hostname --all-ip-addresses | tr ' ' '\n' | grep -m1 -v -e '^127\.' -e : -e '^$'
}
head_address=$(address_of "${nodes[0]}")

started=()
program=
told=
# Nothing of the cluster and no token stays behind, whatever ends this script.
# shellcheck disable=SC2317  # the trap calls it
end() {
    trap - EXIT
    kill -TERM "${started[@]}" 2> /dev/null || true
    wait "${started[@]}" 2> /dev/null || true
    rm -rf "$private" "$folder"
}
trap end EXIT
trap 'told=1; if [ -n "$program" ]; then kill -TERM "$program" 2> /dev/null; else exit 143; fi' INT TERM

# --block: srun ends what it started when it is told to end.
start() { # node, arguments of `ray start`
    local node=$1
    shift
    "${one[@]}" --nodelist="$node" "$ray" start --block --num-cpus="$cpus" --num-gpus="$gpus" \
        --min-worker-port=0 --max-worker-port=0 --dashboard-agent-listen-port=$((port + 3)) \
        --metrics-export-port=$((port + 4)) "$@" > "$private/$node.log" 2>&1 &
    started+=($!)
}
up() { # node
    for _ in $(seq 120); do
        grep -q 'runtime started' "$private/$1.log" && return
        sleep 1
    done
    cat "$private/$1.log" >&2
    exit 1
}
start "${nodes[0]}" --head --node-ip-address="$head_address" --port="$port" --resources='{"trial_driver": 64}' \
    --dashboard-host=127.0.0.1 --dashboard-port=$((port + 1)) --ray-client-server-port=$((port + 2)) \
    --temp-dir="$folder"
up "${nodes[0]}"
for node in "${nodes[@]:1}"; do
    address=$(address_of "$node")
    start "$node" --address="$head_address:$port" --node-ip-address="$address"
done
for node in "${nodes[@]:1}"; do
    up "$node"
done

echo "Ray: ${#nodes[@]} nodes at $head_address:$port"
# SLURM runs this script on the first node, the head, so the program needs no srun, which would keep signals to itself.
"$python" -m "$@" --address "$head_address:$port" &
program=$!
status=0
wait "$program" || status=$?
# A signal ends the wait, not the program, which saves first.
while [ -n "$told" ]; do
    told=
    status=0
    wait "$program" || status=$?
done
exit "$status"
