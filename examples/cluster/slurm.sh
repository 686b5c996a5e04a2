#!/bin/bash
# One run of `berdiff infer` on nodes of a SLURM cluster:
#
#     sbatch slurm.sh BUNDLE SCANS RESULTS
#
# Every node starts Ray; on the first, the command after "--" runs when all have joined, and all
# stop after it. Bundle, scans, results and the environment lie on a file system that all nodes
# share. A run that was cut off (time limit, a failed first node) goes on when it is submitted again.
#
# UNTESTED: it has not run under SLURM. `ray symmetric-run` needs Ray 2.49 or newer.
#SBATCH --job-name=berdiff
#SBATCH --nodes=4
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=8
#SBATCH --gpus-per-node=4
#SBATCH --time=12:00:00
# symmetric-run refuses a node on which another Ray runs.
#SBATCH --exclusive

set -euo pipefail
bundle=$1 scans=$2 results=$3
source "${BERDIFF_VENV:-$HOME/berdiff-venv}/bin/activate"

# Other users of a cluster reach these nodes too. Without a token Ray runs code for all of them.
RAY_AUTH_TOKEN=$(python -c 'import secrets; print(secrets.token_hex(32))')
export RAY_AUTH_TOKEN RAY_AUTH_MODE=token RAY_USAGE_STATS_ENABLED=0

first=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
address=$(srun --nodes=1 --ntasks=1 --nodelist="$first" hostname --ip-address | awk '{print $1}')
# Nodes start at different times; the default is 30 seconds.
export RAY_SYMMETRIC_RUN_CLUSTER_WAIT_TIMEOUT=300

srun --kill-on-bad-exit=1 ray symmetric-run \
    --address "$address:6379" \
    --min-nodes "$SLURM_JOB_NUM_NODES" \
    --num-cpus "$SLURM_CPUS_PER_TASK" \
    --num-gpus "$SLURM_GPUS_ON_NODE" \
    -- berdiff infer -m "$bundle" -i "$scans" -o "$results" \
    --cluster auto -d cuda --gpus-per-detector 1 --continue
