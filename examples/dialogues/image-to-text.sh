#!/usr/bin/env bash
# On every node: HEAD=node0 bash image-to-text.sh [dotted.key=value ...]
set -euo pipefail
exec torchrun --nnodes 8 --nproc-per-node 8 --rdzv-backend c10d --rdzv-endpoint "${HEAD:?}:29500" \
  -m emu3_megatron train image-to-text-8b-h100x64 "$@"
