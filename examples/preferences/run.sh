#!/usr/bin/env bash
# On every node: HEAD=node0 bash run.sh [dotted.key=value ...]
# First the reference's log-probabilities, on the same nodes in the same layout, then DPO.
set -euo pipefail
launch() {
  torchrun --nnodes 8 --nproc-per-node 8 --rdzv-backend c10d --rdzv-endpoint "${HEAD:?}:29500" \
    -m emu3_megatron "$@"
}
launch reference dpo-8b-h100x64 "$@"
launch train dpo-8b-h100x64 "$@"
