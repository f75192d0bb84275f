#!/usr/bin/env bash
# Inside a Slurm job: one process a task runs emu3; a run that was told to leave is requeued.
#   srun gets the tasks from the job: --nodes and --ntasks-per-node, one task a GPU.
#   bash tools/slurm_emu3.sh train RECIPE [dotted.key=value ...]
set -uo pipefail
requeue=75 # the exit status of a run that has saved and wants to go on; docs/reliability.md

# A port below those that Linux gives to connections, by the job's number; this node, the head,
# passes over those in use.
free_port() {
  local number=$SLURM_JOB_ID port in_use
  { in_use="$(</proc/net/tcp)"$'\n'"$(</proc/net/tcp6)"; } 2>/dev/null || true
  while
    port=$((10000 + number % 20000))
    [[ $in_use =~ :\ [0-9A-F]+:$(printf %04X "$port")\  ]]
  do number=$((number + 1)); done
  echo "$port"
}

head=$(scontrol show hostnames "${SLURM_JOB_NODELIST:?not inside a Slurm job}" | head -n 1)
export MASTER_ADDR=${MASTER_ADDR:-$head}
export MASTER_PORT=${MASTER_PORT:-$(free_port)}
export WORLD_SIZE=${SLURM_NTASKS:-1}

# Without --kill-on-bad-exit the job would wait for ever for the peers of a rank that died.
# shellcheck disable=SC2016  # the variables are those of each task
srun --kill-on-bad-exit=1 \
  bash -c 'RANK=$SLURM_PROCID LOCAL_RANK=$SLURM_LOCALID exec "$@"' task emu3 "$@"
status=$?
if [ "$status" -eq "$requeue" ]; then
  echo "saved and requeued: job $SLURM_JOB_ID, start $((${SLURM_RESTART_COUNT:-0} + 1))"
  scontrol requeue "$SLURM_JOB_ID" && sleep 60 # Slurm ends this script meanwhile
fi
exit "$status"
